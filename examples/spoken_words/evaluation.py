"""How well, and with how much work, a recogniser recognises unseen utterances."""

import dataclasses
import time

import jax
import jiwer
import numpy as np
from flax import nnx

from features import FRAME_SECONDS, Batch, Bucket, to_text
from jax_mbrnnt import GreedyDecoding
from model import Recogniser


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
      references: what was said.
      hypotheses: what was recognised.
    """

    loss: float
    word_error_rate: float
    joint_evaluations: float
    decoding_seconds: float
    real_time_factor: float
    references: list[str]
    hypotheses: list[str]


def evaluate(recogniser: Recogniser, bucket: Bucket, batch_size: int) -> Evaluation:
    """Measures a recogniser on the utterances of a bucket."""
    losses = [np.asarray(_losses(recogniser, batch)) for batch in bucket.batches(batch_size)]
    whole = bucket.whole()

    # One utterance at a time, as it would be when somebody is waiting for the answer.
    utterances = list(bucket.batches(1))
    _decode(recogniser, utterances[0]).labels.block_until_ready()  # Compiles.
    start = time.perf_counter()
    decodings = [jax.device_get(_decode(recogniser, utterance)) for utterance in utterances]
    seconds = time.perf_counter() - start

    references = [to_text(u.labels[0, : u.label_lengths[0]]) for u in utterances]
    hypotheses = [to_text(d.labels[0, : d.label_lengths[0]]) for d in decodings]
    return Evaluation(
        loss=float(np.concatenate(losses).sum() / whole.label_lengths.sum()),
        word_error_rate=jiwer.wer(references, hypotheses),
        joint_evaluations=float(np.mean([d.joint_evaluations[0] for d in decodings])),
        decoding_seconds=seconds / len(utterances),
        real_time_factor=seconds / (FRAME_SECONDS * float(whole.feature_lengths.sum())),
        references=references,
        hypotheses=hypotheses,
    )


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
