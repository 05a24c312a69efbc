"""The public losses: stages composed under `jax.custom_vjp`, and the checks in front."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_mbrnnt import _checks, _primitives, _reference
from jax_mbrnnt._checks import Implementation
from jax_mbrnnt._mesh import varying_axes
from jax_mbrnnt._reference import Stages
from jax_mbrnnt._spec import Arc, Options, validate_arcs
from jax_mbrnnt.joint import Joint, joint_losses


def _stages(implementation: Implementation) -> Stages:
    if implementation == "xla":
        return _reference.STAGES
    return _primitives.stages(require_kernel=implementation == "ffi")


def _varying_like(gradient: jax.Array, operand: jax.Array) -> jax.Array:
    """Under `shard_map`: sums over the mesh axes that the gradient has beyond its operand.

    Logits that are the same on every device, with labels that are not, get the sum.
    """
    extra = varying_axes(gradient) - varying_axes(operand)
    return jax.lax.psum(gradient, tuple(sorted(extra))) if extra else gradient


# ---- logits -> losses --------------------------------------------------------------------


def _scores(
    logits: jax.Array,
    labels: jax.Array,
    logit_lengths: jax.Array,
    label_lengths: jax.Array,
    options: Options,
    implementation: Implementation,
) -> jax.Array:
    stages = _stages(implementation)
    arc_log_probs, _ = stages.arc_log_probs(
        logits,
        labels,
        logit_lengths,
        label_lengths,
        arc_classes=options.arc_classes(logits.shape[-1]),
        sigma=options.sigma,
    )
    losses = stages.lattice_score(arc_log_probs, logit_lengths, label_lengths, arcs=options.arcs)
    return _reference.value(losses, options)


_loss = jax.custom_vjp(_scores, nondiff_argnums=(4, 5))


def _loss_forward(logits, labels, logit_lengths, label_lengths, options, implementation):
    stages = _stages(implementation)
    arc_log_probs, log_normalizers = stages.arc_log_probs(
        logits,
        labels,
        logit_lengths,
        label_lengths,
        arc_classes=options.arc_classes(logits.shape[-1]),
        sigma=options.sigma,
    )
    losses, posteriors = stages.lattice(
        arc_log_probs, logit_lengths, label_lengths, arcs=options.arcs
    )
    residuals = logits, labels, logit_lengths, label_lengths, log_normalizers, posteriors
    return _reference.value(losses, options), residuals


def _loss_backward(options, implementation, residuals, cotangents):
    logits = residuals[0]
    gradient = _stages(implementation).logit_gradients(
        *residuals,
        cotangents,
        arc_classes=options.arc_classes(logits.shape[-1]),
        fastemit_lambda=options.fastemit_lambda,
        clamp=options.clamp,
    )
    return _varying_like(gradient, logits), None, None, None


_loss.defvjp(_loss_forward, _loss_backward)


def _operands(logits, utterances, options):
    return logits, *_settled(utterances, logits, options.blanks(logits.shape[-1]))


def _settled(utterances, nodes, blanks=()):
    return utterances.settled(nodes, nodes.ndim - 3, nodes.shape, blanks)


@functools.partial(jax.jit, static_argnames=("options", "implementation"))
def _losses(logits, utterances, *, options, implementation):
    operands = _operands(logits, utterances, options)
    if implementation == "xla":
        return _reference.differentiable_loss(*operands, options)
    logits, *utterances = operands
    return _loss(_primitives.reverse_mode_only(logits), *utterances, options, implementation)


@functools.partial(jax.jit, static_argnames=("options", "implementation"))
def _losses_without_gradient(logits, utterances, *, options, implementation):
    logits = _primitives.without_derivative(
        logits,
        "MultiblankRNNT.score_forward: it has no derivative; differentiate the criterion itself, "
        "criterion(logits, labels, ...), or multiblank_rnnt_loss",
    )
    return _scores(*_operands(logits, utterances, options), options, implementation)


@functools.partial(jax.jit, static_argnames=("options", "implementation"))
def _losses_and_gradients(logits, utterances, *, options, implementation):
    logits = _primitives.without_derivative(
        logits,
        "MultiblankRNNT.cost_and_grad: it returns the gradient and has no derivative; for jax.grad "
        "call the criterion itself, criterion(logits, labels, ...), or multiblank_rnnt_loss",
    )
    operands = _operands(logits, utterances, options)
    losses, residuals = _loss_forward(*operands, options, implementation)
    gradient, *_ = _loss_backward(options, implementation, residuals, jnp.ones_like(losses))
    return losses, gradient


# ---- logits -> arc log-probabilities -------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _arc_log_probs(logits, labels, logit_lengths, label_lengths, options, implementation):
    operands = logits, labels, logit_lengths, label_lengths
    return _arc_log_probs_forward(*operands, options, implementation)[0]


def _arc_log_probs_forward(logits, labels, logit_lengths, label_lengths, options, implementation):
    operands = logits, labels, logit_lengths, label_lengths
    arc_log_probs, log_normalizers = _stages(implementation).arc_log_probs(
        *operands, arc_classes=options.arc_classes(logits.shape[-1]), sigma=options.sigma
    )
    return arc_log_probs, (*operands, log_normalizers)


def _arc_log_probs_backward(options, implementation, residuals, cotangents):
    # The pull-back is the losses', with minus the cotangents in the place of the posteriors.
    logits = residuals[0]
    gradient = _stages(implementation).logit_gradients(
        *residuals,
        -cotangents,
        jnp.ones(cotangents.shape[:-3], cotangents.dtype),
        arc_classes=options.arc_classes(logits.shape[-1]),
        fastemit_lambda=0.0,
        clamp=0.0,
    )
    return _varying_like(gradient, logits), None, None, None


_arc_log_probs.defvjp(_arc_log_probs_forward, _arc_log_probs_backward)


@functools.partial(jax.jit, static_argnames=("options", "implementation"))
def _jitted_arc_log_probs(logits, utterances, *, options, implementation):
    logits, *utterances = _operands(logits, utterances, options)
    if implementation != "xla":
        logits = _primitives.reverse_mode_only(logits)
    return _arc_log_probs(logits, *utterances, options, implementation)


# ---- arc log-probabilities -> losses -------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _lattice_loss(arc_log_probs, logit_lengths, label_lengths, arcs, implementation):
    stages = _stages(implementation)
    return stages.lattice_score(arc_log_probs, logit_lengths, label_lengths, arcs=arcs)


def _lattice_loss_forward(arc_log_probs, logit_lengths, label_lengths, arcs, implementation):
    stages = _stages(implementation)
    losses, posteriors = stages.lattice(arc_log_probs, logit_lengths, label_lengths, arcs=arcs)
    # Whether the lengths vary over a mesh where the arcs do not shows in the posteriors alone.
    return losses, (posteriors, arc_log_probs[..., :0])


def _lattice_loss_backward(arcs, implementation, residuals, cotangents):
    posteriors, like = residuals
    gradient = -posteriors * cotangents[..., None, None, None]
    return _varying_like(gradient, like), None, None


_lattice_loss.defvjp(_lattice_loss_forward, _lattice_loss_backward)


@functools.partial(jax.jit, static_argnames=("arcs", "implementation"))
def _lattice_losses(arc_log_probs, utterances, *, arcs, implementation):
    _, *lengths = _settled(utterances, arc_log_probs)
    if implementation == "xla":
        return _reference.differentiable_lattice_loss(arc_log_probs, *lengths, arcs)
    arc_log_probs = _primitives.reverse_mode_only(arc_log_probs)
    return _lattice_loss(arc_log_probs, *lengths, arcs, implementation)


@functools.partial(jax.jit, static_argnames=("arcs", "implementation"))
def _lattice_posteriors(arc_log_probs, utterances, *, arcs, implementation):
    _, *lengths = _settled(utterances, arc_log_probs)
    return _stages(implementation).lattice(arc_log_probs, *lengths, arcs=arcs)[1]


@functools.partial(jax.jit, static_argnames=("options", "implementation"))
def _posteriors(logits, utterances, *, options, implementation):
    logits, *utterances = _operands(logits, utterances, options)
    arc_log_probs = _arc_log_probs(logits, *utterances, options, implementation)
    _, *lengths = utterances
    return _stages(implementation).lattice(arc_log_probs, *lengths, arcs=options.arcs)[1]


# ---- public --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MultiblankRNNT(Options):
    """The multi-blank RNN-Transducer loss with its options settled.

    A frozen, hashable dataclass of static options: it can be built from a configuration file,
    closed over, or passed to a jitted function as a static argument. Its methods are the
    counterparts of those of ESPnet's `MultiblankGPURNNT`.

    Attributes:
      blank_id: class of the standard blank; negative counts from the end.
      big_blank_durations: frames that each big blank skips, distinct and at least 2. Big blank i
        is class `blank_id - 1 - i`: labels first, then the big blanks, the standard blank last.
      sigma: logit under-normalisation, subtracted from the log-probability of every arc; makes
        long jumps attractive while training (the paper uses 0.05).
      fastemit_lambda: FastEmit (arXiv 2010.11148): scales the loss by `1 + fastemit_lambda` and
        weighs the label arcs' posteriors by it in the gradient, which is then not the derivative
        of the value. The convention of warp-transducer, ESPnet and NeMo.
      clamp: bounds each element of the gradient to [-clamp, clamp], before the cotangent of the
        utterance multiplies it; 0 for none.
      implementation: None for the best that there is on the platform, "ffi" to insist on the
        kernels, "xla" for pure JAX (any platform, any order and mode of derivative).

    Raises:
      ValueError: for an option out of its range, naming it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import MultiblankRNNT
      >>> criterion = MultiblankRNNT(big_blank_durations=(2, 4, 8), sigma=0.05)
      >>> logits = jax.random.normal(jax.random.key(0), (2, 50, 11, 32))
      >>> labels = jax.random.randint(jax.random.key(1), (2, 10), 0, 28)
      >>> losses = criterion(logits, labels, jnp.array([50, 40]), jnp.array([10, 7]))
      >>> losses.shape
      (2,)
    """

    implementation: Implementation = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.check_implementation(self.implementation)

    def _operands(self, logits, labels, logit_lengths, label_lengths):
        logits = _checks.check_logits(logits)
        blanks = self.blanks(logits.shape[-1])  # raises if one falls outside [0, V)
        utterances = _checks.check_utterances(
            logits, "logits", labels, logit_lengths, label_lengths, blanks
        )
        return logits, utterances

    @property
    def _static(self) -> dict[str, Any]:
        return {"options": self, "implementation": self.implementation}

    def __call__(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> jax.Array:
        """Losses `[batch_dims...]`, differentiable in the logits: see `multiblank_rnnt_loss`."""
        operands = self._operands(logits, labels, logit_lengths, label_lengths)
        return _losses(*operands, **self._static)

    def score_forward(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> jax.Array:
        """Losses `[batch_dims...]` alone: no betas, no posteriors, nothing kept for a gradient.

        The operands are those of `multiblank_rnnt_loss`.
        """
        operands = self._operands(logits, labels, logit_lengths, label_lengths)
        return _losses_without_gradient(*operands, **self._static)

    def cost_and_grad(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Losses `[batch_dims...]` and the gradient of their sum, like `logits`, in one call.

        Without automatic differentiation; the operands are those of `multiblank_rnnt_loss`.
        """
        operands = self._operands(logits, labels, logit_lengths, label_lengths)
        return _losses_and_gradients(*operands, **self._static)

    def joint_loss(
        self,
        joint: Joint,
        params: Any,
        encoded: Any,
        predicted: Any,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
        *,
        chunk_frames: int | None = None,
    ) -> jax.Array:
        """Losses `[batch_dims...]` of a joint's logits: see `multiblank_rnnt_joint_loss`."""
        return joint_losses(
            joint,
            params,
            encoded,
            predicted,
            labels,
            logit_lengths,
            label_lengths,
            chunk_frames=chunk_frames,
            options=self,
            implementation=self.implementation,
        )

    def arc_log_probs(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> jax.Array:
        """Arc log-probabilities `[batch_dims..., T, U+1, A]`: see `multiblank_arc_log_probs`."""
        operands = self._operands(logits, labels, logit_lengths, label_lengths)
        return _jitted_arc_log_probs(*operands, **self._static)

    def posteriors(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> jax.Array:
        """Arc posteriors `[batch_dims..., T, U+1, A]`, in the order of `arcs`.

        The operands are those of `multiblank_rnnt_loss`; see `arc_posteriors`.
        """
        operands = self._operands(logits, labels, logit_lengths, label_lengths)
        return _posteriors(*operands, **self._static)


def multiblank_rnnt_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    blank_id: int = -1,
    big_blank_durations: Sequence[int] = (),
    sigma: float = 0.0,
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
    implementation: Implementation = None,
) -> jax.Array:
    """The multi-blank RNN-Transducer loss of every utterance.

    The negative log-likelihood of the labels, summed over all alignments in which a standard
    blank takes one frame and big blank i takes `big_blank_durations[i]`. Differentiable in the
    logits (reverse mode; see `implementation`), and usable under `jit`, `vmap`, `pmap`,
    `shard_map` and batch-sharded `jit`.

    Args:
      logits: `[batch_dims..., T, U+1, V]` float32, float64, bfloat16 or float16: unnormalised
        scores of the joint network. -inf masks a class.
      labels: `[batch_dims..., U]` integers in [0, V), none of them a blank.
      logit_lengths: `[batch_dims...]` integers, the frames of each utterance, 0 to T. All T if
        None. Frames beyond it are ignored, whatever they hold, and get gradient 0.
      label_lengths: `[batch_dims...]` integers, the labels of each utterance, 0 to U. All U if
        None.
      blank_id: class of the standard blank; negative counts from the end.
      big_blank_durations: frames that each big blank skips, distinct and at least 2. Big blank i
        is class `blank_id - 1 - i`: labels first, then the big blanks, the standard blank last.
      sigma: logit under-normalisation, subtracted from the log-probability of every arc (natural
        logarithm; section 3 of the paper, which uses 0.05).
      fastemit_lambda: FastEmit's lambda (arXiv 2010.11148). Scales the value by
        `1 + fastemit_lambda` and weighs the label arcs by it in the gradient, so that the
        gradient is FastEmit's and not the derivative of the returned value.
      clamp: bounds each element of the gradient to [-clamp, clamp], before the cotangent of the
        utterance multiplies it; 0 for none.
      implementation: None for the best that there is on the platform, "ffi" to insist on the
        kernels, "xla" for pure JAX (any platform, any order and mode of derivative).

    Returns:
      Losses `[batch_dims...]` in nats, float32 (float64 for float64 logits). An utterance that no
      alignment fits has loss +inf and gradient 0; one with a NaN or +inf logit, or under `jit`
      with a label or length out of range, has loss and gradient NaN, and it alone. An utterance
      without frames and labels has loss 0.

    Raises:
      TypeError: for a dtype other than the above.
      ValueError: for shapes that do not match, options out of range, and, where labels and
        lengths are not traced, for a label or length out of range.

    Source: Xu et al., "Multi-blank Transducers for Speech Recognition", arXiv 2211.03541, eq. 3
    to 6; without big blanks Graves, arXiv 1211.3711.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import multiblank_rnnt_loss
      >>> logits = jax.random.normal(jax.random.key(0), (2, 50, 11, 32))
      >>> labels = jax.random.randint(jax.random.key(1), (2, 10), 0, 28)
      >>> def mean_loss(logits):
      ...     losses = multiblank_rnnt_loss(
      ...         logits,
      ...         labels,
      ...         logit_lengths=jnp.array([50, 40]),
      ...         label_lengths=jnp.array([10, 7]),
      ...         big_blank_durations=(2, 4, 8),
      ...         sigma=0.05,
      ...     )
      ...     return losses.mean()
      >>> value, gradient = jax.jit(jax.value_and_grad(mean_loss))(logits)
      >>> gradient.shape
      (2, 50, 11, 32)
    """
    criterion = MultiblankRNNT(
        blank_id=blank_id,
        big_blank_durations=tuple(big_blank_durations),
        sigma=sigma,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        implementation=implementation,
    )
    return criterion(logits, labels, logit_lengths, label_lengths)


def rnnt_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    blank_id: int = -1,
    fastemit_lambda: float = 0.0,
    clamp: float = 0.0,
    implementation: Implementation = None,
) -> jax.Array:
    """The RNN-Transducer loss of every utterance: `multiblank_rnnt_loss` without big blanks.

    Args:
      logits: `[batch_dims..., T, U+1, V]`.
      labels: `[batch_dims..., U]`.
      logit_lengths: `[batch_dims...]`; all T if None.
      label_lengths: `[batch_dims...]`; all U if None.
      blank_id: class of the blank; negative counts from the end.
      fastemit_lambda: see `multiblank_rnnt_loss`.
      clamp: see `multiblank_rnnt_loss`.
      implementation: see `multiblank_rnnt_loss`.

    Returns:
      Losses `[batch_dims...]` in nats.

    Raises:
      TypeError, ValueError: as `multiblank_rnnt_loss`.

    Source: Graves, "Sequence Transduction with Recurrent Neural Networks", arXiv 1211.3711,
    eq. 16 to 20.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import rnnt_loss
      >>> # Uniform logits, one label: two alignments of three arcs, each of probability 1/3.
      >>> loss = rnnt_loss(jnp.zeros((2, 2, 3)), jnp.array([0]))
      >>> bool(jnp.allclose(loss, -jnp.log(2 / 3**3)))
      True
    """
    return multiblank_rnnt_loss(
        logits,
        labels,
        logit_lengths,
        label_lengths,
        blank_id=blank_id,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        implementation=implementation,
    )


def checked_multiblank_rnnt_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    **options: Any,
) -> jax.Array:
    """`multiblank_rnnt_loss` that reports labels and lengths out of range from inside `jit`.

    For debugging: run the function that calls it under `jax.experimental.checkify.checkify`. The
    message names the argument, the index, what was expected and what came.

    Args:
      logits: `[batch_dims..., T, U+1, V]`.
      labels: `[batch_dims..., U]`.
      logit_lengths: `[batch_dims...]`; all T if None.
      label_lengths: `[batch_dims...]`; all U if None.
      **options: the keyword arguments of `multiblank_rnnt_loss`.

    Returns:
      Losses `[batch_dims...]`.

    Raises:
      TypeError, ValueError: as `multiblank_rnnt_loss`.

    Source: as `multiblank_rnnt_loss`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax.experimental import checkify
      >>> from jax_mbrnnt import checked_multiblank_rnnt_loss
      >>> loss = jax.jit(checkify.checkify(checked_multiblank_rnnt_loss))
      >>> error, losses = loss(jnp.zeros((1, 4, 3, 5)), jnp.array([[1, 7]]))
      >>> "labels[0, 1]" in error.get()
      True
    """
    criterion = MultiblankRNNT(**options)
    operand, utterances = criterion._operands(logits, labels, logit_lengths, label_lengths)
    blanks = criterion.blanks(operand.shape[-1])
    _checks.check_under_checkify(utterances, operand.shape, blanks)
    return criterion(operand, *utterances)


def multiblank_arc_log_probs(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    blank_id: int = -1,
    big_blank_durations: Sequence[int] = (),
    sigma: float = 0.0,
    implementation: Implementation = None,
) -> jax.Array:
    """The log-probability of every arc of the lattice, differentiable in the logits.

    The first half of `multiblank_rnnt_loss`; `lattice_loss` is the second.

    Args:
      logits: `[batch_dims..., T, U+1, V]`.
      labels: `[batch_dims..., U]`.
      logit_lengths: `[batch_dims...]`; all T if None.
      label_lengths: `[batch_dims...]`; all U if None.
      blank_id: class of the standard blank; negative counts from the end.
      big_blank_durations: frames that each big blank skips.
      sigma: logit under-normalisation.
      implementation: see `multiblank_rnnt_loss`; "xla" has derivatives of any order here, too,
        but in reverse mode alone.

    Returns:
      `[batch_dims..., T, U+1, A]` in nats, the arcs in the order of
      `multiblank_arcs(big_blank_durations)`: the next label, the standard blank, the big blanks.
      -inf in padding and where no label is left.

    Raises:
      TypeError, ValueError: as `multiblank_rnnt_loss`.

    Source: arXiv 2211.03541, section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import multiblank_arc_log_probs
      >>> arc_log_probs = multiblank_arc_log_probs(
      ...     jnp.zeros((3, 2, 4)), jnp.array([0]), big_blank_durations=(2,)
      ... )
      >>> arc_log_probs.shape
      (3, 2, 3)
    """
    criterion = MultiblankRNNT(
        blank_id=blank_id,
        big_blank_durations=tuple(big_blank_durations),
        sigma=sigma,
        implementation=implementation,
    )
    return criterion.arc_log_probs(logits, labels, logit_lengths, label_lengths)


def _lattice_operands(arc_log_probs, logit_lengths, label_lengths, arcs, implementation):
    _checks.check_implementation(implementation)
    arcs = validate_arcs(arcs)
    arc_log_probs = _checks.check_arc_log_probs(arc_log_probs, len(arcs))
    utterances = _checks.check_utterances(
        arc_log_probs, "arc_log_probs", None, logit_lengths, label_lengths
    )
    return (arc_log_probs, utterances), {"arcs": arcs, "implementation": implementation}


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
      implementation: see `multiblank_rnnt_loss`.

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
    operands, static = _lattice_operands(
        arc_log_probs, logit_lengths, label_lengths, arcs, implementation
    )
    return _lattice_losses(*operands, **static)


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
      implementation: see `multiblank_rnnt_loss`.

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
    operands, static = _lattice_operands(
        arc_log_probs, logit_lengths, label_lengths, arcs, implementation
    )
    return _lattice_posteriors(*operands, **static)
