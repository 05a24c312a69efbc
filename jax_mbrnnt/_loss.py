"""The losses of any transducer from its logits: the stages composed under `jax.custom_vjp`.

Each function takes the operands as `_checks` leaves them and is one jitted program.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jax_mbrnnt import _primitives, _reference
from jax_mbrnnt._checks import Utterances
from jax_mbrnnt._mesh import varying_axes
from jax_mbrnnt._numbers import Given
from jax_mbrnnt._stages import Implementation, Numbers, Plan, Stages, value


def stages_of(implementation: Implementation) -> Stages:
    if implementation == "xla":
        return _reference.STAGES
    return _primitives.stages(require_kernel=implementation == "ffi")


def varying_like(gradient: jax.Array, operand: jax.Array) -> jax.Array:
    """Under `shard_map`: sums over the mesh axes that the gradient has beyond its operand.

    Logits that are the same on every device, with labels that are not, get the sum.
    """
    extra = varying_axes(gradient) - varying_axes(operand)
    return jax.lax.psum(gradient, tuple(sorted(extra))) if extra else gradient


def _operands(
    logits: jax.Array, utterances: Utterances, given: Given, plan: Plan
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, Numbers]:
    """`logits, labels, logit_lengths, label_lengths, numbers`, as the stages take them."""
    num_batch = logits.ndim - 3
    *_, num_frames, columns, _ = logits.shape
    settled = utterances.settled(logits, num_batch, num_frames, columns, plan.emission.blanks)
    numbers = given.settled(logits, num_batch, logits.dtype)
    return logits, *settled, numbers


# ---- logits -> losses --------------------------------------------------------------------


def _scores(logits, labels, logit_lengths, label_lengths, numbers, plan):
    stages = stages_of(plan.implementation)
    arc_log_probs, _ = stages.arc_log_probs(
        logits, labels, logit_lengths, label_lengths, numbers.sigmas, emission=plan.emission
    )
    losses = stages.lattice_score(arc_log_probs, logit_lengths, label_lengths, arcs=plan.arcs)
    return value(losses, numbers)


_loss = jax.custom_vjp(_scores, nondiff_argnums=(5,))


def _loss_forward(logits, labels, logit_lengths, label_lengths, numbers, plan):
    stages = stages_of(plan.implementation)
    operands = logits, labels, logit_lengths, label_lengths
    arc_log_probs, log_normalizers = stages.arc_log_probs(
        *operands, numbers.sigmas, emission=plan.emission
    )
    losses, posteriors = stages.lattice(arc_log_probs, logit_lengths, label_lengths, arcs=plan.arcs)
    return value(losses, numbers), ((*operands, log_normalizers, posteriors), numbers)


def _loss_backward(plan, residuals, cotangents):
    of_nodes, numbers = residuals
    gradient = stages_of(plan.implementation).gradients(
        *of_nodes, numbers=numbers, cotangents=cotangents, plan=plan
    )
    return varying_like(gradient, of_nodes[0]), None, None, None, None


_loss.defvjp(_loss_forward, _loss_backward)


@functools.partial(jax.jit, static_argnames=("plan",))
def losses(logits: jax.Array, utterances: Utterances, given: Given, *, plan: Plan) -> jax.Array:
    operands = _operands(logits, utterances, given, plan)
    if plan.implementation == "xla":
        return _reference.differentiable_loss(*operands, plan)
    logits, *others = operands
    return _loss(_primitives.reverse_mode_only(logits), *others, plan)


@functools.partial(jax.jit, static_argnames=("plan",))
def losses_without_gradient(
    logits: jax.Array, utterances: Utterances, given: Given, *, plan: Plan
) -> jax.Array:
    logits = _primitives.without_derivative(
        logits,
        "score_forward: it has no derivative; differentiate the criterion itself, "
        "criterion(logits, labels, ...)",
    )
    return _scores(*_operands(logits, utterances, given, plan), plan)


@functools.partial(jax.jit, static_argnames=("plan",))
def losses_and_gradients(
    logits: jax.Array, utterances: Utterances, given: Given, *, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    logits = _primitives.without_derivative(
        logits,
        "cost_and_grad: it returns the gradient and has no derivative; for jax.grad call the "
        "criterion itself, criterion(logits, labels, ...)",
    )
    losses, residuals = _loss_forward(*_operands(logits, utterances, given, plan), plan)
    gradient, *_ = _loss_backward(plan, residuals, jnp.ones_like(losses))
    return losses, gradient


# ---- logits -> arc log-probabilities -------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _arc_log_probs(logits, labels, logit_lengths, label_lengths, sigmas, plan):
    operands = logits, labels, logit_lengths, label_lengths, sigmas
    return _arc_log_probs_forward(*operands, plan)[0]


def _arc_log_probs_forward(logits, labels, logit_lengths, label_lengths, sigmas, plan):
    operands = logits, labels, logit_lengths, label_lengths
    arc_log_probs, log_normalizers = stages_of(plan.implementation).arc_log_probs(
        *operands, sigmas, emission=plan.emission
    )
    return arc_log_probs, (*operands, log_normalizers)


def _arc_log_probs_backward(plan, residuals, cotangents):
    # The pull-back is the losses', with minus the cotangents in the place of the posteriors.
    logits = residuals[0]
    ones = jnp.ones(cotangents.shape[:-3], cotangents.dtype)
    gradient = stages_of(plan.implementation).logit_gradients(
        *residuals,
        -cotangents,
        ones,
        jnp.zeros_like(ones),
        ones,
        emission=plan.emission,
        clamped=False,
    )
    return varying_like(gradient, logits), None, None, None, None


_arc_log_probs.defvjp(_arc_log_probs_forward, _arc_log_probs_backward)


@functools.partial(jax.jit, static_argnames=("plan",))
def arc_log_probs(
    logits: jax.Array, utterances: Utterances, given: Given, *, plan: Plan
) -> jax.Array:
    logits, *others, numbers = _operands(logits, utterances, given, plan)
    if plan.implementation != "xla":
        logits = _primitives.reverse_mode_only(logits)
    return _arc_log_probs(logits, *others, numbers.sigmas, plan)


@functools.partial(jax.jit, static_argnames=("plan",))
def posteriors(logits: jax.Array, utterances: Utterances, given: Given, *, plan: Plan) -> jax.Array:
    logits, *others, numbers = _operands(logits, utterances, given, plan)
    arc_log_probs = _arc_log_probs(logits, *others, numbers.sigmas, plan)
    _, *lengths = others
    return stages_of(plan.implementation).lattice(arc_log_probs, *lengths, arcs=plan.arcs)[1]
