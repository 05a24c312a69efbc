"""Beam search that skips frames as the model asks for it, and sums over alignments.

What is searched for are sequences of labels. Big blanks and durations put the alignments of one
sequence at many frames at once, so a hypothesis is here a sequence with all of its alignments, and
no two hypotheses of a beam have the same labels. Every arc leads to a node of larger n = t + u, by
which the search goes on, each utterance at its own: all that leads to a node is there when it is
expanded, and nothing is expanded twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_mbrnnt.decoding.arc_scores import ArcScores
from jax_mbrnnt.decoding.hypotheses import take
from jax_mbrnnt.decoding.language_model import LanguageModel
from jax_mbrnnt.decoding.largest import largest
from jax_mbrnnt.decoding.looks import Looks, flat
from jax_mbrnnt.decoding.rows import check_start_row
from jax_mbrnnt.decoding.search import (
    Joint,
    Predict,
    PyTree,
    Speech,
    at_least,
    check_functions,
    check_transducer,
    searchable,
    select,
    start_label_of,
)
from jax_mbrnnt.decoding.turns import Search, Turns
from jax_mbrnnt.transducers import Transducer


class BeamDecoding(NamedTuple):
    """What `beam_decode` found: `beam` hypotheses of each utterance, the best one first.

    A place without a hypothesis has no labels, and -inf in `log_probs` and `scores`. So has the
    first one, if no alignment ends exactly after the last frame: of a TDT without a duration of 1
    there may be none. An utterance with a NaN or a +inf among its scores on the way, or with a
    length out of range, has no labels, and NaN in both.

    Attributes:
      labels: `[B, beam, max_labels]` int32, the label classes; -1 from `label_lengths` on.
      label_lengths: `[B, beam]` int32, how many labels there are.
      frames: `[B, beam, max_labels]` int32, the frame at which each label was emitted, in the most
        probable of the alignments that were kept; -1 as in `labels`.
      durations: `[B, beam, max_labels]` int32, the frames that each label was said to take there;
        -1 as in `labels`.
      label_log_probs: `[B, beam, max_labels]` float32, the log-probability in nats of the arc that
        emitted each label there, of both heads if there are two; 0 from `label_lengths` on.
      log_probs: `[B, beam]` float32, the log of the sum of the probabilities of all alignments that
        were kept: without pruning the log-likelihood of these labels, which is minus the loss with
        a `sigma` of 0.
      scores: `[B, beam]` float32, by which the hypotheses are ordered: `log_probs`, and what the
        language model and `label_bonus` add.
      joint_evaluations: `[B]` int32, at how many nodes of its lattices the utterance needed the
        joint.
      joint_rows: `[B]` int32, how many rows of logits were computed for the utterance, those that
        it did not need among them: while it waited for others.
      prediction_steps: `[B]` int32, how many rows of the prediction network were computed for it,
        needed or not; the start label's is one of them.
    """

    labels: jax.Array
    label_lengths: jax.Array
    frames: jax.Array
    durations: jax.Array
    label_log_probs: jax.Array
    log_probs: jax.Array
    scores: jax.Array
    joint_evaluations: jax.Array
    joint_rows: jax.Array
    prediction_steps: jax.Array

    def tolist(self) -> list[Any]:
        """Of each utterance the labels of its hypotheses, without padding, on the host."""
        labels, lengths, scores = map(np.asarray, (self.labels, self.label_lengths, self.scores))

        def of(labels: np.ndarray, lengths: np.ndarray, scores: np.ndarray) -> list[Any]:
            if lengths.ndim == 1:
                beam = zip(labels, lengths, scores, strict=True)
                return [label[:length].tolist() for label, length, s in beam if s > -np.inf]
            return [of(*utterance) for utterance in zip(labels, lengths, scores, strict=True)]

        return of(labels, lengths, scores)


def beam_decode(
    transducer: Transducer,
    joint: Joint,
    predict: Predict,
    encoded: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    *,
    initial_state: PyTree,
    beam: int = 4,
    threshold: float | ArrayLike = 5.0,
    candidates: int | None = None,
    start_label: int | None = None,
    max_labels: int | None = None,
    max_duration: int | None = None,
    language_model: LanguageModel | None = None,
    language_model_weight: float | ArrayLike = 0.3,
    label_bonus: float | ArrayLike = 0.0,
) -> BeamDecoding:
    """Decodes a batch of utterances: the sequences of labels that are most probable in total.

    The probability of a sequence is the sum over its alignments, in exactly the loss's lattice: no
    arc leads beyond the last frame, and only a blank to the end. With `beam` and `candidates` large
    enough and a `threshold` of `math.inf`, the hypotheses are the most probable sequences of at
    most `max_labels` labels, with their exact log-likelihoods.

    It is called as `greedy_decode` is, whose advice on `jit` holds here, too.

    Args:
      transducer: as in `greedy_decode`.
      joint: as in `greedy_decode`, but for the rows that it sees: these are of any hypotheses of
        any utterances. Their number is neither B nor always the same.
      predict: likewise. It is called for the hypotheses with new labels that are about to be
        expanded.
      encoded: as in `greedy_decode`, of a batch or of one utterance.
      logit_lengths: as in `greedy_decode`.
      initial_state: as in `greedy_decode`.
      beam: how many hypotheses of an utterance are kept. 1 is allowed: it still sums over the
        alignments of its sequence.
      threshold: nats at least 0, may be traced. Whatever is so much less probable than the best
        hypothesis is dropped: other hypotheses, but also single alignments (never the best one),
        so that a search with big blanks skips frames. Larger ones find more and cost more; see
        `docs/beam.md`.
      candidates: at most so many labels are considered as the next of a hypothesis at a node, the
        most probable ones for the transducer. If None, `beam`, which are all that count, and twice
        as many with a language model, which may prefer others.
      start_label: as in `greedy_decode`.
      max_labels: a hypothesis has at most this many labels; T if None.
      max_duration: no arc takes more frames than this, and the others' probabilities stay what they
        are; None for no such limit.
      language_model: what adds to the scores; see `LanguageModel`.
      language_model_weight: the factor of its log-probabilities, may be traced.
      label_bonus: nats that every label adds to the score, may be traced: language models prefer
        short sequences.

    Returns:
      A `BeamDecoding`.

    Raises:
      TypeError, ValueError: as `greedy_decode`.

    Source: alignment-length-synchronous search, Saon, Tüske, Audhkhasi, "Alignment-Length
    Synchronous Decoding for RNN Transducer", ICASSP 2020, for arcs of any duration; shallow fusion,
    Gulcehre et al., arXiv 1503.03535.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import MultiblankRNNT, beam_decode
      >>> transducer = MultiblankRNNT(big_blank_durations=(2, 4))
      >>> table = jax.random.normal(jax.random.key(0), (6, 6))
      >>> @jax.jit
      ... def decode(table, encoded, logit_lengths):
      ...     return beam_decode(
      ...         transducer,
      ...         lambda frame, prediction: frame + prediction,
      ...         lambda labels, state: (table[labels], state),
      ...         encoded,
      ...         logit_lengths,
      ...         initial_state=(),
      ...         beam=8,
      ...     )
      >>> encoded = jax.random.normal(jax.random.key(1), (2, 50, 6))
      >>> decoding = decode(table, encoded, jnp.array([50, 30]))
      >>> hypotheses = decoding.tolist()
      >>> len(hypotheses), bool(jnp.all(decoding.scores[:, 0] >= decoding.scores[:, 1]))
      (2, True)
    """
    check_transducer(transducer)
    speech = Speech.given(encoded, logit_lengths, initial_state)
    frames = speech.encoded.shape[1]
    beam = at_least(1, "beam", beam)
    if candidates is None:
        candidates = beam if language_model is None else 2 * beam
    if language_model is not None and not isinstance(language_model, LanguageModel):
        raise TypeError(f"language_model: expected a LanguageModel, got {language_model!r}")
    search = partial(
        _search,
        transducer,
        joint,
        predict,
        beam=beam,
        candidates=at_least(1, "candidates", candidates),
        max_labels=at_least(0, "max_labels", frames if max_labels is None else max_labels),
        max_duration=None if max_duration is None else at_least(1, "max_duration", max_duration),
        start_label=start_label,
        threshold=_number("threshold", threshold, 0),
        model=language_model,
        weight=_number("language_model_weight", language_model_weight),
        label_bonus=_number("label_bonus", label_bonus),
    )
    found: BeamDecoding = speech.searched(search)
    return found


def _number(name: str, value: Any, least: float | None = None) -> jax.Array:
    if not isinstance(value, int | float | jax.Array | np.ndarray | np.generic) or np.ndim(value):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    is_known = not isinstance(value, jax.core.Tracer)
    if least is not None and is_known and not float(value) >= least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return jnp.asarray(value, jnp.float32)


def _search(
    transducer: Transducer,
    joint: Joint,
    predict: Predict,
    encoded: jax.Array,
    lengths: jax.Array | None,
    initial_state: PyTree,
    *,
    beam: int,
    max_duration: int | None,
    start_label: Any,
    **options: Any,
) -> BeamDecoding:
    encoded, lengths, in_range = searchable(lengths, encoded)
    plan = transducer.plan(check_functions(joint, predict, encoded, initial_state))
    looks = Looks(
        joint=joint,
        predict=predict,
        scores=ArcScores(plan, max_duration),
        encoded=encoded,
        lengths=lengths,
        **options,
    )
    turns = Turns.of(looks, beam)
    start = start_label_of(start_label, plan.emission)
    check_start_row(predict, encoded.shape[0], initial_state, start)
    begin = turns.begin(in_range, initial_state, start)
    return _found(looks, lax.while_loop(lambda s: jnp.any(s.is_alive), turns.turn, begin))


def _found(looks: Looks, search: Search) -> BeamDecoding:
    """What has come to the end, in order."""
    known = search.hypotheses
    sums, _, ends = (x[..., -1] for x in search.alignments)
    scores = sums + known.extras
    if looks.model is not None:
        language = flat(search.networks.language)
        last = looks.advance(known.last_labels.reshape(-1), language)
        at_end = looks.model.end(select(search.is_behind.reshape(-1), last, language))
        scores += looks.weight * at_end.astype(jnp.float32).reshape(scores.shape)
    scores = jnp.where(sums > -jnp.inf, scores, -jnp.inf)
    is_sound = search.is_sound[:, None] & ~jnp.any(jnp.isnan(scores), axis=1, keepdims=True)
    scores, order = largest(scores, scores.shape[1], lambda score: score > -jnp.inf)
    is_there = is_sound & (scores > -jnp.inf)
    log_probs, ends, lengths = take((sums, ends, known.label_lengths), order)
    lengths = jnp.where(is_there, lengths, 0)
    labels, frames, durations, label_log_probs = search.history.read(
        jnp.where(is_there, ends, -1), lengths, looks.scores.label_durations, looks.max_labels
    )
    return BeamDecoding(
        labels=labels,
        label_lengths=lengths,
        frames=frames,
        durations=durations,
        label_log_probs=label_log_probs,
        log_probs=jnp.where(is_sound, jnp.where(is_there, log_probs, -jnp.inf), jnp.nan),
        scores=jnp.where(is_sound, scores, jnp.nan),
        joint_evaluations=search.joint_evaluations,
        joint_rows=search.joint_rows,
        prediction_steps=search.prediction_steps,
    )
