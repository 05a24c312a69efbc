"""Word errors of each utterance, and how sure one can be of their rate."""

from collections.abc import Sequence
from typing import NamedTuple

import jiwer
import numpy as np
from scipy import stats

_RESAMPLES = 9999


class WordErrors(NamedTuple):
    """Of each utterance, `[N]`."""

    words: np.ndarray  # that were said
    substitutions: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """The word error rate, a fraction."""
        return float(self.total.sum() / self.words.sum())


class Interval(NamedTuple):
    """95 % of what might have been found with other utterances like these."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.low:.2f} to {100 * self.high:.2f}"


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Counts the errors of each utterance."""
    counts = [jiwer.process_words(*pair) for pair in zip(references, hypotheses, strict=True)]
    rows = [
        (x.hits + x.substitutions + x.deletions, x.substitutions, x.deletions, x.insertions)
        for x in counts
    ]
    return WordErrors(*np.array(rows).T)


def rate_interval(errors: WordErrors) -> Interval:
    """Of the word error rate, by a bootstrap over the utterances.

    Utterances, not words: those of one utterance share its noise, and their errors come together.
    Without any error the bootstrap knows nothing; then it is Clopper and Pearson's for words.
    """
    if not errors.total.any():
        found = stats.binomtest(0, int(errors.words.sum())).proportion_ci(0.95)
        return Interval(found.low, found.high)
    return _bootstrap(errors.total, errors.words)


def difference_interval(errors: WordErrors, others: WordErrors) -> Interval:
    """Of the difference of two recognisers' rates for the same utterances: paired."""
    difference = errors.total - others.total
    if not difference.any():
        return Interval(0.0, 0.0)
    return _bootstrap(difference, errors.words)


def _bootstrap(errors: np.ndarray, words: np.ndarray) -> Interval:
    def rate(errors: np.ndarray, words: np.ndarray, axis: int = -1) -> np.ndarray:
        ratio: np.ndarray = errors.sum(axis=axis) / words.sum(axis=axis)
        return ratio

    found = stats.bootstrap(
        (errors, words),
        rate,
        paired=True,
        n_resamples=_RESAMPLES,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))
