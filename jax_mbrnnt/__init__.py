"""Transducer losses for JAX, as XLA FFI kernels: RNN-T, multi-blank RNN-T and TDT.

Start with `multiblank_rnnt_loss` (arXiv 2211.03541), `tdt_loss` (arXiv 2304.06795) or
`rnnt_loss`; `MultiblankRNNT` and `TDT` hold the options of a model and have all the methods,
`joint_loss` among them, which never makes the logits; `greedy_decode` decodes, `GreedyStream` while
somebody speaks, and `lattice_loss` is the lattice alone.
"""

from jax_mbrnnt.arcs import (
    NEXT_LABEL,
    NOTHING,
    Arc,
    Emission,
    multiblank_arcs,
    rnnt_arcs,
    tdt_arcs,
)
from jax_mbrnnt.decoding import GreedyDecoding, GreedyStream, StreamCarry, greedy_decode
from jax_mbrnnt.lattice import arc_posteriors, lattice_loss
from jax_mbrnnt.transducers import (
    TDT,
    MultiblankRNNT,
    Transducer,
    multiblank_rnnt_joint_loss,
    multiblank_rnnt_loss,
    rnnt_loss,
    tdt_joint_loss,
    tdt_loss,
)

__version__ = "0.1.0"

__all__ = [
    "NEXT_LABEL",
    "NOTHING",
    "TDT",
    "Arc",
    "Emission",
    "GreedyDecoding",
    "GreedyStream",
    "MultiblankRNNT",
    "StreamCarry",
    "Transducer",
    "arc_posteriors",
    "greedy_decode",
    "lattice_loss",
    "multiblank_arcs",
    "multiblank_rnnt_joint_loss",
    "multiblank_rnnt_loss",
    "rnnt_arcs",
    "rnnt_loss",
    "tdt_arcs",
    "tdt_joint_loss",
    "tdt_loss",
]
