"""Are -inf and poison at the edges what the contract says, by both implementations?

-inf logits are legal, and an impossible utterance has an infinite loss and a gradient of zero. NaN
and +inf poison their own utterance and no other. Lengths and padding: test_edges_of_lengths.py;
sizes and finite masks: test_edges_of_numbers.py.
"""

import jax
import numpy as np
import pytest

from cases import (
    Case,
    Implementation,
    assert_close,
    criterion,
    losses_and_gradients,
    valid_cells,
)
from edges import (
    HEALTHY,
    SCORES,
    SICK,
    B,
    T,
    U,
    V,
    a_case,
    assert_as_enumerated,
    assert_impossible,
    assert_poisoned,
    evaluate,
    options_of,
)
from jax_mbrnnt import (
    lattice_loss,
    rnnt_arcs,
)


@pytest.fixture(params=SCORES)
def case(request: pytest.FixtureRequest) -> Case:
    return a_case(request.param)


# -inf logits.


def test_masked_class_that_no_arc_carries(case: Case, implementation: Implementation) -> None:
    case.logits[..., 0] = -np.inf
    case.labels[0] = 1
    losses, gradients = assert_as_enumerated(case, implementation)
    assert np.all(np.isfinite(losses))
    assert np.all(gradients[..., 0] == 0)


def test_masked_label_at_some_nodes(case: Case, implementation: Implementation) -> None:
    case.logits[0, :2, 0, 0] = -np.inf
    losses, _ = assert_as_enumerated(case, implementation)
    assert np.all(np.isfinite(losses))


def test_masked_blank_at_some_nodes(case: Case, implementation: Implementation) -> None:
    case.logits[:, 1, :, V - 1] = -np.inf
    losses, _ = assert_as_enumerated(case, implementation)
    assert np.all(np.isfinite(losses))


def test_row_of_minus_infinities_has_no_exits(case: Case, implementation: Implementation) -> None:
    case.logits[:, 1, 0] = -np.inf
    losses, gradients = assert_as_enumerated(case, implementation)
    assert np.all(np.isfinite(losses))
    assert np.all(gradients[:, 1, 0] == 0)


def test_arc_log_probs_of_minus_infinity(implementation: Implementation) -> None:
    arc_log_probs = np.full((T, U + 1, 2), -np.inf)
    for step in [(0, 0, 0), (0, 1, 1), (1, 1, 1), (2, 1, 0), (2, 2, 1), (3, 2, 1)]:
        arc_log_probs[step] = -0.5
    loss, gradient = jax.value_and_grad(lattice_loss)(
        arc_log_probs, arcs=rnnt_arcs(), implementation=implementation
    )
    assert_close(loss, 3.0, 1e-14)
    assert_close(gradient, -np.isfinite(arc_log_probs).astype(float), 1e-14)


# Impossible utterances.


def test_label_masked_everywhere_is_impossible(case: Case, implementation: Implementation) -> None:
    case.logits[SICK, ..., case.labels[SICK, 0]] = -np.inf
    assert_impossible(case, implementation)


def test_blanks_masked_at_the_end_are_impossible(
    case: Case, implementation: Implementation
) -> None:
    T, U = case.logit_lengths[SICK], case.label_lengths[SICK]
    case.logits[SICK, :T, U, V - 2 :] = -np.inf
    assert_impossible(case, implementation)


def test_nothing_but_minus_infinities_is_impossible(
    case: Case, implementation: Implementation
) -> None:
    case.logits[SICK] = -np.inf
    assert_impossible(case, implementation)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_impossible_in_every_dtype(case: Case, dtype: str, implementation: Implementation) -> None:
    case.logits[SICK, ..., case.labels[SICK, 0]] = -np.inf
    narrow = case._replace(logits=case.logits.astype(dtype))
    losses, gradients = losses_and_gradients(
        narrow, **options_of(case), implementation=implementation
    )
    np.testing.assert_array_equal(np.isposinf(losses), ~HEALTHY)
    assert np.all(gradients[SICK] == 0)
    assert np.all(np.isfinite(gradients.astype(np.float32)))


def test_lattice_without_an_exit_is_impossible(implementation: Implementation) -> None:
    loss, gradient = jax.value_and_grad(lattice_loss)(
        np.full((T, U + 1, 2), -np.inf), arcs=rnnt_arcs(), implementation=implementation
    )
    assert loss == np.inf
    assert np.all(gradient == 0)


def test_mean_over_an_impossible_utterance(case: Case, implementation: Implementation) -> None:
    """The others' gradients are as if it were not there."""
    well = evaluate(case, implementation, np.full(B, 1 / B))[1]
    case.logits[SICK, ..., case.labels[SICK, 0]] = -np.inf
    sick = evaluate(case, implementation, np.full(B, 1 / B))[1]
    np.testing.assert_array_equal(sick[HEALTHY], well[HEALTHY])


# NaN and +inf.

POISON = pytest.mark.parametrize("value", [np.nan, np.inf])


@POISON
@pytest.mark.parametrize(
    ("t", "u", "v"), [(0, 0, 0), (2, 1, V - 1), (2, 0, 4), (1, 1, 3), (1, 0, -2)]
)
def test_poison_in_the_valid_region(
    case: Case, value: float, t: int, u: int, v: int, implementation: Implementation
) -> None:
    sick = case._replace(logits=case.logits.copy())
    sick.logits[SICK, t, u, v] = value
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])


@POISON
def test_poison_at_a_node_that_no_path_reaches(
    case: Case, value: float, implementation: Implementation
) -> None:
    sick = case._replace(logits=case.logits.copy())
    sick.logits[SICK, 0, 0, [4, 5]] = -np.inf  # no blank leaves (0, 0), so none comes to (1, 0)
    sick.logits[SICK, 1, 0, 0] = value
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])


@POISON
def test_poison_in_an_impossible_utterance(
    case: Case, value: float, implementation: Implementation
) -> None:
    sick = case._replace(logits=case.logits.copy())
    sick.logits[SICK, ..., case.labels[SICK, 0]] = -np.inf
    sick.logits[SICK, 1, 1, 0] = value
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])


@POISON
def test_poison_without_jit(case: Case, value: float, implementation: Implementation) -> None:
    case.logits[SICK, 1, 1, 3] = value
    losses = criterion(**options_of(case), implementation=implementation)(*case)
    np.testing.assert_array_equal(np.isnan(losses), ~HEALTHY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@POISON
def test_poison_in_every_dtype(
    case: Case, value: float, dtype: str, implementation: Implementation
) -> None:
    case.logits[SICK, 2, 1, 0] = value
    narrow = case._replace(logits=case.logits.astype(dtype))
    losses, gradients = losses_and_gradients(
        narrow, **options_of(case), implementation=implementation
    )
    np.testing.assert_array_equal(np.isnan(losses), ~HEALTHY)
    sick_cells = valid_cells(case) & ~HEALTHY[:, None, None]
    np.testing.assert_array_equal(
        np.isnan(gradients.astype(np.float32)),
        np.broadcast_to(sick_cells[..., None], gradients.shape),
    )


def test_poison_survives_clamp_and_cotangents(case: Case, implementation: Implementation) -> None:
    case.logits[SICK, 1, 0, 2] = np.nan
    _, gradients = evaluate(case, implementation, np.array([1.0, -2.0, 3.0]), clamp=0.5)
    assert np.all(np.isnan(gradients[SICK][valid_cells(case)[SICK]]))


@POISON
def test_poisoned_arc_log_probs(value: float, implementation: Implementation) -> None:
    arc_log_probs = np.random.default_rng(31).normal(size=(B, T, U + 1, 2))
    arc_log_probs[SICK, 1, 1, 1] = value
    losses, pullback = jax.vjp(
        lambda x: lattice_loss(x, arcs=rnnt_arcs(), implementation=implementation), arc_log_probs
    )
    gradients = pullback(np.ones(B))[0]
    np.testing.assert_array_equal(np.isnan(losses), ~HEALTHY)
    np.testing.assert_array_equal(np.isnan(gradients).any((1, 2, 3)), ~HEALTHY)
