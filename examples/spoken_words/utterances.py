"""Utterances: random strings of recorded words, each time spoken a little differently."""

from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy import signal

from spoken_words.recipe import Recipe
from spoken_words.recordings import SAMPLE_RATE, Recordings


class Conditions(NamedTuple):
    """How clearly words are spoken.

    Attributes:
      speeds: how fast, in twentieths.
      pauses: between words, seconds.
      noise: decibels below the speech.
    """

    speeds: tuple[int, ...] = (18, 19, 20, 21, 22)
    pauses: tuple[float, float] = (0.1, 1.0)
    noise: tuple[float, float] = (15.0, 30.0)


EASY = Conditions()

# What no training has heard: faster, slower, in louder noise.
HARD = Conditions(speeds=(17, 23), noise=(8.0, 15.0))


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
    conditions: Conditions = EASY,
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
      conditions: how they are spoken.

    Returns:
      The utterances.
    """
    takes = {
        word: [
            _change_speed(samples, Fraction(speed, 20))
            for samples in recordings[word]
            for speed in conditions.speeds
        ]
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
            utterances.append(Utterance(words, _join(rng, chosen, conditions)))
    return utterances


def make_sets(
    seed: int, recordings: Recordings, recipe: Recipe
) -> tuple[list[Utterance], list[Utterance]]:
    """Makes the utterances to train on, and those to test with: none says the same words."""
    rng = np.random.default_rng(seed)
    lengths = recipe.words_per_utterance
    training_set = make_utterances(rng, recordings, recipe.training_utterances, lengths)
    heard = {utterance.words for utterance in training_set}
    test_set = make_utterances(rng, recordings, recipe.test_utterances, lengths, exclude=heard)
    return training_set, test_set


def _join(rng: np.random.Generator, takes: list[np.ndarray], conditions: Conditions) -> np.ndarray:
    """Puts words in a row with pauses, +-4 dB a word, and noise."""

    def pause() -> np.ndarray:
        return np.zeros(int(rng.uniform(*conditions.pauses) * SAMPLE_RATE), np.float32)

    parts = [pause()]
    for samples in takes:
        parts += [samples * _decibels(rng.uniform(-4, 4)), pause()]
    speech = np.concatenate(parts)
    noise = rng.standard_normal(speech.size, dtype=np.float32)
    waveform = speech + noise * _decibels(-rng.uniform(*conditions.noise))
    return 0.05 * waveform * _decibels(rng.uniform(-10, 6))


def _decibels(gain: float) -> np.float32:
    return np.float32(10 ** (gain / 20))


def _change_speed(samples: np.ndarray, speed: Fraction) -> np.ndarray:
    """Plays faster (speed > 1) or more slowly, and so higher or lower too."""
    return signal.resample_poly(samples, speed.denominator, speed.numerator).astype(np.float32)
