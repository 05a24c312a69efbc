"""Recognition by any transducer; one file a search."""

from jax_mbrnnt.decoding.greedy import greedy_decode
from jax_mbrnnt.decoding.result import GreedyDecoding

__all__ = ["GreedyDecoding", "greedy_decode"]
