"""Utterances: random strings of recorded words, each time spoken a little differently."""

from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy import signal

from recordings import SAMPLE_RATE, Recordings

_SPEEDS = [Fraction(n, 20) for n in (18, 19, 20, 21, 22)]


class Utterance(NamedTuple):
    """A string of words and how it sounds."""

    words: tuple[str, ...]
    waveform: np.ndarray

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def seconds(self) -> float:
        return self.waveform.size / SAMPLE_RATE


def make_utterances(
    rng: np.random.Generator,
    recordings: Recordings,
    count: int,
    words_per_utterance: tuple[int, int],
    exclude: Collection[tuple[str, ...]] = (),
) -> list[Utterance]:
    """Strings words together at random, no string twice, with random pauses, gains and noise.

    There is one speaker, and for nearly every word one recording: an unseen utterance is a string
    of words that did not occur before, with other pauses, gains, speeds and noise.

    Args:
      rng: where the randomness comes from.
      recordings: the words to choose from.
      count: how many utterances to make.
      words_per_utterance: the fewest and the most words of an utterance.
      exclude: strings of words that must not occur.

    Returns:
      The utterances.
    """
    takes = {
        word: [_change_speed(samples, speed) for samples in recordings[word] for speed in _SPEEDS]
        for word in sorted(recordings)
    }
    excluded = set(exclude)
    utterances: list[Utterance] = []
    while len(utterances) < count:
        length = rng.integers(*words_per_utterance, endpoint=True)
        words = tuple(str(word) for word in rng.choice(list(takes), length))
        if words not in excluded:
            excluded.add(words)
            chosen = [takes[word][rng.integers(len(takes[word]))] for word in words]
            utterances.append(Utterance(words, _join(rng, chosen)))
    return utterances


def _join(rng: np.random.Generator, takes: list[np.ndarray]) -> np.ndarray:
    """Puts words in a row: pauses of 0.1 to 1 s, +-4 dB a word, noise 15 to 30 dB below."""
    parts = [_pause(rng)]
    for samples in takes:
        parts += [samples * _decibels(rng.uniform(-4, 4)), _pause(rng)]
    speech = np.concatenate(parts)
    noise = rng.standard_normal(speech.size, dtype=np.float32)
    waveform = speech + noise * _decibels(-rng.uniform(15, 30))
    return 0.05 * waveform * _decibels(rng.uniform(-10, 6))


def _pause(rng: np.random.Generator) -> np.ndarray:
    return np.zeros(int(rng.uniform(0.1, 1.0) * SAMPLE_RATE), np.float32)


def _decibels(gain: float) -> np.float32:
    return np.float32(10 ** (gain / 20))


def _change_speed(samples: np.ndarray, speed: Fraction) -> np.ndarray:
    """Plays faster (speed > 1) or more slowly, and so higher or lower too."""
    return signal.resample_poly(samples, speed.denominator, speed.numerator).astype(np.float32)
