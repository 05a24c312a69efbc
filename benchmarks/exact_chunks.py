"""How much of the lattice the CUDA sweep does exactly, which is slow, and how well it does it.

Over arcs made by the recipes below and, if asked, those of trained recognisers, beside the pure-JAX
lattice in float64. Needs no GPU, takes minutes.
"""

import argparse
import functools
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from exact_chunks import EXACT_TAKES, Lattices, Weights, certain, errors, sweep, untrained
from jax_mbrnnt import Arc, multiblank_arcs, rnnt_arcs, tdt_arcs

from .results import Report, table

MULTIBLANK = multiblank_arcs((2, 4, 8))
TDT = tdt_arcs(range(9))
MEDIUM, LONG = (400, 101), (1500, 301)  # T, U+1


def masked(by: float, where: Callable[[np.random.Generator, Any], Any]) -> Weights:
    """`by` at some of untrained weights."""
    weights = untrained(1024, MEDIUM, MULTIBLANK)
    weights[where(np.random.default_rng(0), weights.shape)] = by
    return weights


def longest_blank(_: np.random.Generator, shape: Sequence[int]) -> Any:
    return np.s_[..., -1]


def one_in(n: int) -> Callable[[np.random.Generator, Any], Any]:
    return lambda rng, shape: rng.random(shape) < 1 / n


Recipe = Callable[[], Lattices]


def recipes() -> Iterator[tuple[str, Recipe]]:
    def of(arcs: Sequence[Arc], make: Callable[..., Weights], *arguments: Any) -> Recipe:
        return lambda: Lattices.full(make(*arguments), arcs)

    for shape in (MEDIUM, LONG):
        for classes in (1024, 5000):
            yield f"untrained, V = {classes}", of(MULTIBLANK, untrained, classes, shape, MULTIBLANK)
    for name, arcs in {"RNN-T": rnnt_arcs(), "multi-blank": MULTIBLANK, "TDT 0 to 8": TDT}.items():
        if arcs is not MULTIBLANK:
            yield f"untrained, V = 1024, {name}", of(arcs, untrained, 1024, MEDIUM, arcs)
        for others in (8, 16, 30, 60):
            yield f"certain, others e^-{others}, {name}", of(arcs, certain, others, MEDIUM, arcs)
    for others in (8, 16, 30, 60):
        yield (
            f"certain, others e^-{others}, multi-blank",
            of(MULTIBLANK, certain, others, LONG, MULTIBLANK),
        )
    for by in (-np.inf, -1e4, -1e9):
        yield f"{by:g} at every blank of 8 frames", of(MULTIBLANK, masked, by, longest_blank)
    for n in (50, 1000, 10000):
        yield f"-100 at one arc in {n}", of(MULTIBLANK, masked, -100, one_in(n))


def row(name: str, lattices: Lattices) -> list[object]:
    start = time.perf_counter()
    swept = sweep(lattices)
    seconds = time.perf_counter() - start
    batch, frames, columns, _ = lattices.arc_log_probs.shape
    counts = swept.counts
    cells = [
        f"{batch} x {frames} x {columns}",
        f"{100 * lattices.outside():.2g} %",
        counts.chunks,
        counts.exact,
        f"{100 * counts.exact / counts.chunks:.2g} %",
        f"{counts.steps_with_exact / counts.steps:.2f}",
        *(f"{error:.1e}" for error in errors(lattices, swept)),
    ]
    print(f"{seconds:.0f} s in the emulator:", name, *cells, file=sys.stderr, flush=True)
    return [name, *cells]


HEAD = ["arcs", "B x T x U+1", "outside", "chunks", "exact", "", "time", "loss", "posteriors"]


LEGEND = """\
outside: the share of weights that no fast chunk may have. exact: chunks of both directions that
ExactChunk did. time: of the longest way through the tiles, which is 1 where no chunk is exact, when
an exact one takes {} times as long. Then the largest errors of a loss (relative above 1) and of a
posterior."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trained",
        type=pathlib.Path,
        metavar="DIR",
        help="what examples/spoken_words/train.py wrote (with --quick: --quick --synthetic)",
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="a part of the names")


def run(report: Report, arguments: argparse.Namespace) -> None:
    named = [*recipes()]
    if arguments.quick:
        named = [("untrained", lambda: Lattices.full(untrained(64, (40, 41), TDT), TDT))]
    if arguments.trained:
        from .trained_arcs import lattices

        found = dict(lattices(arguments.trained, arguments.quick))  # in float32
        named += [(name, functools.partial(found.get, name)) for name in found]
    jax.config.update("jax_enable_x64", True)
    chosen = ((name, make) for name, make in named if re.search(arguments.only, name))
    report.say(*LEGEND.format(EXACT_TAKES).splitlines(), "")
    report.say(*table(HEAD, (row(name, make()) for name, make in chosen)))
