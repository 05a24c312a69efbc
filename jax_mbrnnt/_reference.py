"""The transducer loss in pure JAX: every platform's twin of the kernels.

It runs where there is no kernel (TPU, ROCm), gives derivatives of any order and in both
modes, and is what the kernels are tested against. It shares no arithmetic with them: they
compute posteriors from alphas and betas, it differentiates a scan over anti-diagonals.

Each stage is a function of arrays `[batch_dims..., T, U+1, ...]`; lengths are int32 and
`[batch_dims...]`. See `lattice/` for the recursions and the meaning of an arc table.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jax_mbrnnt._mesh import unify_varying, zeros_of_batch
from jax_mbrnnt._spec import NEXT_LABEL, Arc, Options

Arcs = tuple[Arc, ...]


def real_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which logits of `dtype` are computed."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _iota(size: int) -> jax.Array:
    return jnp.arange(size, dtype=jnp.int32)


def _iotas(num_batch: int, *sizes: int) -> list[jax.Array]:
    """0, 1, 2, ... along each of the core axes of what has `num_batch` axes before them.

    All of that rank: without rank promotion an array is only broadcast to others of its own.
    """
    rank = num_batch + len(sizes)
    return [
        jnp.expand_dims(_iota(size), [axis for axis in range(rank) if axis != num_batch + core])
        for core, size in enumerate(sizes)
    ]


def lengths_are_valid(
    logit_lengths: jax.Array, label_lengths: jax.Array, num_frames: int, columns: int
) -> jax.Array:
    """`[batch_dims...]`: both lengths lie within the padded block."""
    frames_fit = (logit_lengths >= 0) & (logit_lengths <= num_frames)
    return frames_fit & (label_lengths >= 0) & (label_lengths < columns)


def _inside(
    logit_lengths: jax.Array, label_lengths: jax.Array, num_frames: int, columns: int
) -> jax.Array:
    """`[batch_dims..., T, U+1]`: the node belongs to the utterance's lattice."""
    valid = lengths_are_valid(logit_lengths, label_lengths, num_frames, columns)
    t, u = _iotas(valid.ndim, num_frames, columns)
    inside = (t < logit_lengths[..., None, None]) & (u <= label_lengths[..., None, None])
    return inside & valid[..., None, None]


# ---- logits -> arc log-probabilities -------------------------------------------------


def _log_normalizers(logits: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log-sum-exp over the classes in two numbers: a shift, and that of what is shifted by it.

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


def _next_labels(labels: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """The class of each column's label arc, `[batch_dims..., U+1]`, and whether it is one.

    The last column has no next label; what stands there is never used.
    """
    # `pad`, unlike `concatenate`, takes labels that are explicitly sharded.
    padded = jnp.pad(labels, [(0, 0)] * (labels.ndim - 1) + [(0, 1)])
    return padded, (padded >= 0) & (padded < num_classes)


def arc_log_probs(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    *,
    arc_classes: Sequence[int],
    sigma: float,
) -> tuple[jax.Array, jax.Array]:
    """Stage 1: `[..., T, U+1, A]` log-probabilities and `[..., T, U+1, 2]` log-normalizers."""
    *_, num_frames, columns, num_classes = logits.shape
    inside = _inside(logit_lengths, label_lengths, num_frames, columns)
    x = logits.astype(real_dtype(logits.dtype))
    shift, log_sum = _log_normalizers(x, inside)
    label, is_class = _next_labels(labels, num_classes)
    _, u = _iotas(label_lengths.ndim, num_frames, columns)

    def logits_of(v: int) -> jax.Array:
        if v != NEXT_LABEL:
            return x[..., v]
        index = jnp.where(is_class, label, 0)[..., None, :, None]
        index = jnp.broadcast_to(index, (*x.shape[:-1], 1))
        read = jnp.take_along_axis(x, index, axis=-1, mode="promise_in_bounds")[..., 0]
        read = jnp.where(is_class[..., None, :], read, jnp.nan)
        return jnp.where(u < label_lengths[..., None, None], read, -jnp.inf)

    log_probs = jnp.stack([logits_of(v) for v in arc_classes], axis=-1)
    log_probs = (log_probs - shift[..., None]) - log_sum[..., None] - sigma
    log_probs = jnp.where(inside[..., None], log_probs, -jnp.inf)
    return log_probs, jnp.stack([shift, log_sum], axis=-1)


def _real_logit_gradients(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    log_normalizers: jax.Array,
    posteriors: jax.Array,
    cotangents: jax.Array,
    *,
    arc_classes: Sequence[int],
    fastemit_lambda: float,
    clamp: float,
) -> jax.Array:
    """Stage 3 before rounding to the logits' dtype. One fused elementwise map."""
    *_, num_frames, columns, num_classes = logits.shape
    valid = lengths_are_valid(logit_lengths, label_lengths, num_frames, columns)
    posteriors = jnp.where(valid[..., None, None, None], posteriors, jnp.nan)
    # Each arc's weighed posterior, then their sum, then whether any is not 0: a small product,
    # because XLA keeps the result of one, and would compute anew for every class what is
    # merely elementwise.
    arcs = _iota(len(arc_classes))[:, None]
    label_arcs = [a for a, v in enumerate(arc_classes) if v == NEXT_LABEL]
    is_label = sum((arcs == a).astype(posteriors.dtype) for a in label_arcs)
    weights = 1 + fastemit_lambda * is_label + jnp.zeros(arcs.shape, posteriors.dtype)
    own = (arcs == arcs.T).astype(posteriors.dtype)
    columns_of = jnp.concatenate([weights * own, weights], axis=1)
    weighed = jnp.einsum(
        "...a,ac->...c", posteriors, columns_of, precision=jax.lax.Precision.HIGHEST
    )
    occupancy = weighed[..., -1]
    visited = occupancy != 0

    # Where no path comes through the gradient is 0, whatever the logits hold.
    shift, log_sum = log_normalizers[..., :1], log_normalizers[..., 1:]
    x = jnp.where(visited[..., None], logits.astype(posteriors.dtype) - shift, -jnp.inf)
    gradient = jnp.exp(x - log_sum) * occupancy[..., None]
    label, _ = _next_labels(labels, num_classes)
    *_, classes = _iotas(valid.ndim, num_frames, columns, num_classes)
    for a, v in enumerate(arc_classes):
        # Selected by comparison, which fuses and stays on its device where a scatter would not.
        reads = classes == (label[..., None, :, None] if v == NEXT_LABEL else v)
        gradient = gradient - jnp.where(reads, weighed[..., a, None], 0)
    if clamp > 0:
        gradient = jnp.clip(gradient, -clamp, clamp)
    return gradient * cotangents[..., None, None, None]


def logit_gradients(logits: jax.Array, *operands: jax.Array, **options: Any) -> jax.Array:
    """Stage 3: gradient of the logits from the arcs' posteriors."""
    return _real_logit_gradients(logits, *operands, **options).astype(logits.dtype)


# ---- the lattice ---------------------------------------------------------------------


def _existing_arcs(
    logit_lengths: jax.Array, label_lengths: jax.Array, num_frames: int, columns: int, arcs: Arcs
) -> jax.Array:
    """`[batch_dims..., T, U+1, A]`: tail and head are nodes; only blanks enter the final one."""
    frames = logit_lengths[..., None, None]
    last = label_lengths[..., None, None]
    t, u = _iotas(logit_lengths.ndim, num_frames, columns)
    there = [
        (t < frames - arc.duration) & (u < last)
        if arc.emits
        else (t < frames - arc.duration) | ((t == frames - arc.duration) & (u == last))
        for arc in arcs
    ]
    inside = _inside(logit_lengths, label_lengths, num_frames, columns)
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


def _is_lost(log_probs: jax.Array) -> jax.Array:
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

    exists = _existing_arcs(logit_lengths, label_lengths, num_frames, columns, arcs)
    weights = jnp.where(exists & ~_is_lost(arc_log_probs), arc_log_probs, -jnp.inf)
    by_head = [_by_head(weights[..., a], arc, diagonals) for a, arc in present]
    if by_head:
        steps = jnp.stack(by_head, axis=1)  # [diagonals, arcs, batch..., U+1]
    else:
        steps = jnp.full((diagonals, 0, *batch, columns), -jnp.inf, dtype)

    # Something of every operand, so that the loop's state varies over the mesh as they do and
    # is sharded as they are.
    zero = jnp.where(jnp.any(exists, axis=(-3, -2, -1)), 0, 0).astype(dtype)
    zero = zero + zeros_of_batch(arc_log_probs, len(batch), dtype)
    (u,) = _iotas(len(batch), columns)
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
    (_, log_likelihood), _ = jax.lax.scan(step, carry, (_iota(diagonals), steps))
    return log_likelihood


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
    losses = jnp.where(_is_lost(log_likelihoods), jnp.inf, losses)
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
    inside = _inside(logit_lengths, label_lengths, *shape[-3:-1]) | ~valid[..., None, None]
    nothing = jnp.where(jnp.isnan(losses), jnp.nan, 0)[..., None, None]
    nothing = jnp.where(inside, nothing, 0)[..., None]
    possible = jnp.isfinite(losses)[..., None, None, None]
    return losses, jnp.where(possible, posteriors, nothing)


def value(losses: jax.Array, options: Options) -> jax.Array:
    """What a public loss returns of stage 2's: at least +0, where roundings might say less, and
    weighed by FastEmit. An impossible utterance's is +inf, whatever it weighs.
    """
    if options.sigma >= 0:
        losses = jnp.where(losses <= 0, 0, losses)
    return jnp.where(losses == jnp.inf, losses, losses * (1 + options.fastemit_lambda))


class Stages(NamedTuple):
    """The stages that a loss is composed of, whoever computes them."""

    arc_log_probs: Callable[..., tuple[jax.Array, jax.Array]]
    lattice: Callable[..., tuple[jax.Array, jax.Array]]
    lattice_score: Callable[..., jax.Array]
    logit_gradients: Callable[..., jax.Array]


STAGES = Stages(arc_log_probs, lattice, lattice_score, logit_gradients)


# ---- differentiable in both modes and to any order -----------------------------------
#
# The derivatives are given as the stages compute them, so that they keep the contract at the
# edges (an impossible utterance, NaN in padding) where those of the recursion would not.


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
    options: Options,
) -> jax.Array:
    """Losses of `options`; their derivative is the gradient that stage 3 defines."""

    # Keeps the small residuals and makes the gradient, which has the logits' size, when it
    # is asked for.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*_KEPT))
    def remade(logits: jax.Array) -> jax.Array:
        return _loss_with_jvp(logits, labels, logit_lengths, label_lengths, options)

    return remade(logits)


_KEPT = ("jax_mbrnnt_log_normalizers", "jax_mbrnnt_posteriors")


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _loss_with_jvp(logits, labels, logit_lengths, label_lengths, options):
    arc_classes = options.arc_classes(logits.shape[-1])
    operands = logits, labels, logit_lengths, label_lengths
    log_probs, _ = arc_log_probs(*operands, arc_classes=arc_classes, sigma=options.sigma)
    losses = lattice_score(log_probs, logit_lengths, label_lengths, arcs=options.arcs)
    return value(losses, options)


@_loss_with_jvp.defjvp
def _loss_jvp(options, primals, tangents):
    logits, _, *lengths = primals
    arc_classes = options.arc_classes(logits.shape[-1])
    log_probs, normalizers = arc_log_probs(*primals, arc_classes=arc_classes, sigma=options.sigma)
    losses, posteriors = lattice(log_probs, *lengths, arcs=options.arcs)
    normalizers, posteriors = map(checkpoint_name, (normalizers, posteriors), _KEPT)
    tangent = loss_tangent(*primals, normalizers, posteriors, tangents[0], options)
    return value(losses, options), tangent


def loss_tangent(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    log_normalizers: jax.Array,
    posteriors: jax.Array,
    tangent: jax.Array,
    options: Options,
) -> jax.Array:
    """By how much the losses move when the logits move by `tangent`."""
    gradient = _real_logit_gradients(
        logits,
        labels,
        logit_lengths,
        label_lengths,
        log_normalizers,
        posteriors,
        jnp.ones(posteriors.shape[:-3], posteriors.dtype),
        arc_classes=options.arc_classes(logits.shape[-1]),
        fastemit_lambda=options.fastemit_lambda,
        clamp=options.clamp,
    )
    visited = jnp.any(posteriors != 0, axis=-1, keepdims=True)
    moved = jnp.where(visited, tangent.astype(gradient.dtype), 0)
    return jnp.sum(gradient * moved, axis=(-3, -2, -1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(6,))
def nothing_but_a_tangent(
    logits, labels, logit_lengths, label_lengths, log_normalizers, posteriors, options
):
    """0 for every utterance, and the losses' derivative by logits that are not all of them."""
    return zeros_of_batch(posteriors, posteriors.ndim - 3, posteriors.dtype)


@nothing_but_a_tangent.defjvp
def _nothing_but_a_tangent_jvp(options, primals, tangents):
    # The normalizers and posteriors are those of these logits: this tangent is for all of it.
    return nothing_but_a_tangent(*primals, options), loss_tangent(*primals, tangents[0], options)
