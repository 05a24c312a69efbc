"""Arc log-probabilities -> the most probable path, by a scan backwards and one that follows it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_mbrnnt._mesh import unify_varying, zeros_of_batch
from jax_mbrnnt._reference.lattice import Arcs, existing_arcs, is_lost, poisoned_arcs
from jax_mbrnnt._reference.nodes import iota, iotas, lengths_are_valid


class _Sum(NamedTuple):
    """A sum of log-probabilities in two numbers: the sum, and what it lost to its roundings.

    So is it exact where the kernels' one number of twice the size is, and paths that are equally
    good in truth are that here. (There is no float64 on a TPU, and mostly none in JAX.)
    """

    high: jax.Array
    low: jax.Array

    def plus(self, x: jax.Array) -> _Sum:
        """Knuth's TwoSum, then the sum's parts set apart anew. -inf and NaN have no low part."""
        total = self.high + x
        finite = jnp.isfinite(total)
        high, x, total_ = (jnp.where(finite, y, 0) for y in (self.high, x, total))
        of_x = total_ - high
        low = self.low + ((high - (total_ - of_x)) + (x - of_x))
        high = total_ + low
        return _Sum(jnp.where(finite, high, total), jnp.where(finite, low - (high - total_), 0))

    def is_above(self, other: _Sum) -> jax.Array:
        low_is_above = (self.high == other.high) & (self.low > other.low)
        return (self.high > other.high) | low_is_above


def _by_tail(plane: jax.Array, fill: float) -> jax.Array:
    """Lays `[..., T, U+1]` out by anti-diagonals t + u: `[T + U + 1, ..., U+1]`."""
    *batch, num_frames, columns = plane.shape
    diagonals = num_frames + columns
    plane = jnp.swapaxes(plane, -1, -2)
    # Rows that are longer by one shear the plane: column u moves down by u.
    plane = jnp.pad(plane, [(0, 0)] * (len(batch) + 1) + [(0, columns + 1)], constant_values=fill)
    sheared = plane.reshape(*batch, columns * (diagonals + 1))[..., : columns * diagonals]
    return jnp.moveaxis(sheared.reshape(*batch, columns, diagonals), -1, 0)


def _best_arcs(
    weights: jax.Array, logit_lengths: jax.Array, label_lengths: jax.Array, arcs: Arcs
) -> tuple[jax.Array, jax.Array]:
    """The first best arc of every node, `[T + U + 1, batch_dims..., U+1]` by anti-diagonals, and
    the best path's log-probability.
    """
    *batch, num_frames, columns, _ = weights.shape
    # An arc that would reach beyond the padded frames is never there.
    present = [(a, arc) for a, arc in enumerate(arcs) if arc.duration <= num_frames]
    reach = max([1, *(arc.duration + arc.emits for _, arc in present)])
    steps = [_by_tail(weights[..., a], -jnp.inf) for a, _ in present]

    zeros = zeros_of_batch(weights, len(batch), weights.dtype)[..., None]
    zeros = zeros + jnp.zeros((*batch, columns), weights.dtype)
    nothing = _Sum(zeros - jnp.inf, zeros)
    (u,) = iotas(len(batch), columns)
    is_last = u == label_lengths[..., None]
    at_end = (logit_lengths + label_lengths)[..., None]

    def to_the_left(x: jax.Array, edge: float) -> jax.Array:
        return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], edge)], -1)

    def step(recent, inputs):
        """`recent[k]` holds the betas of anti-diagonal n + 1 + k."""
        n, steps_n = inputs
        is_final = is_last & (n == at_end)
        best = _Sum(jnp.where(is_final, 0, nothing.high), nothing.low)
        best_arc = jnp.where(is_final, 0, 0).astype(jnp.int32)
        for i, (a, arc) in enumerate(present):
            head = jax.tree.map(lambda x: x[arc.duration + arc.emits - 1], recent)  # noqa: B023
            if arc.emits:
                head = _Sum(to_the_left(head.high, -jnp.inf), to_the_left(head.low, 0))
            beta = head.plus(steps_n[i])
            is_best = beta.is_above(best)
            best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), beta, best)  # noqa: B023
            best_arc = jnp.where(is_best, a, best_arc)
        recent = jax.tree.map(lambda x, r: jnp.concatenate([x[None], r[:-1]]), best, recent)
        return recent, best_arc

    recent = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (reach, *x.shape)), nothing)
    diagonals = iota(num_frames + columns)
    recent, best_arcs = jax.lax.scan(step, recent, (diagonals, tuple(steps)), reverse=True)
    return best_arcs, (recent.high + recent.low)[0, ..., 0]


def of_arcs(chosen: jax.Array, values: Sequence[int]) -> jax.Array:
    """The value of the arcs chosen, 0 where none (-1) is."""
    of_each = [jnp.where(chosen == a, value, 0) for a, value in enumerate(values)]
    return functools.reduce(operator.add, of_each).astype(jnp.int32)


class _Trace(NamedTuple):
    """Where each utterance's path is, and what it met on its way there."""

    t: jax.Array  # [batch_dims...]
    u: jax.Array
    frames: jax.Array  # [batch_dims..., U]
    label_arcs: jax.Array  # [batch_dims..., U]


def _follow(
    best_arcs: jax.Array, ends: jax.Array, num_labels: int, arcs: Arcs
) -> tuple[_Trace, jax.Array]:
    """From the first node to frame `ends` `[batch_dims...]`. The paths, too: `[..., T + U]`."""
    diagonals, *batch, columns = best_arcs.shape
    best_arcs = jnp.moveaxis(best_arcs, 0, -2).reshape(*batch, diagonals * columns)
    (label,) = iotas(len(batch), num_labels)

    def step(at: _Trace, _: None) -> tuple[_Trace, jax.Array]:
        alive = at.t < ends
        place = jnp.where(alive, (at.t + at.u) * columns + at.u, 0)
        arc = jnp.take_along_axis(best_arcs, place[..., None], axis=-1)[..., 0]
        arc = jnp.where(alive, arc, -1)
        emits = of_arcs(arc, [int(a.emits) for a in arcs])
        is_own = (label == at.u[..., None]) & (emits == 1)[..., None]
        moved = _Trace(
            t=at.t + of_arcs(arc, [a.duration for a in arcs]),
            u=at.u + emits,
            frames=jnp.where(is_own, at.t[..., None], at.frames),
            label_arcs=jnp.where(is_own, arc[..., None], at.label_arcs),
        )
        return moved, arc

    zero = jnp.where(ends > 0, 0, 0).astype(jnp.int32)
    none = zero[..., None] + jnp.full((*batch, num_labels), -1, jnp.int32)
    start = _Trace(zero, zero, none, none)
    trace, path = jax.lax.scan(step, start, length=diagonals - 1)
    return trace, jnp.moveaxis(path, 0, -1)


def lattice_alignment(
    arc_log_probs: jax.Array, logit_lengths: jax.Array, label_lengths: jax.Array, *, arcs: Arcs
) -> tuple[jax.Array, ...]:
    """Stage 2 for alignments: the most probable path, along the first best arc of each node.

    Returns the labels' frames, durations and log-probabilities `[batch_dims..., U]`, the arcs
    `[batch_dims..., T + U]` and the path's log-probability `[batch_dims...]`.
    """
    arc_log_probs, logit_lengths, label_lengths = unify_varying(
        arc_log_probs, logit_lengths, label_lengths
    )
    *batch, num_frames, columns, num_arcs = arc_log_probs.shape
    exists = existing_arcs(logit_lengths, label_lengths, num_frames, columns, arcs)
    poisoned = poisoned_arcs(arc_log_probs, exists)
    is_there = exists & ~poisoned & ~is_lost(arc_log_probs)
    weights = jnp.where(is_there, arc_log_probs, -jnp.inf)
    best_arcs, log_probs = _best_arcs(weights, logit_lengths, label_lengths, arcs)

    valid = lengths_are_valid(logit_lengths, label_lengths, num_frames, columns)
    sound = valid & ~jnp.any(poisoned, axis=(-3, -2, -1)) & (log_probs < jnp.inf)
    log_probs = jnp.where(is_lost(log_probs), -jnp.inf, log_probs)
    log_probs = jnp.where(sound, log_probs, jnp.nan)
    ends = jnp.where(sound & (log_probs > -jnp.inf), logit_lengths, 0)
    trace, path = _follow(best_arcs, ends, columns - 1, arcs)

    emitted = trace.frames >= 0
    durations = of_arcs(trace.label_arcs, [arc.duration for arc in arcs])
    label_log_probs = jnp.zeros(emitted.shape, arc_log_probs.dtype)
    if num_frames > 0:  # else there is nothing that could be looked up
        (u,) = iotas(len(batch), columns - 1)
        place = (trace.frames * columns + u) * num_arcs + trace.label_arcs
        flat = arc_log_probs.reshape(*batch, num_frames * columns * num_arcs)
        found = jnp.take_along_axis(flat, jnp.where(emitted, place, 0), axis=-1)
        label_log_probs = jnp.where(emitted, found, 0)
    return trace.frames, jnp.where(emitted, durations, -1), label_log_probs, path, log_probs
