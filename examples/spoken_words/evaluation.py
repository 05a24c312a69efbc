"""How well, and with how much work, a recogniser recognises unseen utterances."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jax_mbrnnt import BeamDecoding, GreedyDecoding
from speech.batches import Batch
from speech.intervals import Interval, WordErrors, rate_interval, word_errors
from speech.log_mel import FRAME_SECONDS
from spoken_words.features import Bucket, to_text
from spoken_words.model import Recogniser

BEAM = 4
NARROW = {"beam": 2, "threshold": 0.7}
"""A beam that looks further only where the recogniser is in doubt: next to no more nodes."""


class Recognition(NamedTuple):
    """What was recognised in the utterances of a bucket."""

    labels: list[np.ndarray]
    references: list[str]
    joint_evaluations: np.ndarray  # [N]

    @property
    def hypotheses(self) -> list[str]:
        return [to_text(labels) for labels in self.labels]

    @property
    def errors(self) -> WordErrors:
        return word_errors(self.references, self.hypotheses)


def recognise(
    recogniser: Recogniser, bucket: Bucket, batch_size: int, max_duration: int | None = None
) -> Recognition:
    """Decodes all utterances, without jumps of more than `max_duration` frames if it is given."""

    @nnx.jit
    def decode(recogniser: Recogniser, batch: Batch) -> GreedyDecoding:
        return recogniser.decode(batch, max_duration)

    return _recognition(decode, recogniser, bucket, batch_size)


def recognise_with_beam(
    recogniser: Recogniser, bucket: Bucket, batch_size: int, beam: int = BEAM, **options: Any
) -> Recognition:
    """The same by beam search, with the options of `beam_decode`: the best hypotheses."""

    @nnx.jit
    def decode(recogniser: Recogniser, batch: Batch) -> BeamDecoding:
        found = recogniser.decode_with_beam(batch, beam, **options)
        return found._replace(labels=found.labels[:, 0], label_lengths=found.label_lengths[:, 0])

    return _recognition(decode, recogniser, bucket, batch_size)


def _recognition(
    decode: Callable[[Recogniser, Batch], Any],
    recogniser: Recogniser,
    bucket: Bucket,
    batch_size: int,
) -> Recognition:
    found = [jax.device_get(decode(recogniser, batch)) for batch in bucket.batches(batch_size)]
    labels = [row[:n] for x in found for row, n in zip(x.labels, x.label_lengths, strict=True)]
    nodes = np.concatenate([x.joint_evaluations for x in found])
    return Recognition(labels, bucket.texts(), nodes)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on the test utterances.

    Attributes:
      loss: negative log-likelihood, in nats a character, without under-normalisation (sigma), so
        that it means the same for every recogniser.
      word_error_rate: as a fraction.
      interval: its 95 % interval.
      joint_evaluations: a mean over the utterances.
      search_seconds: the search alone, a mean over some utterances; each decoded on its own.
      decoding_seconds: with the encoder.
      real_time_factor: seconds of decoding for a second of speech.
      beam_word_error_rate: of a beam search with `BEAM` hypotheses.
      beam_seconds: as `search_seconds`, of the beam search.
      beam_errors: in how many utterances the beam's best hypothesis is less probable, summed over
        all alignments, than what was recognised without a beam.
      references: what was said.
      hypotheses: what was recognised.
    """

    loss: float
    word_error_rate: float
    interval: Interval
    joint_evaluations: float
    search_seconds: float
    decoding_seconds: float
    real_time_factor: float
    beam_word_error_rate: float
    beam_seconds: float
    beam_errors: int
    references: list[str]
    hypotheses: list[str]


def evaluate(recogniser: Recogniser, bucket: Bucket, batch_size: int) -> Evaluation:
    """Measures a recogniser on the utterances of a bucket."""
    greedy = recognise(recogniser, bucket, batch_size)
    beam = recognise_with_beam(recogniser, bucket, batch_size)
    errors = greedy.errors  # counted at each asking
    times = decoding_times(recogniser, bucket, batch_size=1)
    speech = bucket.take(np.arange(times.utterances)).feature_lengths.mean() * FRAME_SECONDS
    return Evaluation(
        loss=float(_losses(recogniser, bucket, batch_size).sum() / bucket.num_labels()),
        word_error_rate=errors.rate,
        interval=rate_interval(errors),
        joint_evaluations=float(greedy.joint_evaluations.mean()),
        search_seconds=times.greedy,
        decoding_seconds=times.whole,
        real_time_factor=times.whole / float(speech),
        beam_word_error_rate=beam.errors.rate,
        beam_seconds=times.beam,
        beam_errors=count_beam_errors(recogniser, bucket, batch_size, greedy, beam),
        references=greedy.references,
        hypotheses=greedy.hypotheses,
    )


def count_beam_errors(
    recogniser: Recogniser, bucket: Bucket, batch_size: int, greedy: Recognition, beam: Recognition
) -> int:
    """How often the beam's best is less probable than what was found without."""
    of_greedy, of_beam = (
        _losses(recogniser, bucket.saying(found.labels), batch_size) for found in (greedy, beam)
    )
    return int((of_beam > of_greedy + 1e-3).sum())


class Times(NamedTuple):
    """Seconds an utterance: medians of several rounds over the same ones."""

    utterances: int
    greedy: float  # the search alone
    beam: float  # likewise
    whole: float  # encoder and greedy search


def decoding_times(
    recogniser: Recogniser, bucket: Bucket, batch_size: int, utterances: int = 64, rounds: int = 5
) -> Times:
    """Measures programs of `jax.jit`: each call of `nnx.jit` costs as much as a search."""
    graph, state = nnx.split(recogniser)

    def jitted(f: Callable[[Recogniser, Any], Any]) -> Callable[[Any], Any]:
        program = jax.jit(lambda state, operand: f(nnx.merge(graph, state), operand))
        return lambda operand: program(state, operand)

    encode = jitted(lambda recogniser, batch: recogniser.encoder(batch))
    batches = [jax.device_put(x) for x in bucket.first(utterances).batches(batch_size)]
    encoded = [encode(batch) for batch in batches]
    searches = {
        "greedy": (jitted(lambda recogniser, x: recogniser.search(*x)), encoded),
        "beam": (jitted(lambda recogniser, x: recogniser.search_with_beam(*x, BEAM)), encoded),
        "whole": (jitted(lambda recogniser, batch: recogniser.decode(batch)), batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for search, operands in searches.values():
        jax.block_until_ready(search(operands[0]))  # Compiles.
    for _ in range(rounds):
        for name, (search, operands) in searches.items():
            start = time.perf_counter()
            for operand in operands:
                jax.block_until_ready(search(operand))
            seconds[name].append((time.perf_counter() - start) / utterances)
    return Times(utterances, **{name: float(np.median(x)) for name, x in seconds.items()})


def _losses(recogniser: Recogniser, bucket: Bucket, batch_size: int) -> np.ndarray:
    batches = bucket.batches(batch_size)
    return np.concatenate([np.asarray(_losses_of(recogniser, batch)) for batch in batches])


@nnx.jit
def _losses_of(recogniser: Recogniser, batch: Batch) -> jax.Array:
    likelihood = dataclasses.replace(recogniser.transducer, sigma=0.0, fastemit_lambda=0.0)
    logits, lengths = recogniser(batch)
    return likelihood.score_forward(logits, batch.labels, lengths, batch.label_lengths)


@nnx.jit
def arc_posteriors(recogniser: Recogniser, batch: Batch) -> jax.Array:
    """Returns how probable each arc of the lattice is, given the truth: `[B, T, U + 1, A]`."""
    logits, lengths = recogniser(batch)
    return recogniser.transducer.posteriors(logits, batch.labels, lengths, batch.label_lengths)
