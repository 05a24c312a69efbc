"""How well, and with how much work, a recogniser recognises unseen utterances."""

import dataclasses
import time
from collections.abc import Callable, Mapping
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

BEAMS: dict[str, dict[str, Any]] = {
    "beam": {"beam": 4},
    "narrow beam": {"beam": 2, "threshold": 0.7},
}
"""Options of `beam_decode`. A narrow beam looks further only where the recogniser is in doubt, and
so visits next to no more nodes than a greedy search does."""


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
    recogniser: Recogniser, bucket: Bucket, batch_size: int, **options: Any
) -> Recognition:
    """The same by beam search, with the options of `beam_decode`: the best hypotheses."""

    @nnx.jit
    def decode(recogniser: Recogniser, batch: Batch) -> BeamDecoding:
        found = recogniser.decode_with_beam(batch, **options)
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
class Searched:
    """What a search found in the test utterances.

    Attributes:
      errors: of words.
      interval: 95 % of their rate.
      joint_evaluations: a mean over the utterances.
      seconds: the search alone, a mean over some utterances; each decoded on its own.
      hypotheses: what was recognised.
    """

    errors: WordErrors
    interval: Interval
    joint_evaluations: float
    seconds: float
    hypotheses: list[str]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured on the test utterances.

    Attributes:
      loss: negative log-likelihood, in nats a character, without under-normalisation (sigma), so
        that it means the same for every recogniser.
      searches: by name: greedy, and by a narrow beam.
      decoding_seconds: greedy search with the encoder, measured as the searches are.
      real_time_factor: seconds of that for a second of speech.
      references: what was said.
    """

    loss: float
    searches: dict[str, Searched]
    decoding_seconds: float
    real_time_factor: float
    references: list[str]


def evaluate(recogniser: Recogniser, bucket: Bucket, batch_size: int) -> Evaluation:
    """Measures a recogniser on the utterances of a bucket."""
    beams = {"narrow beam": BEAMS["narrow beam"]}
    found = {"greedy": recognise(recogniser, bucket, batch_size)} | {
        name: recognise_with_beam(recogniser, bucket, batch_size, **options)
        for name, options in beams.items()
    }
    seconds = decoding_times(recogniser, bucket, 1, beams)

    def searched(found: Recognition, seconds: float) -> Searched:
        errors, nodes = found.errors, float(found.joint_evaluations.mean())
        return Searched(errors, rate_interval(errors), nodes, seconds, found.hypotheses)

    speech = bucket.first(_TIMED).whole().feature_lengths.mean() * FRAME_SECONDS
    return Evaluation(
        loss=float(_losses(recogniser, bucket, batch_size).sum() / bucket.num_labels()),
        searches={name: searched(x, seconds[name]) for name, x in found.items()},
        decoding_seconds=seconds["whole"],
        real_time_factor=seconds["whole"] / float(speech),
        references=bucket.texts(),
    )


def count_beam_errors(
    recogniser: Recogniser, bucket: Bucket, batch_size: int, greedy: Recognition, beam: Recognition
) -> int:
    """How often the beam's best is less probable than what was found without."""
    of_greedy, of_beam = (
        _losses(recogniser, bucket.saying(found.labels), batch_size) for found in (greedy, beam)
    )
    return int((of_beam > of_greedy + 1e-3).sum())


_TIMED = 64
"""The utterances, the first ones, whose decoding is timed."""


def decoding_times(
    recogniser: Recogniser,
    bucket: Bucket,
    batch_size: int,
    beams: Mapping[str, Mapping[str, Any]],
    rounds: int = 5,
) -> dict[str, float]:
    """Seconds an utterance, medians of several rounds over the same ones.

    Of the searches alone, greedy and by beams, and of the whole: encoder and greedy search. They
    are programs of `jax.jit`: each call of `nnx.jit` costs as much as a search.
    """
    graph, state = nnx.split(recogniser)

    def jitted(f: Callable[[Recogniser, Any], Any]) -> Callable[[Any], Any]:
        program = jax.jit(lambda state, operand: f(nnx.merge(graph, state), operand))
        return lambda operand: program(state, operand)

    encode = jitted(lambda recogniser, batch: recogniser.encoder(batch))
    batches = [jax.device_put(x) for x in bucket.first(_TIMED).batches(batch_size)]
    encoded = [encode(batch) for batch in batches]

    def by_beam(options: Mapping[str, Any]) -> Callable[[Any], Any]:
        return jitted(lambda recogniser, x: recogniser.search_with_beam(*x, **options))

    searches = {
        "greedy": (jitted(lambda recogniser, x: recogniser.search(*x)), encoded),
        **{name: (by_beam(options), encoded) for name, options in beams.items()},
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
            seconds[name].append((time.perf_counter() - start) / _TIMED)
    return {name: float(np.median(x)) for name, x in seconds.items()}


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
