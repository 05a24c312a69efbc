"""The loss straight from the joint network: the logits are made a chunk of frames at a time.

Forward, each chunk's logits become arc log-probabilities and are gone; the lattice runs once over
all of them. Backward, each chunk's logits are made again, become their own gradient and are pulled
back through the joint. So the memory is that of one chunk, and the result is that of the whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_mbrnnt import _checks, _primitives, _reference
from jax_mbrnnt._checks import Implementation, Utterances
from jax_mbrnnt._mesh import unify_varying, zeros_like
from jax_mbrnnt._padding import filler, without_padding
from jax_mbrnnt._program import run, trace
from jax_mbrnnt._reference import Stages
from jax_mbrnnt._spec import Options

Joint = Callable[[Any, Any, Any], jax.Array]

# The logits of a chunk by default: they, their gradient and the joint's activations then stay in
# the last-level cache. That of the CPU is measured (benchmarks/joint.py); a GPU starts a dozen
# kernels for each chunk, which has to be worth it.
CHUNK_BYTES = {"cpu": 4 << 20}
OTHER_CHUNK_BYTES = 24 << 20


class Operands(NamedTuple):
    """What the joint is called with: pytrees of arrays."""

    params: Any
    encoded: Any  # [batch_dims..., T, ...]
    predicted: Any  # [batch_dims..., U+1, ...]


class _Fixed(NamedTuple):
    """What has no derivative."""

    operands: Operands  # their leaves that are integers or random keys; None for the others
    filler: Any  # like one frame of encoded: what stands in for padding
    utterances: Utterances


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """The joint, and the chunks of frames that it is called with."""

    joint: Callable[[Operands], jax.Array]
    num_frames: int  # T
    chunk_frames: int  # C, at most T
    columns: int  # U+1
    num_classes: int  # V
    dtype: Any  # of the logits
    options: Options
    implementation: Implementation

    @property
    def arc_classes(self) -> tuple[int, ...]:
        return self.options.arc_classes(self.num_classes)

    def cut(self, x: jax.Array, start: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, self.chunk_frames, axis)

    def cut_frames(self, operands: Operands, start: jax.Array, axis: int) -> Operands:
        cut = functools.partial(self.cut, start=start, axis=axis)
        return operands._replace(encoded=jax.tree.map(cut, operands.encoded))

    def within(self, utterances: Utterances, start: jax.Array) -> Utterances:
        """The utterances as the chunk sees them; lengths out of range stay so."""
        lengths = jnp.clip(utterances.logit_lengths - start, 0, self.chunk_frames)
        lengths = jnp.where(_are_valid(utterances, self), lengths, -1)
        return utterances._replace(logit_lengths=lengths)

    def logits(self, chunk: Operands, filler: Any, utterances: Utterances) -> jax.Array:
        """The joint's logits of frames that were cut, with the utterances `within` them."""
        encoded = without_padding(chunk.encoded, filler, utterances.logit_lengths)
        return self.joint(chunk._replace(encoded=encoded))

    def zeros(self, utterances: Utterances, *core_shape: int) -> jax.Array:
        """Numbers of every utterance: they vary over a mesh and are sharded as the lengths."""
        dtype = _reference.real_dtype(self.dtype)
        zero = zeros_like(utterances.logit_lengths, dtype)
        zero = jnp.expand_dims(zero, range(zero.ndim, zero.ndim + len(core_shape)))
        return jnp.zeros((*utterances.logit_lengths.shape, *core_shape), dtype) + zero

    def loop(self, utterances: Utterances, step: Callable[..., Any], carry: Any) -> Any:
        """`carry = step(start, first, carry)` for every chunk in which an utterance has frames.

        The last chunk ends with the frames: it starts earlier than at its `first` frame, and
        has some of the chunk before it again. So the last one comes first, and what it writes
        there is written again.
        """
        frames = jnp.where(_are_valid(utterances, self), utterances.logit_lengths, self.num_frames)
        count = -(-_longest(frames) // max(self.chunk_frames, 1))

        def body(i: jax.Array, carry: Any) -> Any:
            first = (count - 1 - i) * self.chunk_frames
            start = jnp.minimum(first, self.num_frames - self.chunk_frames)
            return step(start, first, carry)

        return jax.lax.fori_loop(0, count, body, carry)


def _are_valid(utterances: Utterances, chunks: _Chunks) -> jax.Array:
    _, logit_lengths, label_lengths = utterances
    return _reference.lengths_are_valid(
        logit_lengths, label_lengths, chunks.num_frames, chunks.columns
    )


@jax.custom_batching.custom_vmap
def _longest(frames: jax.Array) -> jax.Array:
    return jnp.max(frames, initial=0)


@_longest.def_vmap
def _longest_of_all(axis_size: int, in_batched: Any, frames: jax.Array) -> tuple[jax.Array, bool]:
    # One number for all that are mapped: a loop whose length differs among them would keep and
    # select its whole state at every step.
    del axis_size, in_batched
    return _longest(frames), False


# ---- what is differentiated ----------------------------------------------------------------


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _split(operands: Operands) -> tuple[Operands, Operands]:
    """Leaves with derivatives, and the others (integers, random keys); None for the rest."""
    floats = jax.tree.map(lambda x: x if _is_float(x) else None, operands)
    fixed = jax.tree.map(lambda x: None if _is_float(x) else x, operands)
    return floats, fixed


def _merge(floats: Operands, fixed: Operands) -> Operands:
    return jax.tree.map(
        lambda x, other: other if x is None else x, floats, fixed, is_leaf=lambda x: x is None
    )


# ---- by the kernels: first derivatives in reverse mode ----------------------------------------


def _arcs(
    chunks: _Chunks, floats: Operands, fixed: _Fixed, stages: Stages
) -> tuple[jax.Array, jax.Array]:
    """Arc log-probabilities and log-normalizers of all frames, chunk by chunk."""
    operands, utterances = _merge(floats, fixed.operands), fixed.utterances
    axis = utterances.logit_lengths.ndim

    def step(start: jax.Array, _: jax.Array, carry: tuple[jax.Array, ...]) -> Any:
        inside = chunks.within(utterances, start)
        results = stages.arc_log_probs(
            chunks.logits(chunks.cut_frames(operands, start, axis), fixed.filler, inside),
            *inside,
            arc_classes=chunks.arc_classes,
            sigma=chunks.options.sigma,
        )
        update = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=axis
        )
        return tuple(map(update, carry, results))

    shape = chunks.num_frames, chunks.columns
    num_arcs = len(chunks.arc_classes)
    carry = chunks.zeros(utterances, *shape, num_arcs), chunks.zeros(utterances, *shape, 2)
    return chunks.loop(utterances, step, carry)


def _scores(chunks: _Chunks, floats: Operands, fixed: _Fixed, stages: Stages) -> jax.Array:
    arc_log_probs, _ = _arcs(chunks, floats, fixed, stages)
    _, *lengths = fixed.utterances
    losses = stages.lattice_score(arc_log_probs, *lengths, arcs=chunks.options.arcs)
    return _reference.value(losses, chunks.options)


def _kernels(chunks: _Chunks) -> Stages:
    return _primitives.stages(require_kernel=chunks.implementation == "ffi")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(chunks, floats, fixed):
    return _scores(chunks, floats, fixed, _kernels(chunks))


def _loss_forward(chunks, floats, fixed):
    stages = _kernels(chunks)
    arc_log_probs, log_normalizers = _arcs(chunks, floats, fixed, stages)
    _, *lengths = fixed.utterances
    losses, posteriors = stages.lattice(arc_log_probs, *lengths, arcs=chunks.options.arcs)
    residuals = floats, fixed, log_normalizers, posteriors
    return _reference.value(losses, chunks.options), residuals


def _loss_backward(chunks, residuals, cotangents):
    floats, fixed, log_normalizers, posteriors = residuals
    utterances = fixed.utterances
    stages = _kernels(chunks)
    axis = utterances.logit_lengths.ndim

    def step(start, first, carry):
        inside = chunks.within(utterances, start)
        others = chunks.cut_frames(fixed.operands, start, axis)
        logits, pullback = jax.vjp(
            lambda floats: chunks.logits(_merge(floats, others), fixed.filler, inside),
            chunks.cut_frames(floats, start, axis),
        )
        # Frames that the chunk has again with the one before it count there.
        frames = start + jnp.arange(chunks.chunk_frames, dtype=jnp.int32)
        once = jnp.expand_dims(frames >= first, (*range(axis), axis + 1, axis + 2))
        gradient = stages.logit_gradients(
            logits,
            *inside,
            chunks.cut(log_normalizers, start, axis),
            jnp.where(once, chunks.cut(posteriors, start, axis), 0),
            cotangents,
            arc_classes=chunks.arc_classes,
            fastemit_lambda=chunks.options.fastemit_lambda,
            clamp=chunks.options.clamp,
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
        operands = _merge(floats, fixed.operands)
        # All at once: JAX keeps what the chunks begin with, and what it keeps should be finite.
        lengths = jnp.where(_are_valid(utterances, chunks), utterances.logit_lengths, -1)
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
            logits, *inside, arc_classes=chunks.arc_classes, sigma=chunks.options.sigma
        )

    arc_log_probs, log_normalizers = map(unstack, map_chunks(arcs, floats))
    losses, posteriors = _reference.lattice(
        arc_log_probs, *utterances[1:], arcs=chunks.options.arcs
    )

    def share(start, logits, inside, log_normalizers, posteriors):
        frames = start + jnp.arange(chunks.chunk_frames, dtype=jnp.int32)
        there = jnp.expand_dims(frames < chunks.num_frames, (*range(axis), axis + 1, axis + 2))
        posteriors = jnp.where(there, posteriors, 0)
        return _reference.nothing_but_a_tangent(
            logits, *inside, log_normalizers, posteriors, chunks.options
        )

    def total(floats):
        return jnp.sum(map_chunks(share, floats, log_normalizers, posteriors), axis=0)

    _, tangent = jax.jvp(total, (floats,), (tangents[0],))
    return _reference.value(losses, chunks.options), tangent


# ---- the operands ------------------------------------------------------------------------------


def _hoisted(
    joint: Joint, operands: Operands, cut: Callable[[Operands], Operands]
) -> tuple[Callable[[Operands], jax.Array], Operands, Any]:
    """Traces the joint once, for a chunk, and makes traced values that it closes over params."""
    closed, logits = trace(joint, *cut(operands))
    traced = [x for x in closed.consts if isinstance(x, jax.core.Tracer)]
    known = [None if isinstance(x, jax.core.Tracer) else x for x in closed.consts]
    jaxpr = closed.jaxpr

    def call(operands: Operands) -> jax.Array:
        params, hoisted = operands.params
        left = iter(hoisted)
        consts = [next(left) if x is None else x for x in known]
        leaves = jax.tree.leaves(operands._replace(params=params))
        (logits,) = jax.core.eval_jaxpr(jaxpr, consts, *leaves)
        return logits

    return call, operands._replace(params=(operands.params, traced)), logits


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
    *,
    joint: Joint,
    num_classes: int,
    chunk_frames: int,
    options: Options,
    implementation: Implementation,
) -> jax.Array:
    *batch, num_labels = utterances.labels.shape
    axis, columns = len(batch), num_labels + 1
    leaves = jax.tree.leaves((operands.encoded, operands.predicted))
    num_frames = leaves[0].shape[axis]
    like = next(filter(_is_float, leaves), utterances.labels)
    shape = num_frames, columns, num_classes
    utterances = utterances.settled(like, axis, shape, options.blanks(num_classes))
    operands, utterances = _unified(operands, utterances)
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

    call, operands, logits = _hoisted(joint, operands, cut)
    _checks.check_joint_logits(logits, (*batch, chunk_frames, columns))
    chunks = _Chunks(
        joint=call,
        num_frames=num_frames,
        chunk_frames=chunk_frames,
        columns=columns,
        num_classes=num_classes,
        dtype=logits.dtype,
        options=options,
        implementation=implementation,
    )
    floats, others = _split(operands)
    fixed = _Fixed(others, filler(operands.encoded, has_nodes), utterances)
    if implementation == "xla":
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


def joint_losses(
    joint: Joint,
    params: Any,
    encoded: Any,
    predicted: Any,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None,
    label_lengths: ArrayLike | None,
    *,
    chunk_frames: int | None,
    options: Options,
    implementation: Implementation,
) -> jax.Array:
    """Checks everything and computes the losses: see `multiblank_rnnt_joint_loss`."""
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
    num_classes = _checks.check_joint_logits(one_frame, frame_shape)
    blanks = options.blanks(num_classes)  # raises if one falls outside [0, V)
    logits = jax.ShapeDtypeStruct((*batch_dims, num_frames, columns, num_classes), one_frame.dtype)
    utterances = _checks.check_utterances(
        logits, "logits of the joint", labels, logit_lengths, label_lengths, blanks
    )

    if chunk_frames is None:
        shape = (*batch_dims, columns, num_classes)
        chunk_frames = _default_chunk_frames(shape, one_frame.dtype)
    else:
        chunk_frames = _checks.check_chunk_frames(chunk_frames)
    # As many chunks, and as even ones as there can be: the last has few frames once more.
    num_chunks = max(1, -(-num_frames // chunk_frames))
    losses = functools.partial(
        _losses,
        joint=joint,
        num_classes=num_classes,
        chunk_frames=-(-num_frames // num_chunks),
        options=options,
        implementation=implementation,
    )
    return run(losses, operands, utterances)


# ---- public ------------------------------------------------------------------------------------


def multiblank_rnnt_joint_loss(
    joint: Joint,
    params: Any,
    encoded: Any,
    predicted: Any,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    chunk_frames: int | None = None,
    blank_id: int = -1,
    big_blank_durations: Sequence[int] = (),
    sigma: float = 0.0,
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
    implementation: Implementation = None,
) -> jax.Array:
    """`multiblank_rnnt_loss` of a joint network's logits, which are never all there at once.

    The same losses and gradients as `multiblank_rnnt_loss(joint(params, encoded, predicted), ...)`,
    in the memory of a chunk of frames: each chunk's logits are made when the loss is computed and
    made again for the gradient. Differentiable in `params`, `encoded` and `predicted`, and usable
    under `jit`, `vmap`, `pmap`, `shard_map` and batch-sharded `jit`. `jit` the step: without, every
    call compiles, as the joint is traced at each.

    Args:
      joint: `joint(params, encoded, predicted)` returns logits `[batch_dims..., C, U+1, V]` for
        `encoded` cut to C of its frames, for any C; float32, float64, bfloat16 or float16. A node's
        logits depend on that node's frame and label alone. Any function of JAX; what it closes over
        counts as params.
      params: a pytree of arrays.
      encoded: `[batch_dims..., T, ...]`, an array or a pytree of them: what the joint needs of each
        frame. Integers and random keys, one for each frame, get no gradient; so does dropout see
        the same keys again.
      predicted: `[batch_dims..., U+1, ...]`, likewise of each label.
      labels: `[batch_dims..., U]` integers in [0, V), none of them a blank.
      logit_lengths: `[batch_dims...]` integers, the frames of each utterance, 0 to T. All T if
        None. Frames beyond it are ignored, whatever they hold, and get gradient 0; the joint sees
        the utterance's first frame in their place, so that nothing of them reaches the params.
      label_lengths: `[batch_dims...]` integers, the labels of each utterance, 0 to U. All U if
        None.
      chunk_frames: the most frames C that the joint is called with. By default as many as keep a
        chunk's logits in a few megabytes, and so in a cache.
      blank_id: see `multiblank_rnnt_loss`, as the following.
      big_blank_durations: frames that each big blank skips.
      sigma: logit under-normalisation.
      fastemit_lambda: FastEmit's lambda.
      clamp: bounds each element of the logits' gradient.
      implementation: None for the best that there is on the platform, "ffi" to insist on the
        kernels, "xla" for pure JAX (any platform, any order and mode of derivative).

    Returns:
      Losses `[batch_dims...]` in nats, float32 (float64 for float64 logits), with the same answers
      as `multiblank_rnnt_loss` for utterances that are impossible, poisoned or empty.

    Raises:
      TypeError: for a dtype other than the above.
      ValueError: for shapes that do not match, options out of range, and, where labels and
        lengths are not traced, for a label or length out of range.

    Source: Xu et al., "Multi-blank Transducers for Speech Recognition", arXiv 2211.03541, eq. 3
    to 6. That logits may be made anew where they are needed: Chen et al., "Training Deep Nets with
    Sublinear Memory Cost", arXiv 1604.06174.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import multiblank_rnnt_joint_loss
      >>> def joint(params, encoded, predicted):
      ...     hidden = jnp.tanh(encoded[:, :, None] + predicted[:, None])
      ...     return hidden @ params["kernel"] + params["bias"]
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> params = {"kernel": jax.random.normal(keys[0], (16, 32)), "bias": jnp.zeros(32)}
      >>> encoded = jax.random.normal(keys[1], (2, 50, 16))
      >>> predicted = jax.random.normal(keys[2], (2, 11, 16))
      >>> labels = jax.random.randint(keys[3], (2, 10), 0, 28)
      >>> def mean_loss(params, encoded, predicted):
      ...     losses = multiblank_rnnt_joint_loss(
      ...         joint,
      ...         params,
      ...         encoded,
      ...         predicted,
      ...         labels,
      ...         logit_lengths=jnp.array([50, 40]),
      ...         label_lengths=jnp.array([10, 7]),
      ...         big_blank_durations=(2, 4, 8),
      ...         sigma=0.05,
      ...     )
      ...     return losses.mean()
      >>> step = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1, 2)))
      >>> value, gradients = step(params, encoded, predicted)
      >>> gradients[0]["kernel"].shape
      (16, 32)
    """
    _checks.check_implementation(implementation)
    options = Options(
        blank_id=blank_id,
        big_blank_durations=tuple(big_blank_durations),
        sigma=sigma,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
    )
    return joint_losses(
        joint,
        params,
        encoded,
        predicted,
        labels,
        logit_lengths,
        label_lengths,
        chunk_frames=chunk_frames,
        options=options,
        implementation=implementation,
    )


def rnnt_joint_loss(
    joint: Joint,
    params: Any,
    encoded: Any,
    predicted: Any,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    chunk_frames: int | None = None,
    blank_id: int = -1,
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
    implementation: Implementation = None,
) -> jax.Array:
    """`rnnt_loss` of a joint network: `multiblank_rnnt_joint_loss` without big blanks.

    Args:
      joint: `joint(params, encoded, predicted)` returns logits `[batch_dims..., C, U+1, V]`.
      params: a pytree of arrays.
      encoded: `[batch_dims..., T, ...]`, an array or a pytree of them.
      predicted: `[batch_dims..., U+1, ...]`, an array or a pytree of them.
      labels: `[batch_dims..., U]`.
      logit_lengths: `[batch_dims...]`; all T if None.
      label_lengths: `[batch_dims...]`; all U if None.
      chunk_frames: see `multiblank_rnnt_joint_loss`.
      blank_id: class of the blank; negative counts from the end.
      fastemit_lambda: see `multiblank_rnnt_loss`.
      clamp: see `multiblank_rnnt_loss`.
      implementation: see `multiblank_rnnt_loss`.

    Returns:
      Losses `[batch_dims...]` in nats.

    Raises:
      TypeError, ValueError: as `multiblank_rnnt_joint_loss`.

    Source: Graves, "Sequence Transduction with Recurrent Neural Networks", arXiv 1211.3711,
    eq. 16 to 20.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import rnnt_joint_loss
      >>> # Uniform logits, one label: two alignments of three arcs, each of probability 1/3.
      >>> def joint(bias, encoded, predicted):
      ...     return encoded[:, None] + predicted + bias
      >>> loss = rnnt_joint_loss(
      ...     joint, jnp.zeros(3), jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.array([0])
      ... )
      >>> bool(jnp.allclose(loss, -jnp.log(2 / 3**3)))
      True
    """
    return multiblank_rnnt_joint_loss(
        joint,
        params,
        encoded,
        predicted,
        labels,
        logit_lengths,
        label_lengths,
        chunk_frames=chunk_frames,
        blank_id=blank_id,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        implementation=implementation,
    )
