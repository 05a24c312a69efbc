"""Recognition by any transducer; one file a search."""

from jax_mbrnnt.decoding.greedy import greedy_decode
from jax_mbrnnt.decoding.result import GreedyDecoding
from jax_mbrnnt.decoding.streaming import GreedyStream, StreamCarry

__all__ = ["GreedyDecoding", "GreedyStream", "StreamCarry", "greedy_decode"]
