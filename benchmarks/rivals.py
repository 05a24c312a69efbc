"""Pure-JAX transducer losses, written as well as a practitioner would: what we must beat.

Each takes `logits` `[B, T, U+1, V]` (blank last, big blanks before it), `labels` `[B, U]` and both
lengths `[B]`, and returns losses `[B]`. They differ in how they get from the logits to the
log-probabilities of the arcs; the lattice behind them is the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NEVER = -1e30  # finite, so that autodiff through the recursion stays finite


def autodiff_scan(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    big_blank_durations: tuple[int, ...],
) -> jax.Array:
    """One logsumexp, gathered arcs, a scan over anti-diagonals, differentiated by JAX."""
    log_probs = _gathered(logits, _next_labels(labels), 1 + len(big_blank_durations))
    return _scan_diagonals(log_probs, logit_lengths, label_lengths, big_blank_durations)


def remat_scan(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    big_blank_durations: tuple[int, ...],
) -> jax.Array:
    """`log_softmax`, as most people write it, made again for the gradient instead of kept."""

    @jax.checkpoint
    def log_probs_of(logits: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return _arcs_of(log_probs, _next_labels(labels), 1 + len(big_blank_durations))

    log_probs = log_probs_of(logits)
    return _scan_diagonals(log_probs, logit_lengths, label_lengths, big_blank_durations)


def strong_scan(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    big_blank_durations: tuple[int, ...],
) -> jax.Array:
    """The strongest that we know: the gradient of the logits by hand, in one fused pass."""
    log_probs = _log_probs(logits, _next_labels(labels), 1 + len(big_blank_durations))
    return _scan_diagonals(log_probs, logit_lengths, label_lengths, big_blank_durations)


def remat_joint(
    joint: Callable[..., jax.Array],
    params: Any,
    encoded: jax.Array,
    predicted: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    big_blank_durations: tuple[int, ...],
    chunk_frames: int,
) -> jax.Array:
    """`strong_scan` of a joint's logits: a scan over chunks of frames, each one checkpointed."""
    batch, frames, width = encoded.shape
    padded = jnp.pad(encoded, ((0, 0), (0, -frames % chunk_frames), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(batch, -1, chunk_frames, width), 1, 0)
    next_labels, num_blanks = _next_labels(labels), 1 + len(big_blank_durations)

    @jax.checkpoint
    def step(_, chunk: jax.Array):
        return None, _log_probs(joint(params, chunk, predicted), next_labels, num_blanks)

    _, stacked = jax.lax.scan(step, None, chunks)  # [chunks, A, B, C, U+1]
    log_probs = jnp.moveaxis(stacked, 0, 2)
    log_probs = log_probs.reshape(*log_probs.shape[:2], -1, log_probs.shape[-1])[:, :, :frames]
    return _scan_diagonals(log_probs, logit_lengths, label_lengths, big_blank_durations)


# ---- logits -> log-probabilities of the arcs, [A, B, T, U+1]: the label arc, then the blanks ----


def _next_labels(labels: jax.Array) -> jax.Array:
    """The class of every column's label arc; the last column has none, and reads anything."""
    return jnp.pad(labels, ((0, 0), (0, 1)))


def _arcs_of(x: jax.Array, next_labels: jax.Array, num_blanks: int) -> jax.Array:
    """What `x` `[B, T, U+1, V]` holds for the class of each arc."""
    classes = x.shape[-1]
    index = jnp.broadcast_to(next_labels[:, None, :, None], (*x.shape[:-1], 1))
    label_arc = jnp.take_along_axis(x, index, axis=-1, mode="promise_in_bounds")[..., 0]
    return jnp.stack([label_arc, *(x[..., classes - 1 - i] for i in range(num_blanks))])


def _gathered(logits: jax.Array, next_labels: jax.Array, num_blanks: int) -> jax.Array:
    normalizers = jax.nn.logsumexp(logits, axis=-1)
    return _arcs_of(logits, next_labels, num_blanks) - normalizers


def _read(logits: jax.Array, next_labels: jax.Array, num_blanks: int):
    batch, frames, columns, classes = logits.shape
    # XLA's CPU client gives its threads work along the first axis, however long that is.
    rows = logits.reshape(math.gcd(batch * frames, 16), -1, columns, classes)
    normalizers = jax.nn.logsumexp(rows.astype(jnp.float32), axis=-1)
    normalizers = normalizers.reshape(logits.shape[:-1])
    arcs = _arcs_of(logits, next_labels, num_blanks).astype(jnp.float32)
    return arcs - normalizers, (logits, next_labels, normalizers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_probs(logits: jax.Array, next_labels: jax.Array, num_blanks: int) -> jax.Array:
    return _read(logits, next_labels, num_blanks)[0]


def _log_probs_backward(num_blanks: int, residuals, cotangents: jax.Array):
    """The cotangent of an arc's class, less softmax times the sum of cotangents."""
    logits, next_labels, normalizers = residuals
    # A product, because XLA keeps its result: it would sum anew for every class, and on the CPU
    # the pass below would fall apart into five.
    ones = jnp.ones(1 + num_blanks)
    total = jnp.einsum("a,abtu->btu", ones, cotangents, precision=jax.lax.Precision.HIGHEST)
    softmax = jnp.exp(logits.astype(jnp.float32) - normalizers[..., None])
    gradient = -softmax * total[..., None]
    # The scatter, by comparison: it fuses.
    v = jnp.arange(logits.shape[-1])
    for arc, cotangent in enumerate(cotangents):
        reads = v == (next_labels[:, None, :, None] if arc == 0 else logits.shape[-1] - arc)
        gradient = gradient + jnp.where(reads, cotangent[..., None], 0)
    return gradient.astype(logits.dtype), None


_log_probs.defvjp(_read, _log_probs_backward)


# ---- the lattice ---------------------------------------------------------------------------


def _scan_diagonals(
    log_probs: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    big_blank_durations: tuple[int, ...],
) -> jax.Array:
    """Losses `[B]` from `[A, B, T, U+1]`: alphas in the log domain, a diagonal t + u at a time."""
    _, batch, frames, columns = log_probs.shape
    diagonals = frames + columns
    durations = (1, *big_blank_durations)
    t, u = jnp.arange(frames)[:, None], jnp.arange(columns)
    inside = (t < logit_lengths[:, None, None]) & (u <= label_lengths[:, None, None])
    log_probs = jnp.where(inside, log_probs, NEVER)

    def by_head(arc: jax.Array, delay: int) -> jax.Array:
        """`[diagonals, B, U+1]`: row n holds what enters from anti-diagonal n - delay."""
        pad = ((0, 0), (0, 0), (0, columns + 1))
        sheared = jnp.pad(arc.swapaxes(1, 2), pad, constant_values=NEVER).reshape(batch, -1)
        sheared = sheared[:, : columns * diagonals].reshape(batch, columns, diagonals)
        nothing = jnp.full((delay, batch, columns), NEVER)
        return jnp.concatenate([nothing, jnp.moveaxis(sheared, -1, 0)])[:diagonals]

    def from_left(x: jax.Array) -> jax.Array:
        """A label arc's head is one column to the right of its tail."""
        return jnp.concatenate([jnp.full_like(x[..., :1], NEVER), x[..., :-1]], axis=-1)

    arcs = [by_head(log_probs[0], 1)]
    arcs += [by_head(arc, d) for d, arc in zip(durations, log_probs[1:], strict=True)]
    steps = jnp.stack([from_left(arcs[0]), *arcs[1:]], axis=1)

    def step(recent, weights):
        """`recent[k]` holds the alphas of k + 1 diagonals ago."""
        tails = jnp.stack([from_left(recent[0]), *(recent[d - 1] for d in durations)])
        terms = tails + weights
        maximum = jax.lax.stop_gradient(jnp.max(terms, axis=0))
        alphas = maximum + jnp.log(jnp.sum(jnp.exp(terms - maximum), axis=0))
        return jnp.concatenate([alphas[None], recent[:-1]]), alphas

    # Diagonal 0 is the start node alone, so the scan begins at diagonal 1.
    recent = jnp.full((max(durations), batch, columns), NEVER).at[0, :, 0].set(0.0)
    _, alphas = jax.lax.scan(step, recent, steps[1:])
    return -alphas[logit_lengths + label_lengths - 1, jnp.arange(batch), label_lengths]
