"""Does a NaN or a +inf at any arc that is there poison its utterance, and at no other arc?

Also where no path comes by: at nodes that none reaches, and at nodes from which none leads on to
the end. Of a TDT without a duration of 0 or 1 there are many of those.
"""

import jax
import numpy as np
import pytest

from cases import Array, Implementation
from jax_mbrnnt import TDT, Arc, lattice_loss, multiblank_arcs, rnnt_arcs, tdt_arcs

TABLES = {
    "RNN-T": rnnt_arcs(),
    "multi-blank": multiblank_arcs((2, 4)),
    "multi-blank, long": multiblank_arcs((2, 11)),
    "TDT": tdt_arcs((0, 1, 2)),
    "TDT without 0": tdt_arcs((1, 2)),
    "TDT without 0 and 1": tdt_arcs((3, 2)),
    "TDT, long": tdt_arcs((2, 9)),
    "no blank": (Arc(0, True), Arc(2, True)),
}


def arcs_that_are_there(table: tuple[Arc, ...], T: int, U: int) -> Array:
    """`[T, U+1, A]`: does it lead to a node? The final one, (T, U), is entered by blanks alone."""
    there = np.zeros((T, U + 1, len(table)), bool)
    for t, u, a in np.ndindex(*there.shape):
        arc = table[a]
        to = t + arc.duration, u + arc.emits
        there[t, u, a] = (to[0] < T and to[1] <= U) or (to == (T, U) and not arc.emits)
    return there


def losses_and_posteriors(
    arc_log_probs: Array, table: tuple[Arc, ...], implementation: Implementation
) -> tuple[Array, Array]:
    losses, pullback = jax.vjp(
        lambda x: lattice_loss(x, arcs=table, implementation=implementation), arc_log_probs
    )
    alone = lattice_loss(arc_log_probs, arcs=table, implementation=implementation)
    np.testing.assert_array_equal(np.isnan(alone), np.isnan(losses))  # a kernel of its own
    return np.asarray(losses), -np.asarray(pullback(np.ones_like(losses))[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("T", "U"), [(7, 2), (9, 40)])
def test_any_arc_that_is_there_poisons(
    T: int, U: int, name: str, dtype: str, implementation: Implementation
) -> None:
    table, rng = TABLES[name], np.random.default_rng(T)
    there = arcs_that_are_there(table, T, U)
    of_arcs = np.argwhere(there)
    # Some at random, and some of the last frames, which often lead nowhere: one an utterance.
    of_arcs = np.concatenate([rng.choice(of_arcs, 12), rng.choice(of_arcs[-3 * len(table) :], 12)])
    well = (rng.normal(size=there.shape) - 1).astype(dtype)
    sick = np.tile(well, (len(of_arcs) + 1, 1, 1, 1))  # the last one is well
    sick[np.arange(len(of_arcs)), *of_arcs.T] = rng.choice([np.nan, np.inf], len(of_arcs))

    losses, posteriors = losses_and_posteriors(sick, table, implementation)

    np.testing.assert_array_equal(np.isnan(losses), np.arange(len(losses)) < len(of_arcs))
    assert np.all(np.isnan(posteriors[:-1, there]))
    assert not np.any(np.isnan(posteriors[-1]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TABLES)
def test_arcs_that_are_not_there_do_not(
    name: str, dtype: str, implementation: Implementation
) -> None:
    table, T, U = TABLES[name], 7, 40
    there = arcs_that_are_there(table, T, U)
    well = (np.random.default_rng(1).normal(size=there.shape) - 1).astype(dtype)
    both = np.stack([well, np.where(there, well, np.nan)])

    losses, posteriors = losses_and_posteriors(both, table, implementation)

    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(posteriors[0], posteriors[1])
    assert np.all(posteriors[:, ~there] == 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_nodes_without_arcs_are_padding(
    dtype: str, implementation: Implementation
) -> None:
    """And those of all others are not."""
    T, U, durations = 6, 2, (3, 2)
    model = TDT(durations=durations, implementation=implementation)
    has_arcs = arcs_that_are_there(model.arcs, T, U).any(axis=-1)
    nodes = np.argwhere(np.ones_like(has_arcs))
    well = np.random.default_rng(2).normal(size=(T, U + 1, 7)).astype(dtype)
    sick = np.tile(well, (len(nodes) + 1, 1, 1, 1))
    sick[np.arange(len(nodes)), *nodes.T, 1] = np.nan
    labels = np.tile(np.array([0, 1], np.int32), (len(sick), 1))

    losses, gradients = model.cost_and_grad(sick, labels)

    losses, gradients = np.asarray(losses), np.asarray(gradients)
    for (t, u), loss, gradient in zip(nodes, losses, gradients, strict=False):
        if has_arcs[t, u]:
            assert np.isnan(loss)
            assert np.all(np.isnan(gradient[has_arcs]))
        else:
            assert loss == losses[-1]
            np.testing.assert_array_equal(gradient, gradients[-1])
    assert np.all(gradients[-1][~has_arcs] == 0)
