"""Recognition by any transducer; one file a search."""

from jax_mbrnnt.decoding.beam import BeamDecoding, beam_decode
from jax_mbrnnt.decoding.confidence import (
    entropy_confidence,
    label_posteriors,
    max_prob_confidence,
)
from jax_mbrnnt.decoding.greedy import greedy_decode
from jax_mbrnnt.decoding.language_model import LanguageModel, NGram, read_arpa
from jax_mbrnnt.decoding.result import GreedyDecoding
from jax_mbrnnt.decoding.streaming import GreedyStream, StreamCarry
from jax_mbrnnt.decoding.times import Word, ctm_lines, word_times

__all__ = [
    "BeamDecoding",
    "GreedyDecoding",
    "GreedyStream",
    "LanguageModel",
    "NGram",
    "StreamCarry",
    "Word",
    "beam_decode",
    "ctm_lines",
    "entropy_confidence",
    "greedy_decode",
    "label_posteriors",
    "max_prob_confidence",
    "read_arpa",
    "word_times",
]
