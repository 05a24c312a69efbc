"""The nodes of an utterance's lattice among those of the padded block."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def iota(size: int) -> jax.Array:
    return jnp.arange(size, dtype=jnp.int32)


def iotas(num_batch: int, *sizes: int) -> list[jax.Array]:
    """0, 1, 2, ... along each of the core axes of what has `num_batch` axes before them.

    All of that rank: without rank promotion an array is only broadcast to others of its own.
    """
    rank = num_batch + len(sizes)
    return [
        jnp.expand_dims(iota(size), [axis for axis in range(rank) if axis != num_batch + core])
        for core, size in enumerate(sizes)
    ]


def lengths_are_valid(
    logit_lengths: jax.Array, label_lengths: jax.Array, num_frames: int, columns: int
) -> jax.Array:
    """`[batch_dims...]`: both lengths lie within the padded block."""
    frames_fit = (logit_lengths >= 0) & (logit_lengths <= num_frames)
    return frames_fit & (label_lengths >= 0) & (label_lengths < columns)


def inside_lattice(
    logit_lengths: jax.Array, label_lengths: jax.Array, num_frames: int, columns: int
) -> jax.Array:
    """`[batch_dims..., T, U+1]`: the node belongs to the utterance's lattice."""
    valid = lengths_are_valid(logit_lengths, label_lengths, num_frames, columns)
    t, u = iotas(valid.ndim, num_frames, columns)
    inside = (t < logit_lengths[..., None, None]) & (u <= label_lengths[..., None, None])
    return inside & valid[..., None, None]
