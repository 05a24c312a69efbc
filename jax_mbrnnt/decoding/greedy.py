"""Greedy decoding that skips frames as the model asks for it.

A big blank, or a predicted duration, says that nothing more is spoken for the next few frames, so
the joint need not be evaluated there: that is what a multi-blank transducer or a TDT is trained
for. The saving survives batching only if no utterance waits for another one, so every utterance
keeps its own place in time: `walk` is how.

Nothing in this module knows how the logits are made. The joint and the prediction network are
functions, and the state of the prediction network is any pytree.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_mbrnnt.decoding.result import GreedyDecoding, nothing_found
from jax_mbrnnt.decoding.search import (
    Joint,
    Predict,
    PyTree,
    Speech,
    at_least,
    check_transducer,
    searchable,
    select,
    true_of,
)
from jax_mbrnnt.decoding.walk import Place, make_walk
from jax_mbrnnt.transducers import Transducer

_INT32_MAX = 2**31 - 1


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
    max_duration: int | None = None,
    window: int | None = None,
    quorum: float | None = None,
    lanes: int | None = None,
) -> GreedyDecoding:
    """Decodes a batch of utterances, at every node along the most probable arc.

    An arc moves an utterance on by its duration, beyond the last frame to the end; by none it stays
    at the frame. Each head of the scores decides by its own maximum: of TDT one the token and one
    the duration, where a blank moves by one frame if the duration is 0. Classes that no arc reads
    together move it by one frame, too, and emit nothing. Each utterance has its own place in time.
    The joint is evaluated for a `window` of frames at once, and the prediction network where labels
    were found alone; how the search goes about it changes its cost, not what it finds.

    The functions are traced at every call, and called eagerly the search is compiled anew each
    time: decode under your own `jax.jit`, with the parameters as arguments of the jitted function;
    `joint` and `predict` may close over them. `jax.vmap` and batch-sharded inputs work too.

    Args:
      transducer: what the scores mean, a `MultiblankRNNT` or a `TDT`, say.
      joint: `(encoded_frame [B, H...], prediction) -> logits [B, V]`, where `encoded_frame` holds
        one frame of every utterance. Unnormalised logits and log-probabilities are both fine.
      predict: `(labels [B] int32, state) -> (prediction, state)`, both pytrees of `[B, ...]`
        arrays. It is called with `start_label` and `initial_state`, and then for the labels found;
        utterances that have none keep their prediction and state (and are passed `start_label`).
      encoded: `[B, T, H...]`, the output of the encoder. `[T, H]` is one utterance: the length, the
        initial state and the result are without a batch dimension then, too, while `joint` and
        `predict` see a batch of one.
      logit_lengths: `[B]` integers, the valid frames of each utterance; all of them if None.
      initial_state: the prediction network's state before `start_label`; `()` if it has none.
      start_label: the label that starts every utterance, a class of the first head; that of the
        standard blank if None.
      max_symbols_per_frame: after so many labels of duration 0 at one frame the utterance goes on
        to the next frame, without a further evaluation of the joint and at no cost in
        log-probability. Every jump restarts the count.
      max_labels: an utterance ends when it has emitted this many labels. If None,
        `T * max_symbols_per_frame`, which no utterance can exceed.
      max_duration: classes that arcs of more frames alone read are not taken (big blanks, or
        durations of a TDT), whatever their scores. Log-probabilities stay those of the model.
      window: frames for which the joint is evaluated at once. By default as measured to be fastest
        on the platform, as are the two that follow.
      quorum: the share, 0 to 1, of the utterances at work that must have found a label before the
        prediction network runs for them; 0: anyone, 1: all of them, or a lane's each.
      lanes: of how many utterances a turn takes care, those with the most frames left; all B if
        None. Fewer than B make batches of very different lengths cheap. `joint` and `predict` are
        called with so many rows then, any of the utterances, so they must close over nothing that
        belongs to one; and a batch that is split over devices is gathered.

    Returns:
      A `GreedyDecoding`.

    Raises:
      TypeError: `logit_lengths` or an option are not integers, or the logits of `joint` not
        floating-point.
      ValueError: an argument has a wrong shape or value, the logits of `joint` are not `[B, V]`, or
        `predict` reads an array by the start label, and beyond its end.

    Source: Xu et al., "Multi-blank Transducers for Speech Recognition", arXiv 2211.03541, and for
    TDT arXiv 2304.06795, by the rules of NeMo's batched decoders; that only labels need the
    prediction network, arXiv 2406.06220, and windows of frames, arXiv 2505.13765.

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
    check_transducer(transducer)
    speech = Speech.given(encoded, logit_lengths, initial_state)
    frames = speech.encoded.shape[1]
    if max_labels is None:
        max_labels = frames * at_least(1, "max_symbols_per_frame", max_symbols_per_frame)
    max_labels = at_least(0, "max_labels", max_labels)
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
        max_labels=max_labels,
        start_label=start_label,
        max_symbols_per_frame=max_symbols_per_frame,
        max_duration=max_duration,
        window=window,
        quorum=quorum,
        lanes=lanes,
    )
    found: GreedyDecoding = speech.searched(search)
    return found


def _search(
    transducer: Transducer,
    joint: Joint,
    predict: Predict,
    encoded: jax.Array,
    lengths: jax.Array | None,
    initial_state: PyTree,
    *,
    max_labels: int,
    **options: Any,
) -> GreedyDecoding:
    encoded, lengths, in_range = searchable(lengths, encoded)
    walk = make_walk(transducer, joint, predict, encoded, initial_state, **options)

    # Under `shard_map` the loop's state has to vary over the mesh from the start, as its results
    # do. Hence all of it is selected, between equal values, by something made of `encoded`.
    in_range &= true_of(encoded)
    zeros = jnp.where(in_range, 0, 0).astype(jnp.int32)
    first = predict(zeros + walk.start_label, initial_state)
    prediction, state = select(in_range, first, first)
    log_probs = jnp.where(in_range, 0.0, jnp.nan).astype(jnp.float32)
    found = nothing_found(zeros, log_probs, max_labels)
    found = found._replace(prediction_steps=zeros + 1)
    return walk(encoded, lengths, Place(zeros, zeros, zeros - 1, prediction, state, found)).found
