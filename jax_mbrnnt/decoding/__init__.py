"""Recognition by any transducer; one file a search."""

from jax_mbrnnt.decoding.confidence import (
    entropy_confidence,
    label_posteriors,
    max_prob_confidence,
)
from jax_mbrnnt.decoding.greedy import GreedyDecoding, greedy_decode
from jax_mbrnnt.decoding.times import Word, ctm_lines, word_times

__all__ = [
    "GreedyDecoding",
    "Word",
    "ctm_lines",
    "entropy_confidence",
    "greedy_decode",
    "label_posteriors",
    "max_prob_confidence",
    "word_times",
]
