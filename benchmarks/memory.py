"""The peak of a program's memory on a CPU, as the operating system counts it."""

import ctypes
import pathlib

import jax

from .problems import KINDS, SHAPES, Problem


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


def growth(shape: str, kind: str, which: str) -> float:
    """Of the resident set, over the logits; in a fresh process.

    From before the first call, when the logits are there and the program is compiled, to its peak:
    temporaries and the gradient (1.00 of it).
    """
    small = Problem(SHAPES["tiny"], KINDS[kind])  # starts threads, loads libraries
    jax.block_until_ready(small.compiled(which)(small.logits))
    problem = Problem(SHAPES[shape], KINDS[kind])
    logits = jax.block_until_ready(problem.logits)
    program = problem.compiled(which)
    before = start()
    results = jax.block_until_ready(program(logits))
    grown = resident("VmHWM") - before
    del results
    return grown / logits.nbytes
