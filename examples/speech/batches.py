"""Utterances of several lengths as arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """Utterances padded to common lengths.

    Attributes:
      features: `[B, F, MEL_BANDS]` float32, log-mel features.
      feature_lengths: `[B]` int32, valid frames of each utterance.
      labels: `[B, U]` int32.
      label_lengths: `[B]` int32, valid labels of each utterance.
    """

    features: np.ndarray
    feature_lengths: np.ndarray
    labels: np.ndarray
    label_lengths: np.ndarray


def make_batch(
    features: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    frames: int | None = None,
    length: int | None = None,
) -> Batch:
    """Pads utterances to the longest of them, or to so many frames and labels."""
    return Batch(pad(features, frames), lengths(features), pad(labels, length), lengths(labels))


def lengths(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Returns how long each array is, `[N]`."""
    return np.array([len(array) for array in arrays], np.int32)


def pad(arrays: Sequence[np.ndarray], length: int | None = None) -> np.ndarray:
    """Stacks arrays of several lengths, with zeros behind the shorter ones: `[N, length, ...]`."""
    if length is None:
        length = max(len(array) for array in arrays)
    padded = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded
