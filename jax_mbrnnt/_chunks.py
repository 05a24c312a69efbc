"""A joint network that is called with a chunk of frames at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_mbrnnt import _reference
from jax_mbrnnt._checks import Utterances
from jax_mbrnnt._mesh import zeros_like
from jax_mbrnnt._padding import without_padding
from jax_mbrnnt._program import trace
from jax_mbrnnt._stages import Numbers, Plan

Joint = Callable[[Any, Any, Any], jax.Array]


class Operands(NamedTuple):
    """What the joint is called with: pytrees of arrays."""

    params: Any
    encoded: Any  # [batch_dims..., T, ...]
    predicted: Any  # [batch_dims..., U+1, ...]


class Fixed(NamedTuple):
    """What has no derivative."""

    operands: Operands  # their leaves that are integers or random keys; None for the others
    filler: Any  # like one frame of encoded: what stands in for padding
    utterances: Utterances
    numbers: Numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Chunks:
    """The joint, and the chunks of frames that it is called with."""

    joint: Callable[[Operands], jax.Array]
    num_frames: int  # T
    chunk_frames: int  # C, at most T
    columns: int  # U+1
    dtype: Any  # of the logits
    plan: Plan

    def cut(self, x: jax.Array, start: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, self.chunk_frames, axis)

    def cut_frames(self, operands: Operands, start: jax.Array, axis: int) -> Operands:
        cut = functools.partial(self.cut, start=start, axis=axis)
        return operands._replace(encoded=jax.tree.map(cut, operands.encoded))

    def within(self, utterances: Utterances, start: jax.Array) -> Utterances:
        """The utterances as the chunk sees them; lengths out of range stay so."""
        lengths = jnp.clip(utterances.logit_lengths - start, 0, self.chunk_frames)
        lengths = jnp.where(are_valid(utterances, self), lengths, -1)
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
        frames = jnp.where(are_valid(utterances, self), utterances.logit_lengths, self.num_frames)
        count = -(-_longest(frames) // max(self.chunk_frames, 1))

        def body(i: jax.Array, carry: Any) -> Any:
            first = (count - 1 - i) * self.chunk_frames
            start = jnp.minimum(first, self.num_frames - self.chunk_frames)
            return step(start, first, carry)

        return jax.lax.fori_loop(0, count, body, carry)


def are_valid(utterances: Utterances, chunks: Chunks) -> jax.Array:
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


def is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def split(operands: Operands) -> tuple[Operands, Operands]:
    """Leaves with derivatives, and the others (integers, random keys); None for the rest."""
    floats = jax.tree.map(lambda x: x if is_float(x) else None, operands)
    fixed = jax.tree.map(lambda x: None if is_float(x) else x, operands)
    return floats, fixed


def merge(floats: Operands, fixed: Operands) -> Operands:
    return jax.tree.map(
        lambda x, other: other if x is None else x, floats, fixed, is_leaf=lambda x: x is None
    )


def hoisted(
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
