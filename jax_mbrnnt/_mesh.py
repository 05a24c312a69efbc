"""Meshes: arrays that vary over the manual axes of `shard_map`, and explicitly sharded batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

try:
    from jax.sharding import reshard
except ImportError:  # older JAX
    from jax.experimental.shard import reshard  # type: ignore[import-not-found,no-redef]


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


def check_not_explicit(name: str, operands: Any) -> None:
    """A `TypeError` if an array's sharding is part of its type (`AxisType.Explicit`)."""
    for x in jax.tree.leaves(operands):
        aval = jax.typeof(x)
        if any(axes is not None for axes in aval.sharding.spec):
            raise TypeError(
                f"{name}: expected arrays whose sharding is not part of their type, got {aval}; "
                "put the search under jax.sharding.auto_axes"
            )


def zeros_like(x: jax.Array, dtype: Any = None) -> jax.Array:
    """Zeros that are sharded and vary as `x` does, which older JAX's own do not."""
    zeros, _ = unify_varying(jnp.zeros_like(x, dtype=dtype), x)
    return zeros


def zeros_of_batch(x: jax.Array, num_batch: int, dtype: Any) -> jax.Array:
    """Zeros `[batch_dims...]` that are sharded and vary as `x` `[batch_dims..., ...]` does.

    Sums of nothing: those of `x` might be NaN, which JAX's debugging looks for.
    """
    nothing = jax.lax.slice_in_dim(x, 0, 0, axis=num_batch)
    return jnp.sum(nothing, axis=tuple(range(num_batch, x.ndim))).astype(dtype)


def on_each_device(
    function: Callable[..., Sequence[jax.Array]], num_batch: int, *operands: jax.Array
) -> Sequence[jax.Array]:
    """`function(*operands)`, each device on its part where the batch is explicitly sharded.

    XLA's way of splitting a custom call forgets that a result takes an operand's buffer; what is
    under `shard_map` it need not split. Where `jit` finds the sharding by itself (`AxisType.Auto`)
    it is not known here.
    """
    sharding = jax.typeof(operands[0]).sharding
    spec = PartitionSpec(*sharding.spec[:num_batch])
    if all(axes is None for axes in spec):
        return function(*operands)
    mesh = sharding.mesh
    explicit = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }
    split = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=explicit)
    return split(*(reshard(x, NamedSharding(mesh, spec)) for x in operands))
