"""Transducer losses for JAX, as XLA FFI kernels: RNN-T, multi-blank RNN-T and TDT.

Start with `multiblank_rnnt_loss` (arXiv 2211.03541), `tdt_loss` (arXiv 2304.06795) or
`rnnt_loss`; `MultiblankRNNT` and `TDT` hold the options of a model and have all the methods,
`joint_loss` among them, which never makes the logits. `greedy_decode` and `beam_decode` recognise,
`GreedyStream` while somebody speaks; `lattice_loss` and `viterbi_alignment` are the lattice alone.
"""

from jax_mbrnnt.alignment import Alignment, viterbi_alignment
from jax_mbrnnt.arcs import (
    NEXT_LABEL,
    NOTHING,
    Arc,
    Emission,
    multiblank_arcs,
    rnnt_arcs,
    tdt_arcs,
)
from jax_mbrnnt.decoding import (
    BeamDecoding,
    GreedyDecoding,
    GreedyStream,
    LanguageModel,
    NGram,
    StreamCarry,
    Word,
    beam_decode,
    ctm_lines,
    entropy_confidence,
    greedy_decode,
    label_posteriors,
    max_prob_confidence,
    read_arpa,
    word_times,
)
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
    "Alignment",
    "Arc",
    "BeamDecoding",
    "Emission",
    "GreedyDecoding",
    "GreedyStream",
    "LanguageModel",
    "MultiblankRNNT",
    "NGram",
    "StreamCarry",
    "Transducer",
    "Word",
    "arc_posteriors",
    "beam_decode",
    "ctm_lines",
    "entropy_confidence",
    "greedy_decode",
    "label_posteriors",
    "lattice_loss",
    "max_prob_confidence",
    "multiblank_arcs",
    "multiblank_rnnt_joint_loss",
    "multiblank_rnnt_loss",
    "read_arpa",
    "rnnt_arcs",
    "rnnt_loss",
    "tdt_arcs",
    "tdt_joint_loss",
    "tdt_loss",
    "viterbi_alignment",
    "word_times",
]
