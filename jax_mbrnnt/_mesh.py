"""The manual mesh axes of `shard_map`: which arrays vary over them, and making arrays agree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def varying_axes(x: Any) -> frozenset:
    """The manual mesh axes (of `shard_map`) over which `x` varies."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)  # the newer name
    return manual.varying if manual is not None else getattr(aval, "vma", frozenset())


def unify_varying(*operands: jax.Array) -> list[jax.Array]:
    """Makes all operands vary over the mesh axes over which any of them does."""
    wanted = frozenset().union(*map(varying_axes, operands))

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(wanted - varying_axes(x)))
        if not missing:
            return x
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(x, missing, to="varying")
        return getattr(jax.lax, "pvary")(x, missing)  # noqa: B009 - gone from newer versions

    return [cast(x) for x in operands]


def zeros_like(x: jax.Array, dtype: Any = None) -> jax.Array:
    """Zeros that are sharded and vary as `x` does, which older JAX's own do not."""
    zeros, _ = unify_varying(jnp.zeros_like(x, dtype=dtype), x)
    return zeros
