"""How much of the lattice the CUDA sweep does exactly, which is slow, and how well it does it.

Runs the CUDA sources on the CPU (tests/simt/), over arcs made by the recipes below and, if asked,
those of trained recognisers, beside the pure-JAX lattice in float64. Needs no GPU, takes minutes.
"""

import argparse
import ctypes
import functools
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

import cases
import simt_module
from jax_mbrnnt import Arc, multiblank_arcs, rnnt_arcs, tdt_arcs

from .apart import ROOT
from .results import Report, table

Weights = NDArray[np.float32]
MULTIBLANK = multiblank_arcs((2, 4, 8))
TDT = tdt_arcs(range(9))
MEDIUM, LONG = (400, 101), (1500, 301)  # T, U+1
SIGMA = 0.05
EXACT_TAKES = 60  # times a fast chunk, by the model in NOTES.md for multi-blank's arcs


class Lattices(NamedTuple):
    arc_log_probs: Weights  # [B, T, U+1, A]
    arcs: Sequence[Arc]
    logit_lengths: NDArray[np.int32]  # [B]
    label_lengths: NDArray[np.int32]  # [B]

    @classmethod
    def full(cls, arc_log_probs: Weights, arcs: Sequence[Arc]) -> "Lattices":
        """One utterance, of `[T, U+1, A]`."""
        frames, columns, _ = arc_log_probs.shape
        lengths = (np.array([n], np.int32) for n in (frames, columns - 1))
        return cls(arc_log_probs[None], arcs, *lengths)

    def outside(self) -> float:
        """The share of weights that no chunk may have but an exact one (cuda/sweep.cu)."""
        x = self.arc_log_probs
        return float(np.mean(((x < -80) | (x > 13)) & (x != -np.inf)))


# ---- recipes ----------------------------------------------------------------------------


def untrained(num_classes: int, shape: tuple[int, int], arcs: Sequence[Arc]) -> Weights:
    """The log-softmax of standard normal logits at as many classes as there are arcs."""
    rng = np.random.default_rng(0)
    weights = np.empty((*shape, len(arcs)), np.float32)
    for frame in weights:
        logits = rng.standard_normal((len(frame), num_classes), np.float32)
        frame[:] = logits[:, : len(arcs)] - np.log(np.exp(logits).sum(-1, keepdims=True)) - SIGMA
    return weights


def alignment(
    rng: np.random.Generator, shape: tuple[int, int], arcs: Sequence[Arc]
) -> Iterator[tuple[int, int, int]]:
    """The arcs `(t, u, a)` of one path: labels at random, between them the longest that fit."""
    frames, columns = shape
    label_frames = [*np.sort(rng.integers(frames, size=columns - 1)), frames]

    def longest(emits: bool, most: int) -> int:
        fitting = (a for a, arc in enumerate(arcs) if arc.emits == emits and arc.duration <= most)
        return max(fitting, key=lambda a: arcs[a].duration)

    t = 0
    for u, label_frame in enumerate(label_frames):
        while t < label_frame:
            a = longest(False, label_frame - t)
            yield t, u, a
            t += arcs[a].duration
        if u + 1 < columns:
            # The path's last arc is a blank.
            a = longest(True, min(label_frames[u + 1], frames - 1) - t)
            yield t, u, a
            t += arcs[a].duration


def certain(others: float, shape: tuple[int, int], arcs: Sequence[Arc]) -> Weights:
    """A path of arcs of more than 0.9 each; every other one has e^-others, or half of that."""
    rng = np.random.default_rng(0)
    weights = -others - rng.uniform(0, np.log(2), (*shape, len(arcs)))
    for place in alignment(rng, shape, arcs):
        weights[place] = np.log(rng.uniform(0.9, 1.0))
    return weights.astype(np.float32)


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


# ---- the sweep and its reference ----------------------------------------------------------


@functools.cache
def library() -> ctypes.CDLL:
    """Compiled as tests/simt_module.py does, but not watched for races, which takes long."""
    build = ROOT / "build" / "exact_chunks"
    stem = pathlib.Path(__file__).with_suffix("")
    lattice = [ROOT / "cuda" / f"{name}.cu" for name in ("lattice", "sweep", "sweep_simple")]
    sources = [*lattice, *simt_module.EMULATOR, stem.with_suffix(".cc")]
    objects = simt_module.compile_all(sources, build, "-O2", "-fvisibility=default")
    target = build / "exact_chunks.so"
    command = [simt_module.compiler(), "-shared", "-pthread", *objects, "-o", target]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


class Counts(ctypes.Structure):
    """As exact_chunks.cc has them."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("chunks", "exact")),
        *((name, ctypes.c_double) for name in ("steps", "steps_with_exact")),
    )


class Swept(NamedTuple):
    losses: NDArray[np.float32]
    posteriors: Weights
    counts: Counts


def sweep(lattices: Lattices) -> Swept:
    weights = np.ascontiguousarray(lattices.arc_log_probs, np.float32)
    arcs = np.asarray(lattices.arcs, np.int32)
    losses, posteriors = np.empty(len(weights), np.float32), np.empty_like(weights)
    lengths = [np.ascontiguousarray(x, np.int32) for x in lattices[2:]]
    counts = Counts()

    def pointer(x: NDArray[Any]) -> ctypes.c_void_p:
        return ctypes.c_void_p(x.ctypes.data)

    failed = library().exact_chunks(
        *map(ctypes.c_int64, weights.shape[:3]),
        *map(pointer, lengths),
        ctypes.c_int32(len(arcs)),
        *map(pointer, (arcs, weights, losses, posteriors)),
        ctypes.c_double(EXACT_TAKES),
        ctypes.byref(counts),
    )
    assert not failed, "the fast sweep did not run"
    return Swept(losses, posteriors, counts)


def errors(lattices: Lattices, swept: Swept) -> tuple[float, float]:
    """The largest of a loss, relative if that is above 1, and of a posterior."""
    run = cases.compiled_lattice(tuple(lattices.arcs), "xla")
    weights = lattices.arc_log_probs.astype(np.float64)
    losses, _, posteriors = map(np.asarray, run(weights, *lattices[2:]))
    assert losses.dtype == np.float64
    of_losses = np.abs(swept.losses - losses) / np.maximum(1, np.abs(losses))
    return float(of_losses.max()), float(np.abs(swept.posteriors - posteriors).max())


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
