"""Some utterances of a batch, or all, for which something is computed at a time."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_mbrnnt.decoding.search import PyTree, put


class Lanes(NamedTuple):
    """Which utterance of a batch each lane has, every one at most once.

    All of them in their order, without any exchange between utterances, if there is no list: so
    the batch stays on its devices where it is sharded.
    """

    utterances: jax.Array | None  # [lanes] int32

    def take(self, tree: PyTree) -> PyTree:
        """`[lanes, ...]` of `[B, ...]`."""
        if self.utterances is None:
            return tree
        return jax.tree.map(lambda x: x[self.utterances], tree)

    def give(self, tree: PyTree, of_lanes: PyTree) -> PyTree:
        """Puts `[lanes, ...]` back in its place in `[B, ...]`."""
        if self.utterances is None:
            return of_lanes
        return jax.tree.map(lambda x, new: self._at(x).set(new), tree, of_lanes)

    def add(self, x: jax.Array, of_lanes: jax.Array) -> jax.Array:
        return x + of_lanes if self.utterances is None else self._at(x).add(of_lanes)

    def put(self, buffer: jax.Array, place: jax.Array, value: jax.Array) -> jax.Array:
        """Writes each lane's value to its utterance's place in `[B, size]`, or nowhere."""
        if self.utterances is None:
            return put(buffer, place, value)
        if buffer.size == 0:
            return buffer
        at: Any = buffer.at[self.utterances, place]
        return at.set(value, mode="drop", unique_indices=True)

    def windows(self, encoded: jax.Array, first: jax.Array, size: int) -> jax.Array:
        """`[size, lanes, H...]` of `[B, T, H...]`: so many frames from each lane's `first` on."""
        if self.utterances is None:
            # A vmap, not an index `arange(B)`: the batch stays local where it is sharded.
            cut = partial(lax.dynamic_slice_in_dim, slice_size=size)
            return jax.vmap(cut, out_axes=1)(encoded, first)

        def of_lane(utterance: jax.Array, first: jax.Array) -> jax.Array:
            start = utterance, first, *[jnp.zeros_like(first)] * (encoded.ndim - 2)
            return lax.dynamic_slice(encoded, start, (1, size, *encoded.shape[2:]))[0]

        return jax.vmap(of_lane, out_axes=1)(self.utterances, first)

    def _at(self, x: jax.Array) -> Any:
        return x.at[self.utterances]
