"""The transducer loss in pure JAX: every platform's twin of the kernels.

It runs where there is no kernel (TPU, ROCm), gives derivatives of any order and in both
modes, and is what the kernels are tested against. It shares no arithmetic with them: they
compute posteriors from alphas and betas, it differentiates a scan over anti-diagonals.

Each stage is a function of arrays `[batch_dims..., T, U+1, ...]`; lengths are int32 and
`[batch_dims...]`. See `lattice/` for the recursions and the meaning of an arc table.
"""

from jax_mbrnnt._reference.alignment import lattice_alignment, of_arcs
from jax_mbrnnt._reference.derivatives import (
    differentiable_lattice_loss,
    differentiable_loss,
    nothing_but_a_tangent,
)
from jax_mbrnnt._reference.lattice import lattice, lattice_score
from jax_mbrnnt._reference.nodes import lengths_are_valid
from jax_mbrnnt._reference.rows import arc_log_probs, logit_gradients, real_dtype
from jax_mbrnnt._stages import Stages

STAGES = Stages(arc_log_probs, lattice, lattice_score, lattice_alignment, logit_gradients)

__all__ = [
    "STAGES",
    "arc_log_probs",
    "differentiable_lattice_loss",
    "differentiable_loss",
    "lattice",
    "lattice_alignment",
    "lattice_score",
    "lengths_are_valid",
    "logit_gradients",
    "nothing_but_a_tangent",
    "of_arcs",
    "real_dtype",
]
