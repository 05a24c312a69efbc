"""The options that are numbers: they may be traced, and a new value compiles nothing.

So they are operands, of each utterance one, and what is known of them is checked before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mbrnnt import _primitives, _reference
from jax_mbrnnt._mesh import zeros_of_batch
from jax_mbrnnt._stages import Numbers

Number = float | jax.Array

# Options become float32 in the kernels of float32 logits: its largest number, and its least one
# that no processor takes for 0.
_LARGEST, _LEAST = (2 - 2**-23) * 2.0**127, 2.0**-126


def as_number(name: str, value: Any) -> Number:
    """A `float` where the value is known, otherwise the array; an error naming the argument.

    A known one has to be finite in float32, too.
    """
    if isinstance(value, jax.Array):
        if value.shape != () or not jnp.issubdtype(value.dtype, np.number):
            raise TypeError(f"{name}: expected a number, got {jax.typeof(value)}")
        if isinstance(value, jax.core.Tracer) or not value.is_fully_addressable:
            return value
        value = jax.device_get(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if not abs(number) <= _LARGEST:
        raise ValueError(f"{name}: expected a number that is finite in float32, got {number}")
    return number


def check_fastemit_lambda(value: Number) -> None:
    if isinstance(value, float) and value < -1:
        raise ValueError(
            f"fastemit_lambda: expected at least -1, where labels weigh nothing, got {value}"
        )


def check_clamp(value: Number) -> None:
    if isinstance(value, float) and value != 0 and not value >= _LEAST:
        raise ValueError(
            f"clamp: expected 0 (none) or a bound of at least {_LEAST:.3g}, got {value}"
        )


class Given(NamedTuple):
    """As the caller has them: scalars."""

    sigma: Any
    fastemit_lambda: Any
    clamp: Any

    def on_device(self, logits_dtype: Any) -> Given:
        """All of them arrays: what a program is called with must not need an implicit transfer."""
        dtype = _reference.real_dtype(logits_dtype)
        known = [isinstance(x, float) for x in self]
        arrays = iter(jax.device_put([np.asarray(x, dtype) for x in self if isinstance(x, float)]))
        return Given(*(next(arrays) if k else x for k, x in zip(known, self, strict=True)))

    def settled(self, like: jax.Array, num_batch: int, logits_dtype: Any) -> Numbers:
        """One for each utterance of `like` `[batch_dims..., ...]`; its loss is NaN if they are bad.

        Called under `jit`.
        """
        dtype = _reference.real_dtype(logits_dtype)
        sigma, fastemit_lambda, clamp = (
            _primitives.without_derivative(
                x.astype(dtype),
                f"{name}: it has no derivative; pass jax.lax.stop_gradient({name})",
            )
            for name, x in zip(self._fields, self, strict=True)
        )
        sound = (jnp.abs(sigma) < jnp.inf) & (fastemit_lambda >= -1) & (fastemit_lambda <= _LARGEST)
        sound &= (clamp == 0) | ((clamp >= _LEAST) & (clamp <= _LARGEST))
        of_each = zeros_of_batch(like, num_batch, dtype)
        return Numbers(
            of_each + jnp.where(sound, sigma, jnp.nan),
            of_each + (1 + fastemit_lambda),
            of_each + clamp,
        )
