"""The twin's losses, differentiable in both modes and to any order.

The derivatives are given as the stages compute them, so that they keep the contract at the
edges (an impossible utterance, NaN in padding) where those of the recursion would not.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jax_mbrnnt._mesh import zeros_of_batch
from jax_mbrnnt._reference.lattice import Arcs, lattice, lattice_score
from jax_mbrnnt._reference.rows import arc_log_probs, real_logit_gradients
from jax_mbrnnt._stages import Numbers, Plan, value


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def differentiable_lattice_loss(
    arc_log_probs: jax.Array, logit_lengths: jax.Array, label_lengths: jax.Array, arcs: Arcs
) -> jax.Array:
    """-log-likelihoods; their derivative is minus the arc posteriors."""
    return lattice_score(arc_log_probs, logit_lengths, label_lengths, arcs=arcs)


@differentiable_lattice_loss.defjvp
def _differentiable_lattice_loss_jvp(arcs, primals, tangents):
    losses, posteriors = lattice(*primals, arcs=arcs)
    # Where no path goes the tangent may be anything (that of a log-probability of -inf, say).
    moved = jnp.where(posteriors == 0, 0, tangents[0])
    return losses, -jnp.sum(posteriors * moved, axis=(-3, -2, -1))


def differentiable_loss(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    numbers: Numbers,
    plan: Plan,
) -> jax.Array:
    """Losses; their derivative is the gradient that stage 3 defines."""

    # Keeps the small residuals and makes the gradient, which has the logits' size, when it
    # is asked for.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*_KEPT))
    def remade(logits: jax.Array) -> jax.Array:
        return _loss_with_jvp(logits, labels, logit_lengths, label_lengths, numbers, plan)

    return remade(logits)


_KEPT = ("jax_mbrnnt_log_normalizers", "jax_mbrnnt_posteriors")


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _loss_with_jvp(logits, labels, logit_lengths, label_lengths, numbers, plan):
    operands = logits, labels, logit_lengths, label_lengths
    log_probs, _ = arc_log_probs(*operands, numbers.sigmas, emission=plan.emission)
    return value(lattice_score(log_probs, logit_lengths, label_lengths, arcs=plan.arcs), numbers)


@_loss_with_jvp.defjvp
def _loss_jvp(plan, primals, tangents):
    *operands, numbers = primals
    _, _, *lengths = operands
    log_probs, normalizers = arc_log_probs(*operands, numbers.sigmas, emission=plan.emission)
    losses, posteriors = lattice(log_probs, *lengths, arcs=plan.arcs)
    normalizers, posteriors = map(checkpoint_name, (normalizers, posteriors), _KEPT)
    tangent = loss_tangent(*operands, normalizers, posteriors, numbers, tangents[0], plan)
    return value(losses, numbers), tangent


def loss_tangent(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    log_normalizers: jax.Array,
    posteriors: jax.Array,
    numbers: Numbers,
    tangent: jax.Array,
    plan: Plan,
) -> jax.Array:
    """By how much the losses move when the logits move by `tangent`."""
    gradient = real_logit_gradients(
        logits,
        labels,
        logit_lengths,
        label_lengths,
        log_normalizers,
        posteriors,
        numbers.label_weights,
        numbers.clamps,
        jnp.ones(posteriors.shape[:-3], posteriors.dtype),
        emission=plan.emission,
        clamped=plan.clamped,
    )
    visited = jnp.any(posteriors != 0, axis=-1, keepdims=True)
    moved = jnp.where(visited, tangent.astype(gradient.dtype), 0)
    return jnp.sum(gradient * moved, axis=(-3, -2, -1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(7,))
def nothing_but_a_tangent(
    logits, labels, logit_lengths, label_lengths, log_normalizers, posteriors, numbers, plan
):
    """0 for every utterance, and the losses' derivative by logits that are not all of them."""
    return zeros_of_batch(posteriors, posteriors.ndim - 3, posteriors.dtype)


@nothing_but_a_tangent.defjvp
def _nothing_but_a_tangent_jvp(plan, primals, tangents):
    # The normalizers and posteriors are those of these logits: this tangent is for all of it.
    return nothing_but_a_tangent(*primals, plan), loss_tangent(*primals, tangents[0], plan)
