"""The losses of any transducer straight from a joint network: logits a chunk of frames at a time.

Forward, each chunk's logits become arc log-probabilities and are gone; the lattice runs once over
all of them. Backward, each chunk's logits are made again, become their own gradient and are pulled
back through the joint. So the memory is that of one chunk, and the result is that of the whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_mbrnnt import _checks, _primitives, _reference
from jax_mbrnnt._checks import Utterances
from jax_mbrnnt._chunks import (
    Chunks,
    Fixed,
    Joint,
    Operands,
    are_valid,
    hoisted,
    is_float,
    merge,
    split,
)
from jax_mbrnnt._loss import stages_of
from jax_mbrnnt._mesh import unify_varying, zeros_like
from jax_mbrnnt._numbers import Given
from jax_mbrnnt._padding import filler, without_padding
from jax_mbrnnt._program import run, trace
from jax_mbrnnt._stages import Plan, Stages, value

# The logits of a chunk by default: they, their gradient and the joint's activations then stay in
# the last-level cache. That of the CPU is measured (benchmarks/joint.py); a GPU starts a dozen
# kernels for each chunk, which has to be worth it.
CHUNK_BYTES = {"cpu": 4 << 20}
OTHER_CHUNK_BYTES = 24 << 20


# ---- by the kernels: first derivatives in reverse mode ----------------------------------------


def _arcs(
    chunks: Chunks, floats: Operands, fixed: Fixed, stages: Stages
) -> tuple[jax.Array, jax.Array]:
    """Arc log-probabilities and log-normalizers of all frames, chunk by chunk."""
    operands, utterances = merge(floats, fixed.operands), fixed.utterances
    axis = utterances.logit_lengths.ndim

    def step(start: jax.Array, _: jax.Array, carry: tuple[jax.Array, ...]) -> Any:
        inside = chunks.within(utterances, start)
        results = stages.arc_log_probs(
            chunks.logits(chunks.cut_frames(operands, start, axis), fixed.filler, inside),
            *inside,
            fixed.numbers.sigmas,
            emission=chunks.plan.emission,
        )
        update = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=axis
        )
        return tuple(map(update, carry, results))

    shape = chunks.num_frames, chunks.columns
    num_arcs, num_heads = len(chunks.plan.arcs), len(chunks.plan.emission.heads)
    carry = (
        chunks.zeros(utterances, *shape, num_arcs),
        chunks.zeros(utterances, *shape, 2 * num_heads),
    )
    return chunks.loop(utterances, step, carry)


def _scores(chunks: Chunks, floats: Operands, fixed: Fixed, stages: Stages) -> jax.Array:
    arc_log_probs, _ = _arcs(chunks, floats, fixed, stages)
    _, *lengths = fixed.utterances
    losses = stages.lattice_score(arc_log_probs, *lengths, arcs=chunks.plan.arcs)
    return value(losses, fixed.numbers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(chunks, floats, fixed):
    return _scores(chunks, floats, fixed, stages_of(chunks.plan.implementation))


def _loss_forward(chunks, floats, fixed):
    stages = stages_of(chunks.plan.implementation)
    arc_log_probs, log_normalizers = _arcs(chunks, floats, fixed, stages)
    _, *lengths = fixed.utterances
    losses, posteriors = stages.lattice(arc_log_probs, *lengths, arcs=chunks.plan.arcs)
    residuals = floats, fixed, log_normalizers, posteriors
    return value(losses, fixed.numbers), residuals


def _loss_backward(chunks, residuals, cotangents):
    floats, fixed, log_normalizers, posteriors = residuals
    utterances = fixed.utterances
    stages = stages_of(chunks.plan.implementation)
    axis = utterances.logit_lengths.ndim

    def step(start, first, carry):
        inside = chunks.within(utterances, start)
        others = chunks.cut_frames(fixed.operands, start, axis)
        logits, pullback = jax.vjp(
            lambda floats: chunks.logits(merge(floats, others), fixed.filler, inside),
            chunks.cut_frames(floats, start, axis),
        )
        # Frames that the chunk has again with the one before it count there.
        frames = start + jnp.arange(chunks.chunk_frames, dtype=jnp.int32)
        once = jnp.expand_dims(frames >= first, (*range(axis), axis + 1, axis + 2))
        gradient = stages.gradients(
            logits,
            *inside,
            chunks.cut(log_normalizers, start, axis),
            jnp.where(once, chunks.cut(posteriors, start, axis), 0),
            numbers=fixed.numbers,
            cotangents=cotangents,
            plan=chunks.plan,
        )
        (part,) = pullback(gradient)

        def add(total, x):
            return total + x.astype(total.dtype)

        def write(whole, x):
            return jax.lax.dynamic_update_slice_in_dim(whole, x, start, axis)

        return Operands(
            jax.tree.map(add, carry.params, part.params),
            jax.tree.map(write, carry.encoded, part.encoded),
            jax.tree.map(add, carry.predicted, part.predicted),
        )

    def zeros(x):
        wide = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
        return zeros_like(x, wide)

    carry = Operands(
        jax.tree.map(zeros, floats.params),
        jax.tree.map(zeros_like, floats.encoded),
        jax.tree.map(zeros, floats.predicted),
    )
    totals = chunks.loop(utterances, step, carry)
    return jax.tree.map(lambda total, x: total.astype(x.dtype), totals, floats), None


_loss.defvjp(_loss_forward, _loss_backward)


# ---- in pure JAX: derivatives of any order, in both modes ---------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _differentiable_loss(chunks, floats, fixed):
    return _scores(chunks, floats, fixed, _reference.STAGES)


@_differentiable_loss.defjvp
def _differentiable_loss_jvp(chunks, primals, tangents):
    """The tangent is the sum over the chunks of the logits' gradient times their tangent."""
    floats, fixed = primals
    utterances = fixed.utterances
    axis = utterances.logit_lengths.ndim
    size = max(chunks.chunk_frames, 1)
    starts = size * jnp.arange(-(-chunks.num_frames // size), dtype=jnp.int32)

    def stack(x):
        """The frames in chunks along a new first axis; the last frame again after the last."""
        frames = starts[:, None] + jnp.arange(chunks.chunk_frames, dtype=jnp.int32)[None]
        frames = jnp.minimum(frames, chunks.num_frames - 1)
        return jnp.moveaxis(jnp.moveaxis(x, axis, 0)[frames], 1, axis + 1)

    def unstack(x):
        x = jnp.moveaxis(x, 0, axis)
        frames = x.shape[axis] * x.shape[axis + 1]
        x = x.reshape(*x.shape[:axis], frames, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, chunks.num_frames, axis=axis)

    def map_chunks(function, floats, *others):
        """`function(start, logits, inside, *others)` of every chunk; its logits are not kept."""
        operands = merge(floats, fixed.operands)
        # All at once: JAX keeps what the chunks begin with, and what it keeps should be finite.
        lengths = jnp.where(are_valid(utterances, chunks), utterances.logit_lengths, -1)
        encoded = without_padding(operands.encoded, fixed.filler, lengths)

        @jax.checkpoint
        def step(_, chunk):
            start, encoded, *others = chunk
            inside = chunks.within(utterances, start)
            logits = chunks.joint(operands._replace(encoded=encoded))
            return None, function(start, logits, inside, *others)

        xs = jax.tree.map(stack, (encoded, *others))
        return jax.lax.scan(step, None, (starts, *xs))[1]

    def arcs(_, logits, inside):
        return _reference.arc_log_probs(
            logits, *inside, fixed.numbers.sigmas, emission=chunks.plan.emission
        )

    arc_log_probs, log_normalizers = map(unstack, map_chunks(arcs, floats))
    losses, posteriors = _reference.lattice(arc_log_probs, *utterances[1:], arcs=chunks.plan.arcs)

    def share(start, logits, inside, log_normalizers, posteriors):
        frames = start + jnp.arange(chunks.chunk_frames, dtype=jnp.int32)
        there = jnp.expand_dims(frames < chunks.num_frames, (*range(axis), axis + 1, axis + 2))
        posteriors = jnp.where(there, posteriors, 0)
        return _reference.nothing_but_a_tangent(
            logits, *inside, log_normalizers, posteriors, fixed.numbers, chunks.plan
        )

    def total(floats):
        return jnp.sum(map_chunks(share, floats, log_normalizers, posteriors), axis=0)

    _, tangent = jax.jvp(total, (floats,), (tangents[0],))
    return value(losses, fixed.numbers), tangent


# ---- the operands ------------------------------------------------------------------------------


def _unified(*trees: Any) -> Any:
    """Makes all leaves vary over the same axes of a mesh.

    Here, and not where they are used: what is summed over the devices, the gradient of params
    that are the same on all of them, is then summed once, and not for every chunk.
    """
    leaves, structure = jax.tree.flatten(trees)
    return jax.tree.unflatten(structure, unify_varying(*leaves))


def _losses(
    operands: Operands,
    utterances: Utterances,
    given: Given,
    *,
    joint: Joint,
    dtype: Any,
    chunk_frames: int,
    plan: Plan,
) -> jax.Array:
    *batch, num_labels = utterances.labels.shape
    axis, columns = len(batch), num_labels + 1
    leaves = jax.tree.leaves((operands.encoded, operands.predicted))
    num_frames = leaves[0].shape[axis]
    like = next(filter(is_float, leaves), utterances.labels)
    utterances = utterances.settled(like, axis, num_frames, columns, plan.emission.blanks)
    numbers = given.settled(like, axis, dtype)
    operands, utterances, numbers = _unified(operands, utterances, numbers)
    valid = _reference.lengths_are_valid(
        utterances.logit_lengths, utterances.label_lengths, num_frames, columns
    )
    has_nodes = valid & (utterances.logit_lengths > 0)
    predictions = jnp.where(has_nodes, utterances.label_lengths + 1, 0)
    predictions = jnp.where(valid, predictions, -1)
    predicted = operands.predicted
    predicted = without_padding(predicted, filler(predicted, has_nodes), predictions)
    operands = operands._replace(predicted=predicted)

    def cut(operands: Operands) -> Operands:
        first = functools.partial(jax.lax.slice_in_dim, start_index=0, limit_index=chunk_frames)
        chunk = jax.tree.map(functools.partial(first, axis=axis), operands.encoded)
        return operands._replace(encoded=chunk)

    call, operands, logits = hoisted(joint, operands, cut)
    _checks.check_joint_logits(logits, (*batch, chunk_frames, columns))
    chunks = Chunks(
        joint=call,
        num_frames=num_frames,
        chunk_frames=chunk_frames,
        columns=columns,
        dtype=dtype,
        plan=plan,
    )
    floats, others = split(operands)
    fixed = Fixed(others, filler(operands.encoded, has_nodes), utterances, numbers)
    if plan.implementation == "xla":
        return _differentiable_loss(chunks, floats, fixed)
    floats = jax.tree.map(_primitives.reverse_mode_only, floats)
    return _loss(chunks, floats, fixed)


# ---- checks ------------------------------------------------------------------------------------


def _of_one_frame(joint: Joint, operands: Operands, axis: int) -> Any:
    """Shape and dtype of the logits."""

    def one_frame(params: Any, encoded: Any, predicted: Any) -> jax.Array:
        def first(x: jax.Array) -> jax.Array:
            return jax.lax.slice_in_dim(x, 0, min(x.shape[axis], 1), axis=axis)

        return joint(params, jax.tree.map(first, encoded), predicted)

    return trace(one_frame, *operands)[1]


def _default_chunk_frames(frame_shape: tuple[Any, ...], dtype: Any) -> int:
    known = math.prod(size for size in frame_shape if isinstance(size, int))  # not jax.export's
    wanted = CHUNK_BYTES.get(jax.default_backend(), OTHER_CHUNK_BYTES)
    return max(1, wanted // max(known * dtype.itemsize, 1))


def losses(
    joint: Joint,
    params: Any,
    encoded: Any,
    predicted: Any,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None,
    label_lengths: ArrayLike | None,
    *,
    chunk_frames: int | None,
    plan_of: Callable[[int], Plan],
    given: Given,
) -> jax.Array:
    """Checks everything and computes the losses: see `Transducer.joint_loss`.

    `plan_of` is asked when it is known how many scores the joint gives a node.
    """
    _checks.check_joint(joint)
    labels_shape = _checks.check_labels_alone(labels)
    *batch, num_labels = labels_shape
    batch_dims, axis, columns = tuple(batch), len(batch), num_labels + 1
    encoded, num_frames = _checks.check_joint_operand("encoded", encoded, batch_dims, None, "T")
    predicted, _ = _checks.check_joint_operand("predicted", predicted, batch_dims, columns, "U+1")
    _checks.check_known_sizes("encoded", (*batch_dims, num_frames), [num_frames])
    _checks.check_known_sizes("labels", labels_shape, [num_labels])
    operands = Operands(params, encoded, predicted)

    one_frame = _of_one_frame(joint, operands, axis)
    frame_shape = (*batch_dims, min(num_frames, 1), columns)
    num_scores = _checks.check_joint_logits(one_frame, frame_shape)
    plan = plan_of(num_scores)
    logits = jax.ShapeDtypeStruct((*batch_dims, num_frames, columns, num_scores), one_frame.dtype)
    utterances = _checks.check_utterances(
        logits, "logits of the joint", labels, logit_lengths, label_lengths, plan.emission
    )

    if chunk_frames is None:
        shape = (*batch_dims, columns, num_scores)
        chunk_frames = _default_chunk_frames(shape, one_frame.dtype)
    else:
        chunk_frames = _checks.check_chunk_frames(chunk_frames)
    # As many chunks, and as even ones as there can be: the last has few frames once more.
    num_chunks = max(1, -(-num_frames // chunk_frames))
    of_chunks = functools.partial(
        _losses,
        joint=joint,
        dtype=one_frame.dtype,
        chunk_frames=-(-num_frames // num_chunks),
        plan=plan,
    )
    return run(of_chunks, operands, utterances, given.on_device(one_frame.dtype))
