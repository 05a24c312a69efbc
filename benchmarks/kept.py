"""The times of a process that keeps its memory instead of giving it back (docs/cpu.md).

    python benchmarks/kept.py --shape 4,200,41,1024      prints JSON, ms: {program: [samples]}

glibc reads these settings when a process starts, so it has one of its own.
"""

import argparse
import functools
import itertools
import json

import jax.numpy as jnp

import apart
import floor
from programs import MULTIBLANK, TDT_0_TO_4, Shape, make_problem
from timing import Call, Pass, interleave

SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


def measure(shape: Shape, seconds: float) -> dict[str, list[float]]:
    """Runs this file."""
    return apart.run(__file__, shape, "--seconds", str(seconds), **SETTINGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=apart.parse_shape, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()

    calls: dict[str, Call] = {}
    passes = None
    for suffix, dtype in {"": jnp.float32, ", bfloat16": jnp.bfloat16}.items():
        problem = make_problem(arguments.shape, MULTIBLANK, dtype)
        passes = passes or floor.Floor(problem.logits.nbytes)  # the smaller ones fit as well
        for kind in ("read", "copy"):
            run = functools.partial(passes.milliseconds, kind, problem.logits.nbytes)
            calls[kind + suffix] = Pass(run, lambda: ())
        problems = {"": problem, ", TDT": make_problem(arguments.shape, TDT_0_TO_4, dtype)}
        for which, (kind, problem) in itertools.product(("ours", "strong"), problems.items()):
            calls[which + kind + suffix] = Call(
                problem.compiled(which), lambda problem=problem: (problem.logits,)
            )
    interleave(calls, arguments.seconds, (3, 25))
    print(json.dumps({name: call.milliseconds for name, call in calls.items()}))


if __name__ == "__main__":
    main()
