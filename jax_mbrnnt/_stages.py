"""What a loss is composed of, and what is known of it before tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jax_mbrnnt.arcs import Arc, Emission

Implementation = Literal["ffi", "xla"] | None


class Plan(NamedTuple):
    """A transducer's loss for rows of a known size, but for its numbers. Hashable."""

    arcs: tuple[Arc, ...]
    emission: Emission
    clamped: bool  # whether the clamps may be any but 0
    implementation: Implementation


class Numbers(NamedTuple):
    """The options that are numbers: `[batch_dims...]`, in the dtype that the stages compute in."""

    sigmas: jax.Array
    label_weights: jax.Array  # 1 + fastemit_lambda
    clamps: jax.Array  # 0: none


class Stages(NamedTuple):
    """The stages, whoever computes them: `_reference` says what their operands are."""

    arc_log_probs: Callable[..., tuple[jax.Array, jax.Array]]
    lattice: Callable[..., tuple[jax.Array, jax.Array]]
    lattice_score: Callable[..., jax.Array]
    lattice_alignment: Callable[..., tuple[jax.Array, ...]]
    logit_gradients: Callable[..., jax.Array]

    def gradients(self, *residuals: Any, numbers: Numbers, cotangents: Any, plan: Plan) -> Any:
        """Stage 3, of what the others had and gave."""
        return self.logit_gradients(
            *residuals,
            numbers.label_weights,
            numbers.clamps,
            cotangents,
            emission=plan.emission,
            clamped=plan.clamped,
        )


def value(losses: jax.Array, numbers: Numbers) -> jax.Array:
    """What a public loss returns of stage 2's: at least +0, where roundings might say less, and
    weighed by FastEmit. An impossible utterance's is +inf, whatever it weighs.
    """
    losses = jnp.where((numbers.sigmas >= 0) & (losses <= 0), 0, losses)
    return jnp.where(losses == jnp.inf, losses, losses * numbers.label_weights)
