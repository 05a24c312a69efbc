"""From utterances to padded batches of log-mel features and characters."""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from speech.batches import Batch, lengths, make_batch, pad
from speech.log_mel import Filters, log_mel
from spoken_words.augmentation import Augmentation
from spoken_words.recordings import SAMPLE_RATE
from spoken_words.utterances import Utterance

FILTERS = Filters(SAMPLE_RATE, bands=40, low=60.0, high=3900.0)
CHARACTERS = " abcdefghijklmnopqrstuvwxyz"
"""The labels: label `i` is `CHARACTERS[i]`."""


def normalised(frames: np.ndarray) -> np.ndarray:
    """Returns features `[F, bands]` of which each band has zero mean, and roughly unit variance."""
    return (frames - frames.mean(axis=0)) / 3 if len(frames) else frames


def features_of(waveform: np.ndarray) -> np.ndarray:
    """Returns the features `[F, bands]` of a whole utterance."""
    return normalised(log_mel(waveform, FILTERS))


def to_labels(text: str) -> np.ndarray:
    """Returns the labels `[U]` of a text."""
    return np.array([CHARACTERS.index(character) for character in text], np.int32)


def to_text(labels: np.ndarray | Sequence[int]) -> str:
    """Returns the text of labels `[U]`."""
    return "".join(CHARACTERS[label] for label in labels)


class Bucket:
    """Utterances of like length, all padded to the longest of them."""

    def __init__(self, utterances: Sequence[Utterance], features: Sequence[np.ndarray]):
        labels = [to_labels(utterance.text) for utterance in utterances]
        self._all = make_batch(features, labels)

    def __len__(self) -> int:
        return len(self._all.labels)

    def take(self, rows: np.ndarray) -> Batch:
        """Returns the utterances `rows` as a batch."""
        return Batch(*(array[rows] for array in self._all))

    def whole(self) -> Batch:
        """Returns all utterances as one batch."""
        return self._all

    def first(self, count: int) -> "Bucket":
        """Returns the first so many utterances."""
        other = copy.copy(self)
        other._all = self.take(np.arange(count))
        return other

    def texts(self) -> list[str]:
        """Returns what is said in each utterance."""
        rows = zip(self._all.labels, self._all.label_lengths, strict=True)
        return [to_text(labels[:length]) for labels, length in rows]

    def num_labels(self) -> int:
        """Returns how many labels there are in all."""
        return int(self._all.label_lengths.sum())

    def saying(self, labels: Sequence[np.ndarray]) -> "Bucket":
        """Returns the same sounds with other labels."""
        other = copy.copy(self)
        other._all = self._all._replace(labels=pad(labels), label_lengths=lengths(labels))
        return other

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields all utterances in order, in batches of which only the last may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.take(np.arange(start, min(start + batch_size, len(self))))


def make_bucket(utterances: Sequence[Utterance]) -> Bucket:
    """Puts utterances into one bucket, in their order."""
    return Bucket(utterances, _features_of(utterances))


def _features_of(utterances: Sequence[Utterance]) -> list[np.ndarray]:
    with ThreadPoolExecutor() as pool:  # the filter bank lets go of the interpreter
        return list(pool.map(features_of, (utterance.waveform for utterance in utterances)))


def make_buckets(utterances: Sequence[Utterance], count: int) -> list[Bucket]:
    """Sorts utterances by length into buckets of equal sizes."""
    features = _features_of(utterances)
    by_length = np.argsort([len(frames) for frames in features], kind="stable")
    return [
        Bucket([utterances[i] for i in rows], [features[i] for i in rows])
        for rows in np.array_split(by_length, count)
    ]


def random_batch(
    rng: np.random.Generator, buckets: Sequence[Bucket], batch_size: int, augment: Augmentation
) -> Batch:
    """Draws different utterances from one bucket, each as it was not heard before."""
    bucket = buckets[int(rng.integers(len(buckets)))]
    batch = bucket.take(rng.choice(len(bucket), batch_size, replace=False))
    heard = [
        augment(features[:frames], rng)
        for features, frames in zip(batch.features, batch.feature_lengths, strict=True)
    ]
    padded = pad(heard, batch.features.shape[1])
    return batch._replace(features=padded, feature_lengths=lengths(heard))
