"""The lattice alone: arc log-probabilities of any arc table -> losses and posteriors."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
from jax.typing import ArrayLike

from jax_mbrnnt import _checks, _primitives, _reference
from jax_mbrnnt._loss import stages_of, varying_like
from jax_mbrnnt._stages import Implementation
from jax_mbrnnt.arcs import Arc, validate_arcs


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _loss(arc_log_probs, logit_lengths, label_lengths, arcs, implementation):
    return stages_of(implementation).lattice_score(
        arc_log_probs, logit_lengths, label_lengths, arcs=arcs
    )


def _loss_forward(arc_log_probs, logit_lengths, label_lengths, arcs, implementation):
    losses, posteriors = stages_of(implementation).lattice(
        arc_log_probs, logit_lengths, label_lengths, arcs=arcs
    )
    # Whether the lengths vary over a mesh where the arcs do not shows in the posteriors alone.
    return losses, (posteriors, arc_log_probs[..., :0])


def _loss_backward(arcs, implementation, residuals, cotangents):
    posteriors, like = residuals
    gradient = -posteriors * cotangents[..., None, None, None]
    return varying_like(gradient, like), None, None


_loss.defvjp(_loss_forward, _loss_backward)


def lengths_of(utterances, arc_log_probs):
    num_batch, (num_frames, columns) = arc_log_probs.ndim - 3, arc_log_probs.shape[-3:-1]
    return utterances.settled(arc_log_probs, num_batch, num_frames, columns)[1:]


@functools.partial(jax.jit, static_argnames=("arcs", "implementation"))
def _losses(arc_log_probs, utterances, *, arcs, implementation):
    lengths = lengths_of(utterances, arc_log_probs)
    if implementation == "xla":
        return _reference.differentiable_lattice_loss(arc_log_probs, *lengths, arcs)
    arc_log_probs = _primitives.reverse_mode_only(arc_log_probs)
    return _loss(arc_log_probs, *lengths, arcs, implementation)


@functools.partial(jax.jit, static_argnames=("arcs", "implementation"))
def _posteriors(arc_log_probs, utterances, *, arcs, implementation):
    lengths = lengths_of(utterances, arc_log_probs)
    return stages_of(implementation).lattice(arc_log_probs, *lengths, arcs=arcs)[1]


def operands_of(arc_log_probs, logit_lengths, label_lengths, arcs, implementation):
    _checks.check_implementation(implementation)
    arcs = validate_arcs(arcs)
    arc_log_probs = _checks.check_arc_log_probs(arc_log_probs, len(arcs))
    utterances = _checks.check_utterances(
        arc_log_probs, "arc_log_probs", None, logit_lengths, label_lengths
    )
    chosen = _checks.chosen_implementation(implementation)
    return (arc_log_probs, utterances), {"arcs": arcs, "implementation": chosen}


def lattice_loss(
    arc_log_probs: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    arcs: Sequence[Arc],
    implementation: Implementation = None,
) -> jax.Array:
    """The negative log-likelihood over any arc table: the lattice alone.

    The ground on which other emission models stand: token-and-duration transducers, factorised
    blanks, a joint network evaluated in chunks. The derivative in `arc_log_probs` is minus the
    arc posterior.

    Args:
      arc_log_probs: `[batch_dims..., T, U+1, A]` float32 or float64, the log-probability of
        taking each arc from node (t, u), in nats; they need not sum to 1. What stands where there
        is no arc (padding, no label left, beyond the last frame) is ignored.
      logit_lengths: `[batch_dims...]` integers, the frames of each utterance; all T if None.
      label_lengths: `[batch_dims...]` integers, the labels of each utterance; all U if None.
      arcs: the A arcs, as `multiblank_arcs` or `tdt_arcs` make them. Only a blank may end the
        utterance.
      implementation: see `Transducer`.

    Returns:
      Losses `[batch_dims...]` in nats.

    Raises:
      TypeError: for a dtype other than the above.
      ValueError: for shapes that do not match, an arc that cannot be, and, where they are not
        traced, lengths out of range.

    Source: Graves, arXiv 1211.3711, section 2.4, over the arcs of arXiv 2211.03541 (multi-blank)
    and arXiv 2304.06795 (TDT).

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import Arc, lattice_loss
      >>> # Two frames, one label; labels may take a frame as well.
      >>> arcs = (Arc(0, True), Arc(1, True), Arc(1, False))
      >>> loss = lattice_loss(jnp.full((2, 2, 3), jnp.log(1 / 3)), arcs=arcs)
      >>> bool(jnp.allclose(loss, -jnp.log(2 / 3**3 + 1 / 3**2)))
      True
    """
    operands, static = operands_of(
        arc_log_probs, logit_lengths, label_lengths, arcs, implementation
    )
    return _losses(*operands, **static)


def arc_posteriors(
    arc_log_probs: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    arcs: Sequence[Arc],
    implementation: Implementation = None,
) -> jax.Array:
    """The probability that an alignment takes each arc, given the labels.

    For pictures, confidences and distillation. Not differentiable through the kernels: use
    `implementation="xla"` for that.

    Args:
      arc_log_probs: `[batch_dims..., T, U+1, A]` float32 or float64, as in `lattice_loss`.
      logit_lengths: `[batch_dims...]`; all T if None.
      label_lengths: `[batch_dims...]`; all U if None.
      arcs: the A arcs.
      implementation: see `Transducer`.

    Returns:
      `[batch_dims..., T, U+1, A]`, each in [0, 1]; 0 where there is no arc, and all of it for an
      utterance that no alignment fits; NaN for one whose loss is NaN.

    Raises:
      TypeError, ValueError: as `lattice_loss`.

    Source: Graves, arXiv 1211.3711, eq. 20, per arc.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import arc_posteriors, rnnt_arcs
      >>> posteriors = arc_posteriors(jnp.zeros((4, 3, 2)), arcs=rnnt_arcs())
      >>> # Whenever it is emitted, the first label is emitted once.
      >>> bool(jnp.allclose(posteriors[:, 0, 0].sum(), 1.0))
      True
    """
    operands, static = operands_of(
        arc_log_probs, logit_lengths, label_lengths, arcs, implementation
    )
    return _posteriors(*operands, **static)
