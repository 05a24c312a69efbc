"""Recognition by any transducer; one file a search."""

from jax_mbrnnt.decoding.beam import BeamDecoding, beam_decode
from jax_mbrnnt.decoding.greedy import GreedyDecoding, greedy_decode
from jax_mbrnnt.decoding.language_model import LanguageModel, NGram, read_arpa

__all__ = [
    "BeamDecoding",
    "GreedyDecoding",
    "LanguageModel",
    "NGram",
    "beam_decode",
    "greedy_decode",
    "read_arpa",
]
