"""The multi-blank RNN-Transducer loss for JAX, as XLA FFI kernels.

Start with `multiblank_rnnt_loss` (arXiv 2211.03541) or `rnnt_loss`; `MultiblankRNNT` holds the
options of a model, `multiblank_rnnt_joint_loss` never makes the logits, `greedy_decode` decodes,
and `lattice_loss` is the lattice alone.
"""

from jax_mbrnnt._loss import (
    MultiblankRNNT,
    arc_posteriors,
    checked_multiblank_rnnt_loss,
    lattice_loss,
    multiblank_arc_log_probs,
    multiblank_rnnt_loss,
    rnnt_loss,
)
from jax_mbrnnt._spec import Arc, multiblank_arcs, rnnt_arcs, tdt_arcs
from jax_mbrnnt.decoding import GreedyDecoding, greedy_decode
from jax_mbrnnt.joint import multiblank_rnnt_joint_loss, rnnt_joint_loss

__version__ = "0.1.0"

__all__ = [
    "Arc",
    "GreedyDecoding",
    "MultiblankRNNT",
    "arc_posteriors",
    "checked_multiblank_rnnt_loss",
    "greedy_decode",
    "lattice_loss",
    "multiblank_arc_log_probs",
    "multiblank_arcs",
    "multiblank_rnnt_joint_loss",
    "multiblank_rnnt_loss",
    "rnnt_arcs",
    "rnnt_joint_loss",
    "rnnt_loss",
    "tdt_arcs",
]
