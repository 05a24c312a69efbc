"""Arc log-probabilities -> losses and posteriors, which are differentiated out of the losses."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mbrnnt._mesh import unify_varying, zeros_of_batch
from jax_mbrnnt._reference.nodes import inside_lattice, iota, iotas, lengths_are_valid
from jax_mbrnnt.arcs import Arc

Arcs = tuple[Arc, ...]


def existing_arcs(
    logit_lengths: jax.Array, label_lengths: jax.Array, num_frames: int, columns: int, arcs: Arcs
) -> jax.Array:
    """`[batch_dims..., T, U+1, A]`: tail and head are nodes; only blanks enter the final one."""
    frames = logit_lengths[..., None, None]
    last = label_lengths[..., None, None]
    t, u = iotas(logit_lengths.ndim, num_frames, columns)
    there = [
        (t < frames - arc.duration) & (u < last)
        if arc.emits
        else (t < frames - arc.duration) | ((t == frames - arc.duration) & (u == last))
        for arc in arcs
    ]
    inside = inside_lattice(logit_lengths, label_lengths, num_frames, columns)
    return jnp.stack(jnp.broadcast_arrays(*there), axis=-1) & inside[..., None]


def _by_head(plane: jax.Array, arc: Arc, diagonals: int) -> jax.Array:
    """Lays `[..., T, U+1]` values of an arc out by the anti-diagonal t + u of its head.

    Returns `[diagonals, ..., U+1]`, -inf where there is no such arc. A row longer by one
    shears the plane: column u moves down by u.
    """
    *batch, num_frames, columns = plane.shape
    nothing = jnp.asarray(-jnp.inf, plane.dtype)
    keep = [(0, 0, 0)] * len(batch)

    plane = jnp.swapaxes(plane, -1, -2)
    moved = int(arc.emits)  # a label arc's head is one column to the right
    right = diagonals + 1 - num_frames - arc.duration
    plane = jax.lax.pad(plane, nothing, [*keep, (moved, -moved, 0), (arc.duration, right, 0)])
    sheared = plane.reshape(*batch, columns * (diagonals + 1))[..., : columns * diagonals]
    return jnp.moveaxis(sheared.reshape(*batch, columns, diagonals), -1, 0)


class _Log(NamedTuple):
    """A logarithm in two numbers: an integer, which has no derivative, and what is left of it.

    Sums of integers are exact in floating point, so the digits that the posteriors need are not
    lost to the logarithm's size.
    """

    whole: jax.Array
    rest: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> _Log:
        whole = jax.lax.stop_gradient(jnp.where(jnp.isfinite(x), jnp.round(x), 0))
        return cls(whole, x - whole)

    def plus(self, other: _Log) -> _Log:
        return _Log(self.whole + other.whole, self.rest + other.rest)


def _log_sum(terms: _Log) -> _Log:
    """log-sum-exp over the first axis whose derivative is finite also where all are -inf."""
    there = jax.lax.stop_gradient(terms.rest) != -jnp.inf
    most = jnp.max(jnp.where(there, terms.whole, -jnp.inf), axis=0)
    most = jnp.where(most == -jnp.inf, 0, most)
    below = jnp.where(there, terms.whole - most[None], 0)
    total = jnp.sum(jnp.exp(terms.rest + below), axis=0)
    log_total = jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)))
    return _Log(most, jnp.zeros_like(most)).plus(_Log.of(log_total))


def is_lost(log_probs: jax.Array) -> jax.Array:
    """What is as good as -inf: the kernels' exponents, to base 2, have to be numbers, too."""
    return log_probs * np.log2(np.e).item() == -jnp.inf


def _log_likelihoods(
    arc_log_probs: jax.Array, logit_lengths: jax.Array, label_lengths: jax.Array, arcs: Arcs
) -> jax.Array:
    """The alphas at the final node, by a scan over the anti-diagonals n = t + u."""
    *batch, num_frames, columns, _ = arc_log_probs.shape
    dtype = arc_log_probs.dtype
    # An arc that would reach beyond the padded frames is never there.
    present = [(a, arc) for a, arc in enumerate(arcs) if arc.duration <= num_frames]
    diagonals = num_frames + columns
    reach = max([1, *(arc.duration + arc.emits for _, arc in present)])

    exists = existing_arcs(logit_lengths, label_lengths, num_frames, columns, arcs)
    weights = jnp.where(exists & ~is_lost(arc_log_probs), arc_log_probs, -jnp.inf)
    by_head = [_by_head(weights[..., a], arc, diagonals) for a, arc in present]
    if by_head:
        steps = jnp.stack(by_head, axis=1)  # [diagonals, arcs, batch..., U+1]
    else:
        steps = jnp.full((diagonals, 0, *batch, columns), -jnp.inf, dtype)

    # Something of every operand, so that the loop's state varies over the mesh as they do and
    # is sharded as they are.
    zero = jnp.where(jnp.any(exists, axis=(-3, -2, -1)), 0, 0).astype(dtype)
    zero = zero + zeros_of_batch(arc_log_probs, len(batch), dtype)
    (u,) = iotas(len(batch), columns)
    # recent[k] holds the alphas of diagonal n - 1 - k. Before the first one: nothing, but
    # for the start node (0, 0), which enters diagonal 0 as if by an arc of weight 1.
    zeros = zero[..., None] + jnp.zeros((*batch, columns), dtype)
    nothing = _Log(zeros, zeros - jnp.inf)
    recent = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (reach, *x.shape)), nothing)
    start = nothing._replace(rest=jnp.where(u == 0, zeros, -jnp.inf))
    at_end = logit_lengths + label_lengths

    def to_the_right(x: jax.Array, edge: float) -> jax.Array:
        return jnp.concatenate([jnp.full_like(x[..., :1], edge), x[..., :-1]], -1)

    def step(carry, inputs):
        recent, log_likelihood = carry
        n, weights_n = inputs
        terms = [start._replace(rest=jnp.where(n == 0, start.rest, -jnp.inf))]
        for i, (_, arc) in enumerate(present):
            tail = jax.tree.map(operator.itemgetter(arc.duration + arc.emits - 1), recent)
            if arc.emits:
                tail = _Log(to_the_right(tail.whole, 0), to_the_right(tail.rest, -jnp.inf))
            terms.append(tail.plus(_Log.of(weights_n[i])))
        alphas = _log_sum(jax.tree.map(lambda *x: jnp.stack(x), *terms))

        last = jnp.clip(label_lengths, 0)[..., None]
        final = (jnp.take_along_axis(x, last, axis=-1)[..., 0] for x in alphas)
        log_likelihood = jnp.where(n == at_end, sum(final), log_likelihood)
        recent = jax.tree.map(lambda x, r: jnp.concatenate([x[None], r[:-1]]), alphas, recent)
        return (recent, log_likelihood), None

    carry = (recent, zero - jnp.inf)
    (_, log_likelihood), _ = jax.lax.scan(step, carry, (iota(diagonals), steps))
    # Any arc that is there poisons, also where no path to the final node comes by.
    poisoned = jnp.any(poisoned_arcs(arc_log_probs, exists), axis=(-3, -2, -1))
    return jnp.where(poisoned, jnp.nan, log_likelihood)


def poisoned_arcs(arc_log_probs: jax.Array, exists: jax.Array) -> jax.Array:
    return exists & (jnp.isnan(arc_log_probs) | (arc_log_probs == jnp.inf))


def _losses(
    log_likelihoods: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    shape: Sequence[int],
) -> jax.Array:
    """NaN for an utterance with a length out of range or an infinite likelihood; +0, never -0."""
    *_, num_frames, columns, _ = shape
    valid = lengths_are_valid(logit_lengths, label_lengths, num_frames, columns)
    losses = jnp.where(log_likelihoods == 0, 0, -log_likelihoods)
    losses = jnp.where(is_lost(log_likelihoods), jnp.inf, losses)
    return jnp.where(valid & (losses != -jnp.inf), losses, jnp.nan)


def lattice_score(
    arc_log_probs: jax.Array, logit_lengths: jax.Array, label_lengths: jax.Array, *, arcs: Arcs
) -> jax.Array:
    """Stage 2 for evaluation: losses `[batch_dims...]` = -log-likelihoods."""
    log_likelihoods = _log_likelihoods(arc_log_probs, logit_lengths, label_lengths, arcs)
    return _losses(log_likelihoods, logit_lengths, label_lengths, arc_log_probs.shape)


def lattice(
    arc_log_probs: jax.Array, logit_lengths: jax.Array, label_lengths: jax.Array, *, arcs: Arcs
) -> tuple[jax.Array, jax.Array]:
    """Stage 2: losses and arc posteriors, the derivative of the log-likelihood."""
    # Every device's own posteriors: from an operand that is the same on all devices of a
    # `shard_map` the pull-back would sum them.
    arc_log_probs, logit_lengths, label_lengths = unify_varying(
        arc_log_probs, logit_lengths, label_lengths
    )
    log_likelihoods, pullback = jax.vjp(
        lambda x: _log_likelihoods(x, logit_lengths, label_lengths, arcs), arc_log_probs
    )
    ones, _ = unify_varying(jnp.ones_like(log_likelihoods), log_likelihoods)
    (posteriors,) = pullback(ones)
    shape = arc_log_probs.shape
    losses = _losses(log_likelihoods, logit_lengths, label_lengths, shape)
    valid = lengths_are_valid(logit_lengths, label_lengths, *shape[-3:-1])
    inside = inside_lattice(logit_lengths, label_lengths, *shape[-3:-1]) | ~valid[..., None, None]
    nothing = jnp.where(jnp.isnan(losses), jnp.nan, 0)[..., None, None]
    nothing = jnp.where(inside, nothing, 0)[..., None]
    possible = jnp.isfinite(losses)[..., None, None, None]
    return losses, jnp.where(possible, posteriors, nothing)
