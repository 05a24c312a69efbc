"""What a joint network sees where an utterance's frames or labels have ended.

Where the joint is run on padding, whatever it makes of it is multiplied by a gradient of 0 and
summed up in that of the params: 0 times what should not be infinite or NaN. A joint is finite, and
so is its derivative, at the nodes that there are. So a valid frame and a valid label stand in for
padding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def _is_number(x: Any) -> bool:
    """What a joint computes with: not a random key, not whether it is there."""
    return jnp.issubdtype(x.dtype, jnp.number)


def filler(tree: Any, has_nodes: jax.Array) -> Any:
    """Of leaves `[batch_dims..., N, ...]` a slice `[batch_dims..., 1, ...]` that is no padding.

    That of the first frame or label; of an utterance without frames it is padding, and that of the
    batch's first utterance with some stands in for it; where no utterance has any, ones do.
    """
    axis = has_nodes.ndim
    batch = tuple(range(axis))
    # One-hot, not an index: the batch may be sharded. And sums where all of a selection would have
    # to be sharded alike.
    place = jnp.arange(has_nodes.size, dtype=jnp.int32).reshape(has_nodes.shape)
    place = place + (~has_nodes).astype(jnp.int32) * has_nodes.size
    is_first = has_nodes & (place == jnp.min(place, initial=has_nodes.size, keepdims=True))

    def of_leaf(x: jax.Array) -> jax.Array:
        first = jax.lax.slice_in_dim(x, 0, min(x.shape[axis], 1), axis=axis)
        first = jax.lax.stop_gradient(first)
        if not _is_number(x):
            return first
        one_hot, own = (jnp.expand_dims(c, range(axis, x.ndim)) for c in (is_first, has_nodes))
        other = jnp.sum(jnp.where(one_hot, first, 0), axis=batch, keepdims=True, dtype=x.dtype)
        other = jnp.where(jnp.any(one_hot, axis=batch, keepdims=True), other, 1)
        return jnp.where(own, first, other + jnp.zeros((), x.dtype) * own.astype(x.dtype))

    return jax.tree.map(of_leaf, tree)


def without_padding(tree: Any, fillers: Any, lengths: jax.Array) -> Any:
    """Leaves `[batch_dims..., N, ...]` with their filler from `lengths` `[batch_dims...]` on.

    All of an utterance whose length is below 0 stays: its lengths are out of range.
    """

    def fill(x: jax.Array, filler: jax.Array) -> jax.Array:
        if not _is_number(x):
            return x
        axis = lengths.ndim
        place = jnp.arange(x.shape[axis], dtype=jnp.int32).reshape(*[1] * axis, -1)
        within = jnp.expand_dims(lengths, axis)
        inside = (place < within) | (within < 0)
        return jnp.where(jnp.expand_dims(inside, range(axis + 1, x.ndim)), x, filler)

    return jax.tree.map(fill, tree, fillers)
