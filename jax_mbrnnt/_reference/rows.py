"""Rows of scores -> arc log-probabilities, and posteriors -> the scores' gradient."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mbrnnt._reference.nodes import inside_lattice, iotas, lengths_are_valid
from jax_mbrnnt.arcs import NEXT_LABEL, NOTHING, Emission


def real_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which logits of `dtype` are computed."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _log_normalizers(logits: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log-sum-exp over a head's classes in two numbers: a shift, and that of what is shifted by it.

    Their sum would have the logits' size, and an offset that they share would cost digits. Both are
    0 in padding; for a row of -inf, which has no exits, too: what is shifted is -inf already.
    """
    maximum = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    shift = jnp.where(inside & (maximum != -jnp.inf), maximum, 0)
    # Padding is replaced before exp, not after: where it is NaN, so would be 0 times the
    # derivative of its exp.
    shifted = jnp.where(inside[..., None], logits - shift[..., None], -jnp.inf)
    total = jnp.sum(jnp.exp(shifted), axis=-1)
    # A NaN beside -inf may escape the maximum, never the sum.
    return shift, jnp.log(jnp.where(total == 0, 1, total))


def _next_labels(labels: jax.Array, num_labels: int) -> tuple[jax.Array, jax.Array]:
    """The class of each column's label arc, `[batch_dims..., U+1]`, and whether it is one.

    The last column has no next label; what stands there is never used.
    """
    # `pad`, unlike `concatenate`, takes labels that are explicitly sharded.
    padded = jnp.pad(labels, [(0, 0)] * (labels.ndim - 1) + [(0, 1)])
    return padded, (padded >= 0) & (padded < num_labels)


def _starts(emission: Emission) -> tuple[int, ...]:
    """Where in a row each head begins."""
    return tuple(itertools.accumulate(emission.heads[:-1], initial=0))


def arc_log_probs(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    sigmas: jax.Array,
    *,
    emission: Emission,
) -> tuple[jax.Array, jax.Array]:
    """Stage 1: `[..., T, U+1, A]` log-probabilities and `[..., T, U+1, 2 H]` log-normalizers."""
    *_, num_frames, columns, _ = logits.shape
    inside = inside_lattice(logit_lengths, label_lengths, num_frames, columns)
    logits = logits.astype(real_dtype(logits.dtype))
    label, is_class = _next_labels(labels, emission.num_labels)
    _, u = iotas(label_lengths.ndim, num_frames, columns)
    has_label = u < label_lengths[..., None, None]

    def read(x: jax.Array, v: int) -> jax.Array:
        if v != NEXT_LABEL:
            return x[..., v]
        index = jnp.where(is_class, label, 0)[..., None, :, None]
        index = jnp.broadcast_to(index, (*x.shape[:-1], 1))
        of_label = jnp.take_along_axis(x, index, axis=-1, mode="promise_in_bounds")[..., 0]
        return jnp.where(is_class[..., None, :], of_label, jnp.nan)

    normalizers: list[jax.Array] = []
    total: list[Any] = [0] * len(emission.reads)  # of each arc, over the heads
    of_heads = zip(*emission.reads, strict=True)
    for start, size, reads in zip(_starts(emission), emission.heads, of_heads, strict=True):
        x = jax.lax.slice_in_dim(logits, start, start + size, axis=-1)
        shift, log_sum = _log_normalizers(x, inside)
        normalizers += [shift, log_sum]
        # Arcs that read the same share it.
        log_probs = {v: (read(x, v) - shift) - log_sum for v in set(reads) - {NOTHING}}
        total = [sum_ + log_probs.get(v, 0) for sum_, v in zip(total, reads, strict=True)]

    def of_arc(a: int) -> jax.Array:
        log_prob = total[a] - sigmas[..., None, None]
        if emission.reads[a][0] == NEXT_LABEL:
            log_prob = jnp.where(has_label, log_prob, -jnp.inf)
        return jnp.where(inside, log_prob, -jnp.inf)

    of_arcs = jnp.stack([of_arc(a) for a in range(len(total))], axis=-1)
    return of_arcs, jnp.stack(normalizers, axis=-1)


class _Occupancy(NamedTuple):
    """The weighed posteriors of a head's arcs, `[..., T, U+1]` each."""

    total: jax.Array
    visited: jax.Array  # whether any is not 0: those of a pull-back may cancel each other
    of_classes: dict[int, jax.Array]  # of the arcs that read each class


def _occupancies(
    posteriors: jax.Array, label_weights: jax.Array, emission: Emission
) -> list[_Occupancy]:
    """Sums over arcs, by small products: XLA keeps the result of one, and would compute anew for
    every class what is merely elementwise.
    """
    is_label = np.asarray([of_arc[0] == NEXT_LABEL for of_arc in emission.reads])
    weights = jnp.where(is_label, label_weights[..., None], 1)
    # FastEmit weighs, as a clamp bounds, in the first head alone.
    by_head = [posteriors * weights[..., None, None, :]] + [posteriors] * (len(emission.heads) - 1)

    def sums(weighed: jax.Array, which: list[list[bool]]) -> list[jax.Array]:
        columns = jnp.asarray(np.asarray(which).T, weighed.dtype)
        precision = jax.lax.Precision.HIGHEST
        of_columns = jnp.einsum("...a,ac->...c", weighed, columns, precision=precision)
        return [of_columns[..., i] for i in range(len(which))]

    found = []
    for weighed, reads in zip(by_head, zip(*emission.reads, strict=True), strict=True):
        classes = list(dict.fromkeys(v for v in reads if v != NOTHING))
        any_class = [v != NOTHING for v in reads]
        total, *parts = sums(weighed, [any_class, *([v == c for v in reads] for c in classes)])
        (size,) = sums(jnp.abs(weighed), [any_class])
        found.append(_Occupancy(total, size != 0, dict(zip(classes, parts, strict=True))))
    return found


def real_logit_gradients(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    log_normalizers: jax.Array,
    posteriors: jax.Array,
    label_weights: jax.Array,
    clamps: jax.Array,
    cotangents: jax.Array,
    *,
    emission: Emission,
    clamped: bool,
) -> jax.Array:
    """Stage 3 before rounding to the logits' dtype. One fused elementwise map."""
    *_, num_frames, columns, num_scores = logits.shape
    valid = lengths_are_valid(logit_lengths, label_lengths, num_frames, columns)
    posteriors = jnp.where(valid[..., None, None, None], posteriors, jnp.nan)
    *_, scores = iotas(valid.ndim, num_frames, columns, num_scores)
    of_heads = _occupancies(posteriors, label_weights, emission)

    def at_score(of_heads: list[jax.Array]) -> jax.Array:
        """Of the head in which each score stands."""
        first, *others = (x[..., None] for x in of_heads)
        return jnp.where(scores < emission.heads[0], first, others[0]) if others else first

    shifts, log_sums = (list(jnp.moveaxis(log_normalizers[..., i::2], -1, 0)) for i in (0, 1))
    # Where no path comes through the gradient is 0, whatever the logits hold.
    visited = at_score([head.visited for head in of_heads])
    x = logits.astype(posteriors.dtype) - at_score(shifts) - at_score(log_sums)
    x = jnp.where(visited, x, -jnp.inf)
    gradient = jnp.exp(x) * at_score([head.total for head in of_heads])
    label, _ = _next_labels(labels, emission.num_labels)
    for start, head in zip(_starts(emission), of_heads, strict=True):
        for v, posterior in head.of_classes.items():
            # Selected by comparison, which fuses and stays on its device where a scatter would not.
            place = label[..., None, :, None] if v == NEXT_LABEL else start + v
            gradient = gradient - jnp.where(scores == place, posterior[..., None], 0)
    if clamped:
        bounds = jnp.where(clamps > 0, clamps, jnp.inf)[..., None, None, None]
        bounds = jnp.where(scores < emission.heads[0], bounds, jnp.inf)
        gradient = jnp.clip(gradient, -bounds, bounds)
    return gradient * cotangents[..., None, None, None]


def logit_gradients(logits: jax.Array, *operands: jax.Array, **static: Any) -> jax.Array:
    """Stage 3: gradient of the logits from the arcs' posteriors."""
    return real_logit_gradients(logits, *operands, **static).astype(logits.dtype)
