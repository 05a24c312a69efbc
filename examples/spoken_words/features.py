"""From utterances to padded batches of log-mel features and characters."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import kaldi_native_fbank as knf
import numpy as np

from recordings import SAMPLE_RATE
from utterances import Utterance

MEL_BANDS = 40
FRAME_SECONDS = 0.01
CHARACTERS = " abcdefghijklmnopqrstuvwxyz"
"""The labels: label `i` is `CHARACTERS[i]`."""


class Batch(NamedTuple):
    """Utterances padded to common lengths.

    Attributes:
      features: `[B, F, MEL_BANDS]` float32, log-mel features, a frame every 10 ms.
      feature_lengths: `[B]` int32, valid frames of each utterance.
      labels: `[B, U]` int32, characters.
      label_lengths: `[B]` int32, valid labels of each utterance.
    """

    features: np.ndarray
    feature_lengths: np.ndarray
    labels: np.ndarray
    label_lengths: np.ndarray


class LogMel:
    """Log-mel features of a waveform that comes in pieces."""

    def __init__(self) -> None:
        options = knf.FbankOptions()
        options.frame_opts.samp_freq = SAMPLE_RATE
        options.frame_opts.frame_shift_ms = 1000 * FRAME_SECONDS
        options.frame_opts.dither = 0.0
        options.mel_opts.num_bins = MEL_BANDS
        options.mel_opts.low_freq = 60.0
        options.mel_opts.high_freq = 3900.0
        self._filter_bank = knf.OnlineFbank(options)
        self._frames: list[np.ndarray] = []

    def hear(self, samples: np.ndarray, *, is_last: bool) -> np.ndarray:
        """Takes the next samples; returns the features `[F, MEL_BANDS]` of all heard so far.

        Each band has zero mean over these: what was heard first is normalised anew each time.
        """
        self._filter_bank.accept_waveform(SAMPLE_RATE, samples)
        if is_last:
            self._filter_bank.input_finished()
        ready = range(len(self._frames), self._filter_bank.num_frames_ready)
        self._frames += [self._filter_bank.get_frame(i) for i in ready]
        frames = np.reshape(self._frames, (-1, MEL_BANDS)).astype(np.float32)
        return (
            (frames - frames.mean(axis=0)) / 3 if len(frames) else frames
        )  # Roughly unit variance.


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Returns log-mel features `[F, MEL_BANDS]`, each band with zero mean over the utterance."""
    return LogMel().hear(waveform, is_last=True)


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
        self._all = Batch(_pad(features), _lengths(features), _pad(labels), _lengths(labels))

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
        other._all = self._all._replace(labels=_pad(labels), label_lengths=_lengths(labels))
        return other

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields all utterances in order, in batches of which only the last may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.take(np.arange(start, min(start + batch_size, len(self))))


def make_bucket(utterances: Sequence[Utterance]) -> Bucket:
    """Puts utterances into one bucket, in their order."""
    return Bucket(utterances, [log_mel(utterance.waveform) for utterance in utterances])


def make_buckets(utterances: Sequence[Utterance], count: int) -> list[Bucket]:
    """Sorts utterances by length into buckets of equal sizes."""
    features = [log_mel(utterance.waveform) for utterance in utterances]
    by_length = np.argsort([len(frames) for frames in features], kind="stable")
    return [
        Bucket([utterances[i] for i in rows], [features[i] for i in rows])
        for rows in np.array_split(by_length, count)
    ]


def random_batch(
    rng: np.random.Generator, buckets: Sequence[Bucket], batch_size: int, noise: float
) -> Batch:
    """Draws different utterances from one bucket and adds noise to their features."""
    bucket = buckets[int(rng.integers(len(buckets)))]
    batch = bucket.take(rng.choice(len(bucket), batch_size, replace=False))
    shape = batch.features.shape
    return batch._replace(
        features=batch.features + np.float32(noise) * rng.standard_normal(shape, np.float32)
    )


def _lengths(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([len(array) for array in arrays], np.int32)


def _pad(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks arrays `[N, ...]` of several lengths, with zeros behind the shorter ones."""
    longest = max(len(array) for array in arrays)
    padded = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded
