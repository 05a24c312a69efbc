"""Recognition by any transducer; one file a search."""

from jax_mbrnnt.decoding.greedy import GreedyDecoding, greedy_decode

__all__ = ["GreedyDecoding", "greedy_decode"]
