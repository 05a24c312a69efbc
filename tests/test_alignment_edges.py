"""Does the alignment keep the contract at the edges, in the kernels and in their twin?

An utterance that no path fits has none, nor has a poisoned one; the others are as they were.
"""

from typing import Any

import jax
import numpy as np
import pytest

from cases import Array, Implementation, compiled, criterion, random_case
from jax_mbrnnt import Alignment, Arc, lattice_loss, rnnt_arcs, tdt_arcs, viterbi_alignment
from test_alignment import TRANSDUCERS, assert_equal, compiled_alignment

B, T, U = 3, 4, 3
SICK = 1  # the utterance that something is wrong with
HEALTHY = np.arange(B) != SICK
LENGTHS = np.array([4, 3, 4], np.int32), np.array([3, 2, 0], np.int32)
TDT = tdt_arcs((0, 1, 3))


@pytest.fixture
def arc_log_probs() -> Array:
    return np.random.default_rng(5).normal(size=(B, T, U + 1, len(TDT))).astype(np.float32)


def align(x: Array, implementation: Implementation, lengths: Any = LENGTHS) -> Alignment:
    found: Alignment = compiled_alignment(TDT, implementation)(x, *lengths)
    return found


def assert_no_path(found: Alignment, like: Alignment, log_prob: float) -> None:
    """Of the sick utterance, and the others as they were."""
    for field, healthy in zip(found, like, strict=True):
        np.testing.assert_array_equal(field[HEALTHY], healthy[HEALTHY])
    np.testing.assert_equal(found.log_probs[SICK].item(), log_prob)
    for field in (found.frames, found.durations, found.arcs):
        assert np.all(field[SICK] == -1)
    assert np.all(found.label_log_probs[SICK] == 0)


def arcs_that_are_there() -> list[tuple[int, int, int]]:
    num_frames, num_labels = (int(length[SICK]) for length in LENGTHS)

    def is_there(t: int, u: int, arc: Arc) -> bool:
        if t >= num_frames or u > num_labels:
            return False
        if arc.emits:
            return u < num_labels and t + arc.duration < num_frames
        return t + arc.duration < num_frames + (u == num_labels)

    return [
        place for place in np.ndindex(T, U + 1, len(TDT)) if is_there(*place[:2], TDT[place[2]])
    ]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_at_any_arc(
    arc_log_probs: Array, poison: float, implementation: Implementation
) -> None:
    healthy = align(arc_log_probs, implementation)
    for place in arcs_that_are_there():
        sick = arc_log_probs.copy()
        sick[SICK][place] = poison
        assert_no_path(align(sick, implementation), healthy, np.nan)


def test_nobody_looks_where_no_arc_is(arc_log_probs: Array, implementation: Implementation) -> None:
    sick = arc_log_probs.copy()
    is_there = np.zeros(sick[SICK].shape, bool)
    is_there[tuple(np.transpose(arcs_that_are_there()))] = True
    sick[SICK] = np.where(is_there, sick[SICK], np.nan)
    assert_equal(align(sick, implementation), align(arc_log_probs, implementation), 0)


@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min, -2e38])
def test_impossible_utterances(
    arc_log_probs: Array, mask: float, implementation: Implementation
) -> None:
    """Its arcs are masked, as good as that, or any two of them are."""
    healthy = align(arc_log_probs, implementation)
    sick = arc_log_probs.copy()
    sick[SICK] = mask
    found = align(sick, implementation)
    losses = lattice_loss(sick, *LENGTHS, arcs=TDT, implementation=implementation)
    assert losses[SICK] == np.inf
    assert_no_path(found, healthy, -np.inf)


@pytest.mark.parametrize("which", [0, 1], ids=["logit_lengths", "label_lengths"])
@pytest.mark.parametrize("length", [-1, 5, 2**31 - 1, -(2**31)])
def test_lengths_out_of_range(
    arc_log_probs: Array, which: int, length: int, implementation: Implementation
) -> None:
    lengths = [length.copy() for length in LENGTHS]
    lengths[which][SICK] = length
    healthy = align(arc_log_probs, implementation)
    assert_no_path(align(arc_log_probs, implementation, lengths), healthy, np.nan)


@pytest.mark.parametrize(("num_labels", "log_prob"), [(0, 0.0), (1, -np.inf)])
def test_utterances_without_frames(
    arc_log_probs: Array, num_labels: int, log_prob: float, implementation: Implementation
) -> None:
    lengths = [length.copy() for length in LENGTHS]
    lengths[0][SICK], lengths[1][SICK] = 0, num_labels
    healthy = align(arc_log_probs, implementation)
    assert_no_path(align(arc_log_probs, implementation, lengths), healthy, log_prob)


def test_labels_out_of_range(implementation: Implementation) -> None:
    case = random_case(6, (B,), T, U, 8, ragged=False)
    sick = case._replace(labels=case.labels.copy())
    sick.labels[SICK, 2] = 8
    run = compiled("alignment", **TRANSDUCERS["multiblank"], implementation=implementation)
    found, healthy = (jax.tree.map(np.asarray, run(*x)) for x in (sick, case))
    assert_no_path(found, healthy, np.nan)


@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (2, 0, 3, 2), (2, 0, 1, 2), (2, 3, 1, 2)], ids=str)
def test_axes_of_no_size(shape: tuple[int, ...], implementation: Implementation) -> None:
    found = viterbi_alignment(np.zeros(shape), arcs=rnnt_arcs(), implementation=implementation)
    num_batch, num_frames, columns, _ = shape
    labels = num_batch, columns - 1
    path = np.full((num_batch, num_frames + columns - 1), 1 if columns == 1 else -1)
    log_probs = np.full(num_batch, 0.0 if columns == 1 else -np.inf)
    none = np.full(labels, -1)
    assert_equal(found, Alignment(none, none, np.zeros(labels), path, log_probs))


def test_errors() -> None:
    with pytest.raises(TypeError, match="arc_log_probs: expected dtype float32 or float64"):
        viterbi_alignment(np.zeros((4, 3, 2), np.float16), arcs=rnnt_arcs())
    with pytest.raises(ValueError, match="arc_log_probs: expected a last axis of 2"):
        viterbi_alignment(np.zeros((4, 3, 3)), arcs=rnnt_arcs())
    with pytest.raises(ValueError, match=r"label_lengths\[1\]: expected a value in \[0, 3\)"):
        viterbi_alignment(np.zeros((2, 4, 3, 2)), label_lengths=[1, 3], arcs=rnnt_arcs())
    with pytest.raises(ValueError, match=r"labels\[1\]: expected none of the blanks' classes"):
        criterion().alignment(np.zeros((4, 3, 5)), [1, 4])
