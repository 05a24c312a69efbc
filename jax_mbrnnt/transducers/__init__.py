"""One file a transducer: its arcs, what they read, its options, its plain functions."""

from jax_mbrnnt.transducers.multiblank import (
    MultiblankRNNT,
    multiblank_rnnt_joint_loss,
    multiblank_rnnt_loss,
    rnnt_loss,
)
from jax_mbrnnt.transducers.tdt import TDT, tdt_joint_loss, tdt_loss
from jax_mbrnnt.transducers.transducer import Transducer

__all__ = [
    "TDT",
    "MultiblankRNNT",
    "Transducer",
    "multiblank_rnnt_joint_loss",
    "multiblank_rnnt_loss",
    "rnnt_loss",
    "tdt_joint_loss",
    "tdt_loss",
]
