"""Are the arc tables and the arc log-probabilities what the lattice is said to be made of?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import (
    Implementation,
    assert_close,
    criterion,
    losses_and_gradients_of,
    random_case,
    valid_cells,
)
from enumeration import log_softmax
from jax_mbrnnt import (
    Arc,
    MultiblankRNNT,
    lattice_loss,
    multiblank_arcs,
    rnnt_arcs,
    tdt_arcs,
)

DURATIONS, BLANK, SIGMA = (3, 2), 5, 0.1
BLANKS = (5, 4, 3)


def test_rnnt_arcs() -> None:
    assert rnnt_arcs() == (Arc(duration=0, emits=True), Arc(duration=1, emits=False))


def test_multiblank_arcs() -> None:
    assert multiblank_arcs((4, 2)) == (*rnnt_arcs(), Arc(4, False), Arc(2, False))
    assert multiblank_arcs(()) == rnnt_arcs()


def test_tdt_arcs() -> None:
    labels = (Arc(0, True), Arc(2, True), Arc(1, True))
    assert tdt_arcs((0, 2, 1)) == (*labels, Arc(2, False), Arc(1, False))


def test_arc_log_probs_are_gathered_log_softmax_less_sigma(implementation: Implementation) -> None:
    case = random_case(2, blanks=BLANKS)
    actual = MultiblankRNNT(
        blank_id=BLANK,
        big_blank_durations=DURATIONS,
        sigma=SIGMA,
        implementation=implementation,
    ).arc_log_probs(*case)
    log_probs = log_softmax(case.logits) - SIGMA
    expected = np.full((*case.logits.shape[:-1], 4), -np.inf)
    for b, t, u in zip(*np.nonzero(valid_cells(case)), strict=True):
        expected[b, t, u, 1:] = log_probs[b, t, u, [BLANK, BLANK - 1, BLANK - 2]]
        if u < case.label_lengths[b]:
            expected[b, t, u, 0] = log_probs[b, t, u, case.labels[b, u]]
    assert_close(actual, expected, 1e-13)


def test_arc_log_probs_are_differentiable(implementation: Implementation) -> None:
    case = random_case(3, blanks=BLANKS)
    model = MultiblankRNNT(
        blank_id=BLANK, big_blank_durations=DURATIONS, implementation=implementation
    )
    cotangents = jnp.asarray(np.random.default_rng(4).normal(size=(*case.logits.shape[:-1], 4)))
    there = jnp.isfinite(model.arc_log_probs(*case))

    def objective(logits: jax.Array) -> jax.Array:
        arcs = model.arc_log_probs(logits, *case[1:])
        return jnp.sum(jnp.where(there, arcs * cotangents, 0))

    def naive(logits: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits)
        labels = jnp.pad(jnp.asarray(case.labels), ((0, 0), (0, 1)))[:, None, :, None]
        blanks = log_probs[..., BLANK - 2 : BLANK + 1][..., ::-1]
        emit = jnp.take_along_axis(log_probs, jnp.broadcast_to(labels, there[..., :1].shape), -1)
        return jnp.sum(jnp.where(there, jnp.concatenate([emit, blanks], -1) * cotangents, 0))

    logits = jnp.asarray(case.logits)
    assert_close(jax.jit(jax.grad(objective))(logits), jax.grad(naive)(logits), 1e-12)


def test_cotangents_that_cancel(implementation: Implementation) -> None:
    """Their sum at a node is 0; neither is."""
    case = random_case(6, (), 1, 1, 4, ragged=False)
    model = MultiblankRNNT(implementation=implementation)

    def objective(logits: jax.Array) -> jax.Array:
        label, blank = model.arc_log_probs(logits, *case[1:])[0, 0]
        return label - blank

    expected = np.zeros((1, 2, 4))
    expected[0, 0, case.labels[0]], expected[0, 0, 3] = 1, -1
    assert_close(jax.jit(jax.grad(objective))(case.logits), expected, 1e-15)


@pytest.mark.parametrize(
    "options", [{"big_blank_durations": DURATIONS}, {"durations": (2, 0, 1)}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_is_the_lattice_over_the_arc_log_probs(
    dtype: str, options: dict[str, Any], implementation: Implementation
) -> None:
    case = random_case(5, dtype=dtype)
    model = criterion(**options, sigma=SIGMA, implementation=implementation)

    def composed(logits: jax.Array, *rest: jax.Array) -> jax.Array:
        arc_log_probs = model.arc_log_probs(logits, *rest)
        return lattice_loss(
            arc_log_probs, *rest[1:], arcs=model.arcs, implementation=implementation
        )

    losses, gradients = losses_and_gradients_of(model, case)
    composed_losses, composed_gradients = losses_and_gradients_of(composed, case)
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    assert_close(composed_losses, losses, tolerance)
    assert_close(composed_gradients, gradients, tolerance)
