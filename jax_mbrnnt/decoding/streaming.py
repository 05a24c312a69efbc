"""Greedy recognition of speech that is not over yet, a chunk of frames at a time."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jax_mbrnnt import _checks
from jax_mbrnnt._mesh import zeros_like
from jax_mbrnnt._program import run
from jax_mbrnnt.decoding.result import GreedyDecoding, nothing_found
from jax_mbrnnt.decoding.search import (
    Joint,
    Predict,
    PyTree,
    at_least,
    check_transducer,
    searchable,
    select,
    true_of,
)
from jax_mbrnnt.decoding.walk import Place, make_walk
from jax_mbrnnt.transducers import Transducer


class StreamCarry(NamedTuple):
    """Where each stream of a batch stands between two chunks. A pytree of arrays.

    Attributes:
      prediction: of `[B, ...]` arrays, what `predict` returned for the last label.
      state: likewise its state.
      ahead: `[B]` int32, frames of those to come that the last jump takes.
      frames: `[B]` int32, frames that there were.
      log_probs: `[B]` float32, the sum over the arcs taken since the stream began.
      joint_evaluations: `[B]` int32, likewise the nodes.
      is_new: `[B]`, whether the prediction network has yet to see the start label.
    """

    prediction: PyTree
    state: PyTree
    ahead: jax.Array
    frames: jax.Array
    log_probs: jax.Array
    joint_evaluations: jax.Array
    is_new: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class GreedyStream:
    """`greedy_decode` for a batch of streams that are heard a chunk of frames at a time.

    However a stream is cut, its labels, frames, durations and numbers of nodes are those of
    `greedy_decode` for the whole of it, and the log-probabilities too, but for roundings where the
    joint rounds otherwise for another number of rows. What has to be remembered between two chunks
    is in a carry: the prediction network's state, and the frames that a big blank or a duration
    still takes beyond the chunk. (No frame is left half searched: the last one of a chunk has all
    its labels when a step returns.)

    Each stream of the batch is a slot of its own: it goes on by as many frames as its
    `chunk_lengths` say, by none if it has nothing new, and `reset` lets another one begin in its
    place.

    It holds functions and options, no state, and costs nothing to make: make it inside of the
    function that you `jit`, where `joint` and `predict` may close over the parameters.

    Its fields are arguments of `greedy_decode`, and mean the same, but for one.

    Attributes:
      max_labels: room for the labels of a chunk of C frames. If None, `C * max_symbols_per_frame`,
        which is never too little. A slot whose chunk has more leaves the rest of the chunk out, and
        its log-probabilities are NaN from there on.

    Source: the searches are those of `greedy_decode`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import GreedyStream, MultiblankRNNT
      >>> table = jax.random.normal(jax.random.key(0), (6, 6))
      >>> def stream(table):
      ...     return GreedyStream(
      ...         MultiblankRNNT(big_blank_durations=(2, 4)),
      ...         lambda frame, prediction: frame + prediction,
      ...         lambda labels, state: (table[labels], state),
      ...         initial_state=(),
      ...     )
      >>> step = jax.jit(lambda table, carry, chunk: stream(table).step(carry, chunk))
      >>> encoded = jax.random.normal(jax.random.key(1), (2, 60, 6))
      >>> carry, labels = stream(table).init(2), [[], []]
      >>> for chunk in jnp.split(encoded, 3, axis=1):
      ...     heard, carry = step(table, carry, chunk)
      ...     labels = [old + new for old, new in zip(labels, heard.tolist())]
    """

    transducer: Transducer
    joint: Joint
    predict: Predict
    _: dataclasses.KW_ONLY
    initial_state: PyTree
    start_label: int | None = None
    max_symbols_per_frame: int = 10
    max_labels: int | None = None
    max_duration: int | None = None
    window: int | None = None
    quorum: float | None = None
    lanes: int | None = None

    def init(self, batch: int) -> StreamCarry:
        """The carry of so many streams that begin; `ValueError` if the initial state has others."""
        for x in jax.tree.leaves(self.initial_state):
            if x.shape[:1] != (batch,):
                raise ValueError(
                    "initial_state: expected arrays that begin with the batch dimension "
                    f"{batch}, got one of shape {x.shape}"
                )
        labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
        first = jax.eval_shape(self.predict, labels, self.initial_state)
        prediction, state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        # An array each: one that is there twice cannot be donated.
        return StreamCarry(
            prediction=prediction,
            state=state,
            ahead=jnp.zeros((batch,), jnp.int32),
            frames=jnp.zeros((batch,), jnp.int32),
            log_probs=jnp.zeros((batch,), jnp.float32),
            joint_evaluations=jnp.zeros((batch,), jnp.int32),
            is_new=jnp.ones((batch,), bool),
        )

    def reset(self, carry: StreamCarry, mask: ArrayLike) -> StreamCarry:
        """The carry in which new streams begin in the slots where `mask` `[B]` holds."""
        mask = jnp.asarray(mask)
        if mask.dtype != bool or mask.shape != carry.is_new.shape:
            raise ValueError(
                f"mask: expected booleans of shape {carry.is_new.shape}, got {mask.dtype} of shape "
                f"{mask.shape}"
            )

        def cleared(x: jax.Array) -> jax.Array:
            return jnp.where(mask, jnp.zeros_like(x), x)

        # The prediction and its state are replaced when the next chunk is here.
        return StreamCarry(
            prediction=carry.prediction,
            state=carry.state,
            ahead=cleared(carry.ahead),
            frames=cleared(carry.frames),
            log_probs=cleared(carry.log_probs),
            joint_evaluations=cleared(carry.joint_evaluations),
            is_new=carry.is_new | mask,
        )

    def step(
        self, carry: StreamCarry, encoded_chunk: ArrayLike, chunk_lengths: ArrayLike | None = None
    ) -> tuple[GreedyDecoding, StreamCarry]:
        """The next frames of every stream.

        Args:
          carry: from `init`, `reset` or the last step. It may be donated.
          encoded_chunk: `[B, C, H...]`, C frames of the encoder for every slot, padding included.
            Each C compiles a program of its own: keep to one, and pad.
          chunk_lengths: `[B]` integers, how many of them are valid, 0 for a stream that has nothing
            new or is over; all if None.

        Returns:
          The labels found in these frames, and the carry for the next. Of the `GreedyDecoding`,
          `frames` counts from the beginning of the stream, and `log_probs` and `joint_evaluations`
          are sums since then; all the rest is of this chunk. Log-probabilities are NaN until the
          slot is reset if a logit on the way was NaN or +inf or, under `jit`, a length out of
          range; other slots notice nothing of it.

        Raises:
          TypeError, ValueError: as `greedy_decode`, and for a carry of another batch.
        """
        check_transducer(self.transducer)
        chunk = _checks.as_array(encoded_chunk)
        if chunk.ndim < 3:
            raise ValueError(f"encoded_chunk: expected shape [B, C, H...], got {chunk.shape}")
        _checks.check_known_sizes("encoded_chunk", chunk.shape, chunk.shape[1:])
        batch, frames = chunk.shape[:2]
        if carry.is_new.shape != (batch,):
            raise ValueError(
                f"carry: expected one of {batch} streams to match encoded_chunk {chunk.shape}, got "
                f"one of shape {carry.is_new.shape}"
            )
        lengths = _checks.check_lengths("chunk_lengths", chunk_lengths, (batch,), frames)
        return run(self._step, carry, chunk, lengths, self.initial_state)

    def _step(
        self,
        carry: StreamCarry,
        chunk: jax.Array,
        lengths: jax.Array | None,
        initial_state: PyTree,
    ) -> tuple[GreedyDecoding, StreamCarry]:
        frames, max_labels = chunk.shape[1], self.max_labels
        if max_labels is None:
            most = at_least(1, "max_symbols_per_frame", self.max_symbols_per_frame)
            max_labels = frames * most
        max_labels = at_least(0, "max_labels", max_labels)
        chunk, lengths, in_range = searchable(lengths, chunk)
        walk = make_walk(
            self.transducer,
            self.joint,
            self.predict,
            chunk,
            initial_state,
            start_label=self.start_label,
            max_symbols_per_frame=self.max_symbols_per_frame,
            max_duration=self.max_duration,
            window=self.window,
            quorum=self.quorum,
            lanes=self.lanes,
        )
        true = true_of(chunk)  # as in `greedy_decode`: all has to vary as `chunk` does
        carry = select(true, carry, carry)
        zeros = jnp.where(true, 0, 0).astype(jnp.int32)

        def begin(carry: StreamCarry) -> list[PyTree]:
            labels = zeros_like(carry.frames) + walk.start_label
            first = self.predict(labels, initial_state)
            return select(carry.is_new, list(first), [carry.prediction, carry.state])

        is_any_new = jnp.any(carry.is_new)
        prediction, state = lax.cond(
            is_any_new, begin, lambda carry: [carry.prediction, carry.state], carry
        )
        log_probs = jnp.where(in_range, carry.log_probs, jnp.nan)
        found = nothing_found(zeros, log_probs, max_labels)._replace(
            joint_evaluations=carry.joint_evaluations,
            prediction_steps=zeros + is_any_new.astype(jnp.int32),
        )
        place = Place(carry.ahead, zeros, zeros - 1, prediction, state, found)
        place = walk(chunk, lengths, place, carry.frames)
        left_out = place.frame < lengths
        found = place.found
        found = found._replace(log_probs=jnp.where(left_out, jnp.nan, found.log_probs))
        return found, StreamCarry(
            prediction=place.prediction,
            state=place.state,
            ahead=jnp.maximum(place.frame - lengths, 0),
            frames=carry.frames + lengths,
            log_probs=found.log_probs,
            joint_evaluations=found.joint_evaluations,
            is_new=zeros_like(carry.is_new),
        )
