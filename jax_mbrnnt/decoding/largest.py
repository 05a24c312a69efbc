"""The largest of many, where few are wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_mbrnnt._mesh import zeros_like


def largest(
    scores: jax.Array, count: int, is_worth: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of `scores` `[R, N]` and where they stand; -inf and 0 where is none.

    One after the other, and only so long as `is_worth(largest [R])` of what is left holds for any
    row. Where a blank is certain, which is most of the time, no label is, and then this is a tenth
    of what `lax.top_k` costs on a CPU. Nor can XLA split that over devices. A row that holds a NaN
    may come out in any way.
    """
    place = jnp.arange(scores.shape[1], dtype=jnp.int32)[None]

    def unfinished(found: Any) -> jax.Array:
        i, _, most, *_ = found
        return (i < count) & jnp.any(is_worth(most))

    def take(found: Any) -> Any:
        i, left, most, values, index = found
        # Not argmax, which XLA's CPU backend does not vectorise.
        first = jnp.min(jnp.where(left == most[:, None], place, scores.shape[1] - 1), axis=1)
        here = jnp.arange(count, dtype=jnp.int32)[None] == i
        left = jnp.where(place == first[:, None], -jnp.inf, left)
        return (
            i + 1,
            left,
            jnp.max(left, axis=1),
            jnp.where(here, most[:, None], values),
            jnp.where(here, first[:, None], index),
        )

    shape = (scores.shape[0], count)
    zeros = zeros_like(scores[:, :1])
    values = jnp.broadcast_to(zeros - jnp.inf, shape)
    index = jnp.broadcast_to(zeros.astype(jnp.int32), shape)
    found = (jnp.int32(0), scores, jnp.max(scores, axis=1), values, index)
    return lax.while_loop(unfinished, take, found)[3:]
