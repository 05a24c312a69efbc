"""Greedy decoding that skips frames as the model asks for it.

A big blank, or a predicted duration, says that nothing more is spoken for the next few frames, so
the joint need not be evaluated there: that is what a multi-blank transducer or a TDT is trained
for. The saving survives batching only if no utterance waits for another one, so every utterance
keeps its own place in time here: one iteration of the loop evaluates the joint once for the whole
batch, each utterance at its own frame.

Nothing in this module knows how the logits are made. The joint and the prediction network are
functions, and the state of the prediction network is any pytree.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jax_mbrnnt import _checks
from jax_mbrnnt._program import run
from jax_mbrnnt.arcs import as_integer
from jax_mbrnnt.decoding.search import (
    Joint,
    Predict,
    PyTree,
    at,
    check_functions,
    lengths_in_range,
    put,
    select,
    start_label_of,
)
from jax_mbrnnt.decoding.step import Steps
from jax_mbrnnt.transducers import Transducer

_INT32_MAX = 2**31 - 1


class GreedyDecoding(NamedTuple):
    """What `greedy_decode` found.

    Attributes:
      labels: `[B, max_labels]` int32, the label classes; -1 from `label_lengths` on.
      label_lengths: `[B]` int32, how many labels were emitted.
      frames: `[B, max_labels]` int32, the frame at which each label was emitted; -1 as in `labels`.
      durations: `[B, max_labels]` int32, the frames that each label was said to take, 0 where they
        take none; -1 as in `labels`.
      log_probs: `[B]` float32, the sum of the log-probabilities of the arcs taken, without any
        logit under-normalisation. NaN if a NaN or a +inf was among the logits on the way, or if the
        utterance's length was out of range.
      joint_evaluations: `[B]` int32, at how many nodes of its lattice the utterance needed the
        joint.
    """

    labels: jax.Array
    label_lengths: jax.Array
    frames: jax.Array
    durations: jax.Array
    log_probs: jax.Array
    joint_evaluations: jax.Array


class _Place(NamedTuple):
    """Where each utterance of the batch stands between two evaluations of the joint."""

    frame: jax.Array  # [B]
    symbols: jax.Array  # [B], labels of no frames at this frame so far
    prediction: PyTree  # of [B, ...]
    state: PyTree  # of [B, ...]
    decoding: GreedyDecoding


def greedy_decode(
    transducer: Transducer,
    joint: Joint,
    predict: Predict,
    encoded: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    *,
    initial_state: PyTree,
    start_label: int | None = None,
    max_symbols_per_frame: int = 10,
    max_labels: int | None = None,
) -> GreedyDecoding:
    """Decodes a batch of utterances, at every node along the most probable arc.

    An arc moves an utterance on by its duration, beyond the last frame to the end; by none it stays
    at the frame. Each head of the scores decides by its own maximum: of TDT one the token and one
    the duration, where a blank moves by one frame if the duration is 0. Classes that no arc reads
    together move it by one frame, too, and emit nothing. No utterance waits for another: the joint
    is evaluated as often as the slowest utterance needs it.

    The functions are traced at every call, and called eagerly the search is compiled anew each
    time: decode under your own `jax.jit`, with the parameters as arguments of the jitted function;
    `joint` and `predict` may close over them. `jax.vmap` and batch-sharded inputs work too.

    Args:
      transducer: what the scores mean, a `MultiblankRNNT` or a `TDT`, say.
      joint: `(encoded_frame [B, H...], prediction) -> logits [B, V]`, where `encoded_frame` holds
        one frame of every utterance. Unnormalised logits and log-probabilities are both fine.
      predict: `(labels [B] int32, state) -> (prediction, state)`, both pytrees of `[B, ...]`
        arrays. It is called once with `start_label` and `initial_state`, and then after each
        evaluation of the joint for the whole batch; utterances that emitted nothing keep their
        prediction and state (and are passed `start_label`).
      encoded: `[B, T, H...]`, the output of the encoder.
      logit_lengths: `[B]` integers, the valid frames of each utterance; all of them if None.
      initial_state: the prediction network's state before `start_label`; `()` if it has none.
      start_label: the label that starts every utterance, a class of the first head; that of the
        standard blank if None.
      max_symbols_per_frame: after so many labels of duration 0 at one frame the utterance goes on
        to the next frame, without a further evaluation of the joint and at no cost in
        log-probability. Every jump restarts the count.
      max_labels: an utterance ends when it has emitted this many labels. If None,
        `T * max_symbols_per_frame`, which no utterance can exceed.

    Returns:
      A `GreedyDecoding`.

    Raises:
      TypeError: `logit_lengths` or an option are not integers, or the logits of `joint` not
        floating-point.
      ValueError: an argument has a wrong shape or value, or the logits of `joint` are not `[B, V]`.

    Source: Xu et al., "Multi-blank Transducers for Speech Recognition", arXiv 2211.03541, and for
    TDT arXiv 2304.06795, by the rules of NeMo's batched decoders.

    Example:
      A joint that adds two tables, and a prediction network that knows the last label alone:

      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import MultiblankRNNT, greedy_decode
      >>> transducer = MultiblankRNNT(big_blank_durations=(2, 4))
      >>> table = jax.random.normal(jax.random.key(0), (6, 6))
      >>> @jax.jit
      ... def decode(table, encoded, logit_lengths):
      ...     return greedy_decode(
      ...         transducer,
      ...         lambda frame, prediction: frame + prediction,
      ...         lambda labels, state: (table[labels], state),
      ...         encoded,
      ...         logit_lengths,
      ...         initial_state=(),
      ...     )
      >>> encoded = jax.random.normal(jax.random.key(1), (2, 50, 6))
      >>> decoding = decode(table, encoded, jnp.array([50, 30]))
      >>> hypothesis = decoding.labels[0, : decoding.label_lengths[0]]
    """
    if not isinstance(transducer, Transducer):
        raise TypeError(
            f"transducer: expected a Transducer, as MultiblankRNNT or TDT are, got {transducer!r}"
        )
    encoded = _checks.as_array(encoded)
    if encoded.ndim < 3:
        hint = "; a batch of one utterance is encoded[None]" if encoded.ndim == 2 else ""
        raise ValueError(f"encoded: expected shape [B, T, H...], got {encoded.shape}{hint}")
    batch, frames = encoded.shape[:2]
    _checks.check_known_sizes("encoded", encoded.shape, encoded.shape[1:])
    lengths = _checks.check_lengths("logit_lengths", logit_lengths, (batch,), frames)
    max_symbols_per_frame = as_integer("max_symbols_per_frame", max_symbols_per_frame)
    if max_symbols_per_frame < 1:
        raise ValueError(f"max_symbols_per_frame: expected at least 1, got {max_symbols_per_frame}")
    if max_labels is None:
        max_labels = frames * max_symbols_per_frame
    max_labels = as_integer("max_labels", max_labels)
    if max_labels < 0:
        raise ValueError(f"max_labels: expected at least 0, got {max_labels}")
    if max_labels > _INT32_MAX:
        raise ValueError(
            f"max_labels: expected at most {_INT32_MAX}, got {max_labels}; by default it is "
            "T * max_symbols_per_frame"
        )
    search = partial(
        _search,
        transducer,
        joint,
        predict,
        start_label=start_label,
        max_symbols_per_frame=min(max_symbols_per_frame, _INT32_MAX),
        max_labels=max_labels,
    )
    return run(search, encoded, lengths, initial_state)


def _search(
    transducer: Transducer,
    joint: Joint,
    predict: Predict,
    encoded: jax.Array,
    lengths: jax.Array | None,
    initial_state: PyTree,
    *,
    start_label: int | None,
    max_symbols_per_frame: int,
    max_labels: int,
) -> GreedyDecoding:
    batch, frames = encoded.shape[:2]
    lengths, in_range = lengths_in_range(lengths, encoded)
    if frames == 0:  # Nothing is decoded, but the loop still needs a frame to be compiled with.
        encoded = jnp.zeros((batch, 1, *encoded.shape[2:]), encoded.dtype)

    plan = transducer.plan(check_functions(joint, predict, encoded, initial_state))
    steps = Steps(plan)
    start = start_label_of(start_label, plan.emission)

    def unfinished(search: _Place) -> jax.Array:
        return (search.frame < lengths) & (search.decoding.label_lengths < max_labels)

    def advance(search: _Place) -> _Place:
        active = unfinished(search)
        found = search.decoding
        logits = joint(at(encoded, search.frame), search.prediction)
        step = steps.best(logits)

        emits = active & step.emits
        symbols = jnp.where(emits & (step.duration == 0), search.symbols + 1, 0)
        is_full = symbols == max_symbols_per_frame
        jump = jnp.where(is_full, 1, step.duration)

        # Outside the buffer nothing is written: that is where the others put what they have.
        place = jnp.where(emits, found.label_lengths, max_labels)
        prediction, state = predict(jnp.where(emits, step.label, start), search.state)
        return _Place(
            # To the end at most: a sum of any two numbers of frames might overflow.
            frame=search.frame + jnp.where(active, jnp.minimum(jump, lengths - search.frame), 0),
            symbols=jnp.where(is_full, 0, symbols),
            prediction=select(emits, prediction, search.prediction),
            state=select(emits, state, search.state),
            decoding=GreedyDecoding(
                labels=put(found.labels, place, step.label),
                label_lengths=found.label_lengths + emits.astype(jnp.int32),
                frames=put(found.frames, place, search.frame),
                durations=put(found.durations, place, step.duration),
                log_probs=found.log_probs + jnp.where(active, step.log_prob, 0.0),
                joint_evaluations=found.joint_evaluations + active.astype(jnp.int32),
            ),
        )

    # Under `shard_map` the loop's state has to vary over the mesh from the start, as its results
    # do. Hence all of it is selected, between equal values, by something made of `encoded`.
    true = jnp.all(encoded[:, :0] == 0, axis=tuple(range(1, encoded.ndim)))  # All of nothing.
    in_range &= true
    zeros = jnp.where(in_range, 0, 0).astype(jnp.int32)
    prediction, state = predict(jnp.full_like(zeros, start), initial_state)
    nothing = jnp.broadcast_to(zeros[:, None] - 1, (batch, max_labels))
    search = _Place(
        frame=zeros,
        symbols=zeros,
        prediction=select(in_range, prediction, prediction),
        state=select(in_range, state, state),
        decoding=GreedyDecoding(
            labels=nothing,
            label_lengths=zeros,
            frames=nothing,
            durations=nothing,
            log_probs=jnp.where(in_range, 0.0, jnp.nan).astype(jnp.float32),
            joint_evaluations=zeros,
        ),
    )
    return lax.while_loop(lambda search: jnp.any(unfinished(search)), advance, search).decoding
