"""The CUDA sweep of the lattice, executed on the CPU: how many of its chunks it does exactly.

An exact chunk is slow (cuda/exact_chunk.h). `python -m benchmarks exact_chunks` tells of more arcs.
"""

import ctypes
import functools
import pathlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import cases
import simt_module
from jax_mbrnnt import Arc

Weights = NDArray[np.float32]
SIGMA = 0.05
EXACT_TAKES = 60  # times a fast chunk, by the model in benchmarks/NOTES.md for multi-blank's arcs
SOURCE = pathlib.Path(__file__).parent / "native" / "exact_chunks.cc"


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


# ---- what is swept ------------------------------------------------------------------------


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


# ---- the sweep and its reference ----------------------------------------------------------


@functools.cache
def library() -> ctypes.CDLL:
    """Compiled as simt_module.py does, but not watched for races, which takes long."""
    root = simt_module.ROOT
    build = root / "build" / "exact_chunks"
    lattice = [root / "cuda" / f"{name}.cu" for name in ("lattice", "sweep", "sweep_simple")]
    sources = [*lattice, *simt_module.EMULATOR, SOURCE]
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
