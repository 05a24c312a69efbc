"""From sentences to batches: shuffled, bucketed, augmented, of each process its own part.

All of it is Grain's: a batch follows from its number alone, workers read ahead, and where the
training stands can be saved. Which utterances are in a batch, and how they are augmented, does not
depend on how many processes or workers there are.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
import soundfile
from absl import flags
from scipy import signal

from sentences.config import AudioConfig, Config
from sentences.corpus import CorpusError, Sentence
from sentences.pieces import Pieces
from speech.batches import Batch, make_batch
from speech.log_mel import FRAME_SECONDS, Filters, log_mel

# More than anybody trains. Of no end Grain cannot make batches of one.
_EPOCHS = 10**6


class Example(NamedTuple):
    """A sentence to be learnt, and what its augmentation is drawn from; None for none."""

    sentence: Sentence
    labels: np.ndarray
    seed: int | None = None


def examples(
    sentences: Sequence[Sentence], pieces: Pieces, config: Config
) -> tuple[list[Example], list[Sentence]]:
    """Returns what can be learnt, and what is left out: more labels than the encoder has frames.

    Raises:
      CorpusError: nothing can be learnt.
    """
    fastest = max(config.training.speeds) / 100
    found = [Example(sentence, pieces.labels(sentence.text)) for sentence in sentences]
    fits = [
        0 < len(x.labels) <= _frames(x.sentence.seconds / fastest) >> config.encoder.halvings
        for x in found
    ]
    chosen = [x for x, is_in in zip(found, fits, strict=True) if is_in]
    if not chosen:
        raise CorpusError("No sentence is long enough for its transcript")
    return chosen, [x.sentence for x, is_in in zip(found, fits, strict=True) if not is_in]


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Utterances of like length, and what they are padded to."""

    examples: list[Example]
    frames: int
    length: int  # of the labels

    @classmethod
    def of(cls, examples: list[Example], slowest: float) -> "Bucket":
        frames = math.ceil(max(x.sentence.seconds for x in examples) / slowest / FRAME_SECONDS)
        return cls(examples, frames, max(len(x.labels) for x in examples))

    def batch_size(self, config: Config, devices: int) -> int:
        """As many as fit, padding included, and a multiple of the devices."""
        most = config.training.frames_per_batch
        return max(1, most // self.frames // devices) * devices

    def batches(self, config: Config, devices: int) -> float:
        """Returns how many batches it makes."""
        return len(self.examples) / self.batch_size(config, devices)


def make_buckets(found: Sequence[Example], count: int, slowest: float = 1.0) -> list[Bucket]:
    """Sorts utterances by length into buckets of equally much speech: few, if they are long.

    `slowest`: the least speed at which they are played.
    """
    by_length = sorted(found, key=lambda x: (x.sentence.seconds, x.sentence.name))
    seconds = np.cumsum([x.sentence.seconds for x in by_length])
    of_each = np.minimum(count * (seconds - seconds[0]) // seconds[-1], count - 1)
    parts = [np.flatnonzero(of_each == number) for number in np.unique(of_each)]
    return [Bucket.of([by_length[i] for i in part], slowest) for part in parts]


def training_input(
    buckets: Sequence[Bucket], config: Config, seed: int, devices: int, process: int, processes: int
) -> grain.IterDataset[Batch]:
    """Returns batches without end: of each this process's part.

    Args:
      buckets: of `make_buckets`.
      config: sizes and augmentation.
      seed: of the order and the augmentation.
      devices: of all processes, which share each batch evenly.
      process: which this is.
      processes: how many there are.
    """
    training = config.training

    def draw(example: Example, rng: np.random.Generator) -> Example:
        return example._replace(seed=int(rng.integers(2**63)))

    def batches_of(number: int, bucket: Bucket) -> grain.MapDataset[Batch]:
        size = bucket.batch_size(config, devices)
        own = slice(size * process // processes, size * (process + 1) // processes)
        make = functools.partial(_make_batch, bucket, config, own)
        return (
            grain.MapDataset.source(bucket.examples)
            .seed(seed + number)
            .shuffle()
            .repeat(_EPOCHS)
            .random_map(draw)
            .batch(size, batch_fn=list)
            .map(make)
        )

    parts = [batches_of(number, bucket) for number, bucket in enumerate(buckets)]
    mixed = grain.MapDataset.mix(parts, [bucket.batches(config, devices) for bucket in buckets])
    batches = mixed.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    if training.workers:
        if not flags.FLAGS.is_parsed():  # Grain asks Abseil's, of which this program has none.
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(training.workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options)
    return batches


def batches_an_epoch(buckets: Sequence[Bucket], config: Config, devices: int) -> float:
    """Returns after how many batches every utterance has been heard once, on average."""
    return sum(bucket.batches(config, devices) for bucket in buckets)


def test_batches(
    buckets: Sequence[Bucket], config: Config, size: int
) -> Iterator[tuple[list[Example], Batch]]:
    """Yields all utterances in order; a bucket's last batch is filled with its first ones."""
    for bucket in buckets:
        for start in range(0, len(bucket.examples), size):
            found = bucket.examples[start : start + size]
            filled = [found[i % len(found)] for i in range(size)]
            yield found, _make_batch(bucket, config, slice(None), filled)


def filters(audio: AudioConfig) -> Filters:
    """Returns what the features are."""
    return Filters(audio.sample_rate, audio.bands, audio.low, audio.high)


def read_features(example: Example, config: Config) -> np.ndarray:
    """Reads an utterance; returns its features `[F, bands]`, augmented if it has a seed."""
    samples, _ = soundfile.read(example.sentence.path, dtype="float32")
    if example.seed is None:
        return log_mel(samples, filters(config.audio))
    rng = np.random.default_rng(example.seed)
    speed = int(rng.choice(config.training.speeds))
    played = signal.resample_poly(samples, 100, speed).astype(np.float32)
    return config.training.augment(log_mel(played, filters(config.audio)), rng)


def _make_batch(bucket: Bucket, config: Config, own: slice, whole: list[Example]) -> Batch:
    chosen = whole[own]
    features = [read_features(example, config) for example in chosen]
    labels = [example.labels for example in chosen]
    return make_batch([x[: bucket.frames] for x in features], labels, bucket.frames, bucket.length)


def _frames(seconds: float) -> int:
    """Whole windows of 25 ms, one every 10 ms."""
    return max(0, int((seconds - 0.025) / FRAME_SECONDS) + 1)
