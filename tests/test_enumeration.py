"""Do both implementations sum over exactly the paths of the lattice?"""

from typing import Any

import numpy as np
import pytest

from cases import (
    Case,
    Implementation,
    assert_close,
    compiled_lattice,
    criterion,
    losses_and_gradients,
    random_case,
)
from enumeration import lattice, paths, transducers
from jax_mbrnnt import Arc, multiblank_arcs, rnnt_arcs, tdt_arcs
from test_oracle import MULTIBLANK, RNNT, TDT, Fields, name, operands, options

T, U, V = 4, 3, 7


def every_length(case: Case) -> Case:
    """Gives a batch of T * (U + 1) utterances every combination of lengths."""
    t, u = np.indices((T, U + 1), dtype=np.int32)
    return case._replace(logit_lengths=1 + t.ravel(), label_lengths=u.ravel())


def test_paths_of_a_lattice_small_enough_to_draw() -> None:
    label, blank, big = 0, 1, 2
    assert [[arc for _, _, arc in path] for path in paths(2, 1, multiblank_arcs((2,)))] == [
        [label, blank, blank],
        [label, big],
        [blank, label, blank],
    ]


@pytest.mark.parametrize("case", [*MULTIBLANK[:10:3], *RNNT[1:7:2], *TDT[1:4]], ids=name)
def test_enumeration_gives_the_oracle(case: Fields) -> None:
    losses, gradients = transducers(*operands(case, "float64"), **options(case))
    assert_close(losses, case["costs"], 1e-12)
    assert_close(gradients, case["grads"], 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blank_id": 0, "fastemit_lambda": 0.5},
        {"big_blank_durations": (2,), "sigma": 0.05},
        {"big_blank_durations": (3, 2), "blank_id": 4, "fastemit_lambda": 0.01, "clamp": 0.1},
        {"big_blank_durations": (2, 4, 8), "sigma": -0.1, "blank_id": 3},
        {"big_blank_durations": (3, 2), "big_blank_ids": (-1, 2), "blank_id": 0},
        {"durations": (0, 1), "sigma": 0.05},
        {"durations": (2, 0, 1), "blank_id": 0, "fastemit_lambda": 0.5, "clamp": 0.1},
        {"durations": (3, 2), "blank_id": 1},  # no label without a frame, no frame by itself
        {"durations": (1,), "sigma": -0.1},
    ],
    ids=str,
)
def test_loss_at_every_length(options: dict[str, Any], implementation: Implementation) -> None:
    emission = criterion(**options).emission(V)
    no_labels = (*emission.blanks, *range(emission.num_labels, V))
    case = every_length(random_case(0, (T * (U + 1),), T, U, V, blanks=no_labels))
    expected_losses, expected_gradients = transducers(*case, **options)
    losses, gradients = losses_and_gradients(case, implementation=implementation, **options)
    assert_close(losses, expected_losses, 1e-12)
    assert_close(gradients, expected_gradients, 1e-12)


@pytest.mark.parametrize(
    "arcs",
    [
        rnnt_arcs(),
        multiblank_arcs((2, 3)),
        tdt_arcs((0, 1, 2)),
        (Arc(3, False), Arc(1, True), Arc(1, False), Arc(2, True)),
        (Arc(1, False), Arc(1, False), Arc(0, True), Arc(0, True)),
        (Arc(1, False),),
    ],
    ids=lambda arcs: " ".join(f"{arc.duration}{'e' if arc.emits else 'b'}" for arc in arcs),
)
def test_lattice_over_any_arc_table(arcs: tuple[Arc, ...], implementation: Implementation) -> None:
    shape = (T * (U + 1), T, U + 1, len(arcs))
    # Weights need not be normalised, and arcs that are not there carry numbers, too.
    arc_log_probs = np.random.default_rng(1).normal(size=shape)
    lengths = every_length(random_case(0, shape[:1]))[2:]

    losses, gradients, posteriors = compiled_lattice(arcs, implementation)(arc_log_probs, *lengths)
    expected = [
        lattice(arc_log_probs[b], int(lengths[0][b]), int(lengths[1][b]), arcs)
        for b in range(shape[0])
    ]
    assert_close(losses, [-log_likelihood for log_likelihood, _ in expected], 1e-12)
    assert_close(posteriors, [posteriors for _, posteriors in expected], 1e-12)
    assert_close(gradients, -posteriors, 1e-15)
