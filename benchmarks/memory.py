"""The peak of memory of one program, in a fresh process.

    python benchmarks/memory.py --shape 4,200,41,1024 --which "ours, TDT"    prints JSON

The growth is that of the resident set from before the first call, when the logits are there and the
program is compiled, to its peak: temporaries and the gradient (1.00 of it). XLA's own count of the
temporaries is beside it.
"""

import argparse
import ctypes
import json
import pathlib

import apart
from programs import KINDS, LOSSES, Shape

PROGRAMS = {which + suffix: (which, kind) for which in LOSSES for suffix, kind in KINDS.items()}


def measure(shape: Shape, which: str) -> dict[str, float]:
    """Runs this file."""
    return apart.run(__file__, shape, "--which", which)


def resident(key: str) -> int:
    """VmRSS, now, or VmHWM, its peak: in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(key)


def start() -> int:
    # What making the logits and compiling left free would otherwise be taken again, unseen ...
    ctypes.CDLL(None).malloc_trim(0)
    # ... and their peak would hide ours.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def main() -> None:
    import jax

    from programs import make_problem

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=apart.parse_shape, required=True)
    parser.add_argument("--which", choices=list(PROGRAMS), required=True)
    arguments = parser.parse_args()
    which, kind = PROGRAMS[arguments.which]
    small = make_problem((1, 4, 3, 16), kind)  # starts threads, loads libraries
    jax.block_until_ready(small.compiled(which)(small.logits))
    problem = make_problem(arguments.shape, kind)
    logits = jax.block_until_ready(problem.logits)
    program = problem.compiled(which)
    before = start()
    results = jax.block_until_ready(program(logits))
    growth = resident("VmHWM") - before
    del results
    temporary = program.memory_analysis().temp_size_in_bytes
    print(json.dumps({"growth": growth / logits.nbytes, "temp": temporary / logits.nbytes}))


if __name__ == "__main__":
    main()
