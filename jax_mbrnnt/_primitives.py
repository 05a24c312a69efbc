"""One JAX primitive per stage: types, batching, sharding and lowering of the kernels.

Every operand and result is `[batch_dims..., core dims...]`, and the batch is whatever precedes
the core: `vmap` adds to it, a sharded `jit` splits it, the kernel flattens it. On a platform
without a kernel a stage lowers to its twin in `_reference`.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import sdy
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import PartitionSpec

from jax_mbrnnt import _ffi, _reference
from jax_mbrnnt._mesh import on_each_device, unify_varying
from jax_mbrnnt._stages import Stages
from jax_mbrnnt.arcs import Arc, Emission

Aval = Any  # jax.core.ShapedArray has no public name in every supported version
CORE_RANK = 3  # of every stage's first operand: T, U+1 and one more axis


# ---- types --------------------------------------------------------------------------------


def _spec(operand: Aval) -> tuple[Any, ...]:
    """What each dimension is explicitly sharded over; None for one that is not."""
    spec = tuple(operand.sharding.spec)
    return spec + (None,) * (len(operand.shape) - len(spec))


def _check_batch_shardings(first: Aval, *others: Aval) -> None:
    """Utterances that are spread over devices need their nodes spread likewise."""
    num_batch = len(first.shape) - CORE_RANK
    for other in others:
        pairs = zip(_spec(first)[:num_batch], _spec(other)[:num_batch], strict=True)
        if any(there is None and here is not None for there, here in pairs):
            raise TypeError(
                f"jax_mbrnnt: expected operands sharded over the batch as {first} is, or not at "
                f"all, got {other}; reshard the former first (jax.sharding.reshard)"
            )


def _result(operand: Aval, core_shape: Sequence[int], dtype: Any) -> Aval:
    """The type of a result with the operand's batch dims: shape, sharding, varying axes."""
    num_batch = len(operand.shape) - CORE_RANK
    spec = _spec(operand)
    if any(axis is not None for axis in spec[num_batch:]):
        raise TypeError(
            "jax_mbrnnt: only batch dimensions may be explicitly sharded, got "
            f"{operand}; reshard the last {CORE_RANK} dimensions first (jax.sharding.reshard)"
        )
    batch_spec = PartitionSpec(*spec[:num_batch], *(None,) * len(core_shape))
    sharding = operand.sharding
    if hasattr(sharding, "update"):
        sharding = sharding.update(spec=batch_spec)
    else:
        sharding = sharding.with_spec(batch_spec)
    return operand.update(
        shape=(*operand.shape[:num_batch], *core_shape),
        dtype=jnp.dtype(dtype),
        weak_type=False,
        sharding=sharding,
    )


# ---- lowering --------------------------------------------------------------------------


def _sharding_rule(
    num_batch: int, operands: Sequence[tuple[int, ...]], results: Sequence[tuple[int, ...]]
) -> Any:
    """Batch dims are shared by all operands and results; core dims are never split."""
    sizes = list(operands[0][:num_batch])
    replicated: list[int] = []

    def mapping(shape: tuple[int, ...]) -> Any:
        dims = [sdy.DimMappingAttr.get(factor_indices=[i]) for i in range(num_batch)]
        for size in shape[num_batch:]:
            replicated.append(len(sizes))
            sizes.append(size)
            dims.append(sdy.DimMappingAttr.get(factor_indices=[replicated[-1]]))
        return sdy.TensorMappingAttr.get(dim_mappings=dims)

    operand_mappings = [mapping(shape) for shape in operands]
    result_mappings = [mapping(shape) for shape in results]
    return sdy.OpShardingRuleAttr.get(
        factor_sizes=sizes,
        operand_mappings=operand_mappings,
        result_mappings=result_mappings,
        need_replication_factors=replicated,
        is_custom=True,
    )


def _kernel_lowering(
    target: str,
    attributes: Callable[..., dict[str, Any]],
    aliases: dict[int, int],
    workspace: Callable[..., Sequence[Aval]],
) -> Callable[..., Any]:
    def lower(ctx: Any, *operands: Any, require_kernel: bool, **params: Any) -> Any:
        del require_kernel  # here it is
        num_results = len(ctx.avals_out)
        ctx = ctx.replace(avals_out=[*ctx.avals_out, *workspace(*ctx.avals_in)])
        operand_shapes = [aval.shape for aval in ctx.avals_in]
        result_shapes = [aval.shape for aval in ctx.avals_out]
        num_batch = len(operand_shapes[0]) - CORE_RANK

        # Together with register_ffi_target_as_batch_partitionable these keep a batch-sharded
        # call on its device; without any one of them XLA gathers the logits.
        partitioning = None
        sizes = [size for shape in (*operand_shapes, *result_shapes) for size in shape]
        if num_batch and all(isinstance(size, int) for size in sizes):  # else jax.export's symbols
            count = ir.StringAttr.get(str(num_batch))
            partitioning = {"mhlo.frontend_attributes": ir.DictAttr.get({"num_batch_dims": count})}
            if getattr(jax.config, "jax_use_shardy_partitioner", True):
                rule = _sharding_rule(num_batch, operand_shapes, result_shapes)
                partitioning["sdy.sharding_rule"] = rule

        lowering = jax.ffi.ffi_lowering(
            target, operand_output_aliases=aliases, extra_attributes=partitioning
        )
        return lowering(ctx, *operands, **attributes(**params))[:num_results]

    return lower


def _twin_lowering(twin: Callable[..., Any], platform: str) -> Callable[..., Any]:
    lower_twin = mlir.lower_fun(twin, multiple_results=True)

    def lower(ctx: Any, *operands: Any, require_kernel: bool, **params: Any) -> Any:
        if require_kernel:
            raise NotImplementedError(
                f"implementation='ffi': jax_mbrnnt has no kernel for {platform}; use "
                "implementation=None, which takes the best that there is, or 'xla'"
            )
        if platform == "cuda":
            _warn_once()
        return lower_twin(ctx, *operands, **params)

    return lower


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "jax_mbrnnt was built without CUDA kernels and runs its pure-JAX twin on this GPU. "
        "Install it where nvcc is found, with JAX_MBRNNT_CUDA=ON, for the kernels.",
        stacklevel=2,
    )


def _no_derivative(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "the kernels of jax_mbrnnt give first derivatives in reverse mode; for higher orders "
        "and for forward mode use implementation='xla'"
    )


def _stage(
    name: str,
    result_avals: Callable[..., Sequence[Aval]],
    twin: Callable[..., Any],
    attributes: Callable[..., dict[str, Any]],
    aliases: dict[int, int] | None = None,
    out_of_place_on: tuple[str, ...] = (),
    workspace: Callable[..., Sequence[Aval]] = lambda *_, **__: (),
) -> Callable[..., Any]:
    """Makes a stage's primitive and returns the function that binds it."""
    primitive = Primitive(f"mbrnnt_{name}")
    primitive.multiple_results = True

    def abstract_eval(*avals: Aval, **params: Any) -> Sequence[Aval]:
        _check_batch_shardings(*avals)
        return result_avals(*avals, **params)

    primitive.def_abstract_eval(abstract_eval)
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))

    mlir.register_lowering(primitive, _twin_lowering(twin, "this platform"))
    for platform in ("cpu", "cuda"):
        in_place = {} if platform in out_of_place_on else aliases or {}  # right either way
        if platform in _ffi.MODULES:
            needed = functools.partial(workspace, module=_ffi.MODULES[platform])
            lower = _kernel_lowering(_ffi.TARGETS[name], attributes, in_place, needed)
        else:
            lower = _twin_lowering(twin, platform)
        mlir.register_lowering(primitive, lower, platform=platform)

    def bind(*operands: jax.Array, **params: Any) -> Any:
        def call(*operands: jax.Array) -> Any:
            return primitive.bind(*unify_varying(*operands), **params)

        if not aliases:
            return call(*operands)
        return on_each_device(call, operands[0].ndim - CORE_RANK, *operands)

    def batch(operands: Sequence[Any], dims: Sequence[int | None], **params: Any) -> Any:
        (size,) = {x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None}
        batched = [
            jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
            for x, d in zip(operands, dims, strict=True)
        ]
        results = bind(*batched, **params)
        return results, (0,) * len(results)

    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = _no_derivative

    return bind


# ---- the stages ------------------------------------------------------------------------


def _arc_log_probs_avals(logits: Aval, *_: Aval, emission: Emission, **__: Any) -> list[Aval]:
    num_frames, columns, _ = logits.shape[-CORE_RANK:]
    real = _reference.real_dtype(logits.dtype)
    return [
        _result(logits, (num_frames, columns, len(emission.reads)), real),
        _result(logits, (num_frames, columns, 2 * len(emission.heads)), real),
    ]


def _emission_attributes(emission: Emission) -> dict[str, Any]:
    return {
        "head_sizes": np.asarray(emission.heads, np.int64),
        "classes": np.asarray(emission.reads, np.int32).T.ravel(),  # head after head
    }


def _lattice_avals(arc_log_probs: Aval, *_: Aval, **__: Any) -> list[Aval]:
    losses = _result(arc_log_probs, (), arc_log_probs.dtype)
    return [losses, _result(arc_log_probs, arc_log_probs.shape[-CORE_RANK:], arc_log_probs.dtype)]


def _lattice_workspace(with_posteriors: bool) -> Callable[..., Sequence[Aval]]:
    """As many numbers as the kernels say that they need."""

    def workspace(arc_log_probs: Aval, *_: Aval, module: ModuleType) -> Sequence[Aval]:
        num_frames, columns, num_arcs = arc_log_probs.shape[-CORE_RANK:]
        size = module.lattice_numbers_per_utterance(num_frames, columns, num_arcs, with_posteriors)
        return [_result(arc_log_probs, (size,), arc_log_probs.dtype)]

    return workspace


def _lattice_attributes(arcs: tuple[Arc, ...]) -> dict[str, Any]:
    return {
        "durations": np.asarray([arc.duration for arc in arcs], np.int32),
        "emits": np.asarray([arc.emits for arc in arcs], np.int32),
    }


_arc_log_probs = _stage(
    "arc_log_probs",
    _arc_log_probs_avals,
    _reference.arc_log_probs,
    _emission_attributes,
)

_lattice = _stage(
    "lattice",
    _lattice_avals,
    _reference.lattice,
    _lattice_attributes,
    aliases={0: 1},  # an arc's posterior may take the place of its log-probability
    workspace=_lattice_workspace(with_posteriors=True),
)

_lattice_score = _stage(
    "lattice_score",
    lambda *avals, **params: _lattice_avals(*avals, **params)[:1],
    lambda *operands, **params: [_reference.lattice_score(*operands, **params)],
    _lattice_attributes,
    workspace=_lattice_workspace(with_posteriors=False),
)


def _alignment_avals(arc_log_probs: Aval, *_: Aval, **__: Any) -> list[Aval]:
    num_frames, columns, _ = arc_log_probs.shape[-CORE_RANK:]
    labels, path = (columns - 1,), (num_frames + columns - 1,)
    cores = ((labels, np.int32), (labels, np.int32), (labels, None), (path, np.int32), ((), None))
    return [_result(arc_log_probs, shape, dtype or arc_log_probs.dtype) for shape, dtype in cores]


_lattice_alignment = _stage(
    "lattice_alignment",
    _alignment_avals,
    _reference.lattice_alignment,
    _lattice_attributes,
    workspace=lambda arc_log_probs, *_, module: [  # a number of each node, of double precision
        _result(arc_log_probs, (math.prod(arc_log_probs.shape[-CORE_RANK:-1]),), np.float64)
    ],
)

_logit_gradients = _stage(
    "logit_gradients",
    lambda logits, *_, **__: [_result(logits, logits.shape[-CORE_RANK:], logits.dtype)],
    lambda *operands, **params: [_reference.logit_gradients(*operands, **params)],
    lambda emission, clamped: {**_emission_attributes(emission), "clamped": np.bool_(clamped)},
    aliases={0: 0},  # the gradient overwrites logits that die here
    # XLA's CPU compiler copies logits that are the caller's or a product's before they may be
    # overwritten, and a copy costs more than it saves.
    out_of_place_on=("cpu",),
)


# ---- forward mode ----------------------------------------------------------------------


def _identity(name: str, lowering: Callable[..., Any]) -> Primitive:
    primitive = Primitive(f"mbrnnt_{name}")
    primitive.def_abstract_eval(lambda x, **_: x)
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    mlir.register_lowering(primitive, lowering)
    return primitive


# The operand of a `custom_vjp`. JAX's own error about forward mode does not say what to do
# instead; this one does. Reverse mode transposes the tangent: it never computes or batches it.
_operand = _identity("operand", lambda _, x: [x])
_tangent = _identity("tangent", _no_derivative)
batching.primitive_batchers[_operand] = lambda x, dims: (_operand.bind(*x), dims[0])
batching.primitive_batchers[_tangent] = _no_derivative
ad.primitive_jvps[_operand] = lambda primals, tangents: (
    primals[0],  # itself: what `jit` returns for the backward pass would else be a copy of it
    tangents[0] if isinstance(tangents[0], ad.Zero) else _tangent.bind(*tangents),
)
ad.primitive_transposes[_tangent] = lambda cotangent, _: [cotangent]
ad.primitive_jvps[_tangent] = _no_derivative


def reverse_mode_only(x: jax.Array) -> jax.Array:
    """`x`; an error that names `implementation="xla"` where its forward derivative is asked for."""
    return _operand.bind(x)


_undifferentiated = _identity("undifferentiated", lambda _, x, **__: [x])
batching.primitive_batchers[_undifferentiated] = lambda x, dims, **params: (
    _undifferentiated.bind(*x, **params),
    dims[0],
)


def _refuse(_: Any, __: Any, *, message: str) -> Any:
    raise NotImplementedError(message)


ad.primitive_jvps[_undifferentiated] = _refuse


def without_derivative(x: jax.Array, message: str) -> jax.Array:
    """`x`; an error with this message where any derivative by it is asked for."""
    return _undifferentiated.bind(x, message=message)


def stages(require_kernel: bool) -> Stages:
    """The stages as primitives; with `require_kernel` they refuse to lower to their twins."""
    bound = functools.partial
    return Stages(
        arc_log_probs=bound(_arc_log_probs, require_kernel=require_kernel),
        lattice=bound(_lattice, require_kernel=require_kernel),
        lattice_score=lambda *a, **k: _lattice_score(*a, require_kernel=require_kernel, **k)[0],
        lattice_alignment=bound(_lattice_alignment, require_kernel=require_kernel),
        logit_gradients=lambda *a, **k: _logit_gradients(*a, require_kernel=require_kernel, **k)[0],
    )
