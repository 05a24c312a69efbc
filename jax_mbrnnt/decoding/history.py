"""Which labels the hypotheses have emitted: a tree, by n.

An n of the search has one node for each place in the beam, written all at once, and no hypothesis
carries its labels along: they are read from the last to the first when the search is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_mbrnnt._mesh import zeros_like
from jax_mbrnnt.decoding.hypotheses import Emissions, take


class Labelling(NamedTuple):
    """The labels of every hypothesis, as `BeamDecoding` has them."""

    labels: jax.Array  # [B, K, U]
    frames: jax.Array  # [B, K, U]
    durations: jax.Array  # [B, K, U]
    log_probs: jax.Array  # [B, K, U]


class History(NamedTuple):
    """Emissions `[B, N, K]`. The one of place k at n is node `n * K + k`."""

    emissions: Emissions

    @classmethod
    def empty(cls, most: int, like: Emissions) -> History:
        def stack(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(zeros_like(x)[:, None], (x.shape[0], most, *x.shape[1:]))

        return cls(Emissions(*(stack(x) for x in like)))

    def write(self, n: jax.Array, goes_on: jax.Array, emissions: Emissions) -> History:
        """`emissions` `[B, K]` at `n` `[B]`, of the utterances that go on."""
        n = jnp.where(goes_on, n, self.emissions.labels.shape[1])  # outside nothing is written

        def put(row: jax.Array, i: jax.Array, x: jax.Array) -> jax.Array:
            return row.at[i].set(x, mode="drop")

        return History(
            Emissions(
                *(
                    jax.vmap(put)(x, n, new)
                    for x, new in zip(self.emissions, emissions, strict=True)
                )
            )
        )

    def read(
        self,
        ends: jax.Array,
        label_lengths: jax.Array,
        durations: Sequence[int],
        max_labels: int,
    ) -> Labelling:
        """The labels that lead to `ends` `[B, K]`, each `node * arcs + arc`."""
        batch, beam = ends.shape
        num_arcs = len(durations)
        if max_labels == 0 or num_arcs == 0 or batch == 0:
            nothing = jnp.full((batch, beam, max_labels), -1, jnp.int32)
            return Labelling(nothing, nothing, nothing, jnp.zeros(nothing.shape, jnp.float32))

        of_arc = jnp.asarray(durations, jnp.int32)
        nodes = Emissions(
            *(x.reshape(batch, x.shape[1] * beam, *x.shape[3:]) for x in self.emissions)
        )

        def step(carry: tuple) -> tuple:
            i, end, found = carry
            node, arc = end // num_arcs, end % num_arcs
            emitted: Emissions = take(nodes, node)
            log_prob = jnp.take_along_axis(emitted.log_probs, arc[..., None], -1)[..., 0]
            new = (emitted.labels, emitted.frames, of_arc[arc], log_prob)
            put = [
                lax.dynamic_update_index_in_dim(x, y, i, 0) for x, y in zip(found, new, strict=True)
            ]
            return i + 1, jnp.where(end < 0, -1, emitted.parents), Labelling(*put)

        def unfinished(carry: tuple) -> jax.Array:
            i, end, _ = carry
            return (i < max_labels) & jnp.any(end >= 0)

        zeros = jnp.broadcast_to(zeros_like(ends)[None], (max_labels, batch, beam))
        found = Labelling(zeros, zeros, zeros, zeros.astype(jnp.float32))
        backwards = lax.while_loop(unfinished, step, (jnp.int32(0), ends, found))[2]

        place = jnp.arange(max_labels, dtype=jnp.int32)[None, None]
        index = jnp.clip(label_lengths[..., None] - 1 - place, 0, max_labels - 1)
        inside = place < label_lengths[..., None]

        def forwards(x: jax.Array, padding: float) -> jax.Array:
            x = jnp.take_along_axis(jnp.moveaxis(x, 0, -1), index, axis=-1)
            return jnp.where(inside, x, jnp.asarray(padding, x.dtype))

        return Labelling(
            forwards(backwards.labels, -1),
            forwards(backwards.frames, -1),
            forwards(backwards.durations, -1),
            forwards(backwards.log_probs, 0.0),
        )
