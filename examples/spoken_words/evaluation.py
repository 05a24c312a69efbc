"""How well, and with how much work, a recogniser recognises unseen utterances."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jiwer
import numpy as np
from flax import nnx

from features import FRAME_SECONDS, Batch, Bucket, to_text
from jax_mbrnnt import BeamDecoding, GreedyDecoding
from model import SUBSAMPLING, Recogniser

BEAM = 4


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on the test utterances.

    Attributes:
      loss: negative log-likelihood, in nats a character, without under-normalisation (sigma), so
        that it means the same for every recogniser.
      word_error_rate: as a fraction.
      joint_evaluations: a mean over the utterances.
      decoding_seconds: encoder and search, a mean over the utterances; each decoded on its own.
      real_time_factor: seconds of decoding for a second of speech.
      beam_word_error_rate: of a beam search with `BEAM` hypotheses.
      beam_seconds: as `decoding_seconds`, of the beam search.
      beam_errors: in how many utterances the beam's best hypothesis is less probable, summed over
        all alignments, than what was recognised without a beam.
      references: what was said.
      hypotheses: what was recognised.
    """

    loss: float
    word_error_rate: float
    joint_evaluations: float
    decoding_seconds: float
    real_time_factor: float
    beam_word_error_rate: float
    beam_seconds: float
    beam_errors: int
    references: list[str]
    hypotheses: list[str]


def evaluate(recogniser: Recogniser, bucket: Bucket, batch_size: int) -> Evaluation:
    """Measures a recogniser on the utterances of a bucket."""
    losses = [np.asarray(_losses(recogniser, batch)) for batch in bucket.batches(batch_size)]
    whole = bucket.whole()

    # One utterance at a time, as it would be when somebody is waiting for the answer.
    utterances = list(bucket.batches(1))
    decodings, seconds = _timed(_decode, recogniser, utterances)
    beams, beam_seconds = _timed(_decode_with_beam, recogniser, utterances)
    greedy = [d.labels[0, : d.label_lengths[0]] for d in decodings]
    best = [d.labels[0, 0, : d.label_lengths[0, 0]] for d in beams]

    references = [to_text(u.labels[0, : u.label_lengths[0]]) for u in utterances]
    hypotheses, of_beam = [to_text(x) for x in greedy], [to_text(x) for x in best]
    return Evaluation(
        loss=float(np.concatenate(losses).sum() / whole.label_lengths.sum()),
        word_error_rate=jiwer.wer(references, hypotheses),
        joint_evaluations=float(np.mean([d.joint_evaluations[0] for d in decodings])),
        decoding_seconds=seconds / len(utterances),
        real_time_factor=seconds / (FRAME_SECONDS * float(whole.feature_lengths.sum())),
        beam_word_error_rate=jiwer.wer(references, of_beam),
        beam_seconds=beam_seconds / len(utterances),
        beam_errors=sum(
            _loss_of(recogniser, u, found) > _loss_of(recogniser, u, other) + 1e-3
            for u, found, other in zip(utterances, best, greedy, strict=True)
            if not np.array_equal(found, other)
        ),
        references=references,
        hypotheses=hypotheses,
    )


def _timed(
    decode: Callable[[Recogniser, Batch], Any], recogniser: Recogniser, utterances: list[Batch]
) -> tuple[list[Any], float]:
    """What was recognised in each utterance, and in how many seconds."""
    jax.block_until_ready(decode(recogniser, utterances[0]))  # Compiles.
    start = time.perf_counter()
    decodings = [jax.device_get(decode(recogniser, utterance)) for utterance in utterances]
    return decodings, time.perf_counter() - start


def _loss_of(recogniser: Recogniser, utterance: Batch, labels: np.ndarray) -> float:
    """The loss of other labels than those that were said."""
    padded = np.zeros((1, utterance.features.shape[1] // SUBSAMPLING), np.int32)
    padded[0, : len(labels)] = labels
    lengths = np.array([len(labels)], np.int32)
    return float(_losses(recogniser, utterance._replace(labels=padded, label_lengths=lengths))[0])


@nnx.jit
def arc_posteriors(recogniser: Recogniser, batch: Batch) -> jax.Array:
    """Returns how probable each arc of the lattice is, given the truth: `[B, T, U + 1, A]`."""
    logits, lengths = recogniser(batch)
    return recogniser.transducer.posteriors(logits, batch.labels, lengths, batch.label_lengths)


@nnx.jit
def _losses(recogniser: Recogniser, batch: Batch) -> jax.Array:
    likelihood = dataclasses.replace(recogniser.transducer, sigma=0.0)
    logits, lengths = recogniser(batch)
    return likelihood.score_forward(logits, batch.labels, lengths, batch.label_lengths)


@nnx.jit
def _decode(recogniser: Recogniser, batch: Batch) -> GreedyDecoding:
    return recogniser.decode(batch)


@nnx.jit
def _decode_with_beam(recogniser: Recogniser, batch: Batch) -> BeamDecoding:
    return recogniser.decode_with_beam(batch, BEAM)
