"""Pure-JAX transducer losses, written as well as a practitioner would: what we must beat."""

import jax
import jax.numpy as jnp

NEVER = -1e30  # finite, so that autodiff through logsumexp stays finite


def autodiff_scan(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    big_blank_durations: tuple[int, ...],
) -> jax.Array:
    """One logsumexp, gathered arcs, a scan over anti-diagonals, differentiated by JAX.

    `logits` `[B, T, U+1, V]`, blank last, big blanks before it; losses `[B]`.
    """
    batch, frames, columns, classes = logits.shape
    diagonals = frames + columns
    normalizers = jax.nn.logsumexp(logits, axis=-1)
    next_label = jnp.pad(labels, ((0, 0), (0, 1)))
    index = jnp.broadcast_to(next_label[:, None, :, None], (*normalizers.shape, 1))
    label_arc = jnp.take_along_axis(logits, index, axis=-1)[..., 0] - normalizers
    durations = (1, *big_blank_durations)
    blank_arcs = [logits[..., classes - 1 - i] - normalizers for i in range(len(durations))]

    t, u = jnp.arange(frames)[:, None], jnp.arange(columns)
    inside = (t < logit_lengths[:, None, None]) & (u <= label_lengths[:, None, None])

    def by_head(arc: jax.Array, delay: int) -> jax.Array:
        """`[diagonals, B, U+1]`: row n holds what enters from anti-diagonal n - delay."""
        arc = jnp.where(inside, arc, NEVER).swapaxes(1, 2)
        pad = ((0, 0), (0, 0), (0, columns + 1))
        sheared = jnp.pad(arc, pad, constant_values=NEVER).reshape(batch, -1)
        sheared = sheared[:, : columns * diagonals].reshape(batch, columns, diagonals)
        nothing = jnp.full((delay, batch, columns), NEVER)
        return jnp.concatenate([nothing, jnp.moveaxis(sheared, -1, 0)])[:diagonals]

    def step(recent, inputs):
        n, label, *blanks = inputs
        emitted = jnp.pad(recent[0] + label, ((0, 0), (1, 0)), constant_values=NEVER)[:, :-1]
        blanked = [recent[d - 1] + b for d, b in zip(durations, blanks, strict=True)]
        alphas = jax.nn.logsumexp(jnp.stack([emitted, *blanked]), axis=0)
        alphas = jnp.where((n == 0) & (u == 0), 0.0, alphas)
        return jnp.concatenate([alphas[None], recent[:-1]]), alphas

    arcs = [by_head(label_arc, 1)]
    arcs += [by_head(arc, d) for d, arc in zip(durations, blank_arcs, strict=True)]
    recent = jnp.full((max(durations), batch, columns), NEVER)
    _, alphas = jax.lax.scan(step, recent, (jnp.arange(diagonals), *arcs))
    return -alphas[logit_lengths + label_lengths, jnp.arange(batch), label_lengths]
