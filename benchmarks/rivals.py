"""Pure-JAX transducer losses, written as well as a practitioner would: what we must beat.

Each takes `logits` `[B, T, U+1, S]` (blank the last token, big blanks before it, durations behind
it), `labels` `[B, U]`, both lengths `[B]` and a `Model`, and returns losses `[B]`. They differ in
how they get from the logits to what the arcs read; the lattice behind them is the same.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30  # finite, so that autodiff through the recursion stays finite
MOST = math.log(0.99)  # of a row: more of it is not taken off a sum in float32


class Arc(NamedTuple):
    """One step: frames, whether it takes the label, and the planes whose sum is its score."""

    duration: int
    emits: bool
    planes: tuple[int, ...]


class Model(NamedTuple):
    """What is read of a row, a plane each: the next label, the blanks, then the durations."""

    blanks: int  # the last of the tokens, from the last downwards
    durations: int  # scores behind the tokens, with a softmax of their own
    arcs: tuple[Arc, ...]


def multiblank(big_blank_durations: Sequence[int]) -> Model:
    durations = (1, *big_blank_durations)
    blanks = [Arc(d, False, (1 + i,)) for i, d in enumerate(durations)]
    return Model(len(durations), 0, (Arc(0, True, (0,)), *blanks))


def tdt(durations: Sequence[int]) -> Model:
    labels = [Arc(d, True, (0, 2 + i)) for i, d in enumerate(durations)]
    blanks = [Arc(d, False, (1, 2 + i)) for i, d in enumerate(durations) if d > 0]
    return Model(1, len(durations), (*labels, *blanks))


def autodiff_scan(*operands: jax.Array, model: Model) -> jax.Array:
    """One logsumexp a head, gathered planes, a scan over anti-diagonals, differentiated by JAX."""
    return _loss(_gathered, *operands, model=model)


def remat_scan(*operands: jax.Array, model: Model) -> jax.Array:
    """`log_softmax`, as most people write it, made again for the gradient instead of kept."""

    def log_probs_of(logits: jax.Array, next_labels: jax.Array, model: Model) -> jax.Array:
        heads = _heads(logits.astype(jnp.float32), model)
        log_probs = jnp.concatenate([jax.nn.log_softmax(x, axis=-1) for x in heads], axis=-1)
        return _planes_of(log_probs, next_labels, model)

    return _loss(jax.checkpoint(log_probs_of, static_argnums=2), *operands, model=model)


def strong_scan(*operands: jax.Array, model: Model) -> jax.Array:
    """The strongest that we know: the gradient of the logits by hand, in one fused pass."""
    return _loss(_log_probs, *operands, model=model)


LOSSES = {"strong": strong_scan, "autodiff scan": autodiff_scan, "remat scan": remat_scan}


def _loss(
    log_probs_of: Callable[[jax.Array, jax.Array, Model], jax.Array],
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    model: Model,
) -> jax.Array:
    log_probs = log_probs_of(logits, _next_labels(labels), model)
    return _scan_diagonals(log_probs, logit_lengths, label_lengths, model.arcs)


def remat_joint(
    joint: Callable[..., jax.Array],
    params: Any,
    encoded: jax.Array,
    predicted: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    model: Model,
    chunk_frames: int,
) -> jax.Array:
    """`strong_scan` of a joint's logits: a scan over chunks of frames, each one checkpointed."""
    batch, frames, width = encoded.shape
    padded = jnp.pad(encoded, ((0, 0), (0, -frames % chunk_frames), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(batch, -1, chunk_frames, width), 1, 0)
    next_labels = _next_labels(labels)

    @jax.checkpoint
    def step(_, chunk: jax.Array):
        return None, _log_probs(joint(params, chunk, predicted), next_labels, model)

    _, stacked = jax.lax.scan(step, None, chunks)  # [chunks, P, B, C, U+1]
    log_probs = jnp.moveaxis(stacked, 0, 2)
    log_probs = log_probs.reshape(*log_probs.shape[:2], -1, log_probs.shape[-1])[:, :, :frames]
    return _scan_diagonals(log_probs, logit_lengths, label_lengths, model.arcs)


# ---- logits -> log-probabilities of what is read, [P, B, T, U+1] ---------------------------


def _next_labels(labels: jax.Array) -> jax.Array:
    """The class of every column's label arc; the last column has none, and reads anything."""
    return jnp.pad(labels, ((0, 0), (0, 1)))


def _heads(x: jax.Array, model: Model) -> tuple[jax.Array, ...]:
    """The tokens' and the durations' share of the last axis."""
    if not model.durations:
        return (x,)
    return x[..., : -model.durations], x[..., -model.durations :]


def _planes_of(x: jax.Array, next_labels: jax.Array, model: Model) -> jax.Array:
    """What `x` `[B, T, U+1, S]` holds for each plane."""
    tokens = x.shape[-1] - model.durations
    index = jnp.broadcast_to(next_labels[:, None, :, None], (*x.shape[:-1], 1))
    label = jnp.take_along_axis(x, index, axis=-1, mode="promise_in_bounds")[..., 0]
    blanks = [x[..., tokens - 1 - i] for i in range(model.blanks)]
    durations = [x[..., tokens + i] for i in range(model.durations)]
    return jnp.stack([label, *blanks, *durations])


def _by_plane(of_heads: Sequence[jax.Array], model: Model) -> jax.Array:
    """What each plane's head has."""
    counts = (1 + model.blanks, model.durations)
    return jnp.stack([x for x, count in zip(of_heads, counts, strict=False) for _ in range(count)])


def _gathered(logits: jax.Array, next_labels: jax.Array, model: Model) -> jax.Array:
    normalizers = [jax.nn.logsumexp(head, axis=-1) for head in _heads(logits, model)]
    return _planes_of(logits, next_labels, model) - _by_plane(normalizers, model)


def _read(logits: jax.Array, next_labels: jax.Array, model: Model):
    batch, frames, columns, classes = logits.shape
    # XLA's CPU client gives its threads work along the first axis, however long that is.
    rows = logits.reshape(math.gcd(batch * frames, 16), -1, columns, classes)

    def logsumexp(x: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(x.astype(jnp.float32), axis=-1).reshape(logits.shape[:-1])

    of_all = logsumexp(rows)
    normalizers = (of_all,)
    if model.durations:
        # XLA copies a part of the rows before it sums them. So the few durations are summed and
        # taken off the sum of all; the tokens are copied if they are next to nothing somewhere.
        tokens, durations = _heads(rows, model)
        of_durations = logsumexp(durations)
        share = of_durations - of_all
        of_tokens = jax.lax.cond(
            jnp.max(share) < MOST,
            lambda: of_all + jnp.log1p(-jnp.exp(share)),
            lambda: logsumexp(tokens),
        )
        normalizers = of_tokens, of_durations
    planes = _planes_of(logits, next_labels, model).astype(jnp.float32)
    return planes - _by_plane(normalizers, model), (logits, next_labels, normalizers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_probs(logits: jax.Array, next_labels: jax.Array, model: Model) -> jax.Array:
    return _read(logits, next_labels, model)[0]


def _log_probs_backward(model: Model, residuals, cotangents: jax.Array):
    """The cotangent of a plane's class, less softmax times the sum of its head's cotangents."""
    logits, next_labels, normalizers = residuals
    tokens = logits.shape[-1] - model.durations
    v = jnp.arange(logits.shape[-1])

    def total(x: jax.Array) -> jax.Array:
        # A product, because XLA keeps its result: it would sum anew for every class, and on the
        # CPU the pass below would fall apart into five.
        return jnp.einsum("p,pbtu->btu", jnp.ones(len(x)), x, precision=jax.lax.Precision.HIGHEST)

    def by_class(of_tokens: jax.Array, *of_durations: jax.Array) -> jax.Array:
        """What the head of each class has."""
        result = of_tokens[..., None]
        for x in of_durations:
            result = jnp.where(v < tokens, result, x[..., None])
        return result

    heads = jnp.split(cotangents, [1 + model.blanks])[: len(normalizers)]
    softmax = jnp.exp(logits.astype(jnp.float32) - by_class(*normalizers))
    gradient = -softmax * by_class(*map(total, heads))
    # The scatter, by comparison: it fuses.
    classes = [next_labels[:, None, :, None], *(tokens - 1 - i for i in range(model.blanks))]
    classes += [tokens + i for i in range(model.durations)]
    for read, cotangent in zip(classes, cotangents, strict=True):
        gradient = gradient + jnp.where(v == read, cotangent[..., None], 0)
    return gradient.astype(logits.dtype), None


_log_probs.defvjp(_read, _log_probs_backward)


# ---- the lattice ---------------------------------------------------------------------------


def _scan_diagonals(
    log_probs: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    arcs: tuple[Arc, ...],
) -> jax.Array:
    """Losses `[B]` from `[P, B, T, U+1]`: alphas in the log domain, a diagonal t + u at a time."""
    _, batch, frames, columns = log_probs.shape
    diagonals = frames + columns
    # Taken apart once: an index's derivative is as large as all planes, a split's is their stack.
    planes = [x[0] for x in jnp.split(log_probs, len(log_probs))]
    delays = [arc.duration + arc.emits for arc in arcs]  # diagonals from an arc's tail to its head
    t, u = jnp.arange(frames)[:, None], jnp.arange(columns)

    def by_head(arc: Arc, delay: int) -> jax.Array:
        """`[diagonals, B, U+1]`: row n holds what enters from anti-diagonal n - delay."""
        # A label stands in a frame: the end is reached by a blank alone.
        last = logit_lengths - (arc.duration if arc.emits else 0)
        inside = (t < last[:, None, None]) & (u <= label_lengths[:, None, None])
        weights = jnp.where(inside, sum(planes[p] for p in arc.planes), NEVER)
        pad = ((0, 0), (0, 0), (0, columns + 1))
        sheared = jnp.pad(weights.swapaxes(1, 2), pad, constant_values=NEVER).reshape(batch, -1)
        sheared = sheared[:, : columns * diagonals].reshape(batch, columns, diagonals)
        nothing = jnp.full((delay, batch, columns), NEVER)
        entering = jnp.concatenate([nothing, jnp.moveaxis(sheared, -1, 0)])[:diagonals]
        return from_left(entering) if arc.emits else entering

    def from_left(x: jax.Array) -> jax.Array:
        """A label arc's head is one column to the right of its tail."""
        return jnp.concatenate([jnp.full_like(x[..., :1], NEVER), x[..., :-1]], axis=-1)

    steps = jnp.stack([by_head(*pair) for pair in zip(arcs, delays, strict=True)], axis=1)

    def step(recent, weights):
        """`recent[k]` holds the alphas of k + 1 diagonals ago."""
        left = from_left(recent)
        tails = [
            (left if arc.emits else recent)[d - 1] for arc, d in zip(arcs, delays, strict=True)
        ]
        terms = jnp.stack(tails) + weights
        maximum = jax.lax.stop_gradient(jnp.max(terms, axis=0))
        alphas = maximum + jnp.log(jnp.sum(jnp.exp(terms - maximum), axis=0))
        return jnp.concatenate([alphas[None], recent[:-1]]), alphas

    # Diagonal 0 is the start node alone, so the scan begins at diagonal 1.
    recent = jnp.full((max(delays), batch, columns), NEVER).at[0, :, 0].set(0.0)
    _, alphas = jax.lax.scan(step, recent, steps[1:])
    return -alphas[logit_lengths + label_lengths - 1, jnp.arange(batch), label_lengths]
