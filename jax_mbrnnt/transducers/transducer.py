"""The one interface of all transducers: what each of them has to say, and what it gets for it."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
from jax.typing import ArrayLike

from jax_mbrnnt import _checks, _joint_loss, _loss
from jax_mbrnnt._chunks import Joint
from jax_mbrnnt._numbers import Given, Number, as_number, check_clamp, check_fastemit_lambda
from jax_mbrnnt._stages import Implementation, Plan
from jax_mbrnnt.alignment import Alignment, alignment_of_logits
from jax_mbrnnt.arcs import Arc, Emission, validate_arcs, validate_emission

__all__ = ["Array", "ArrayLike", "Implementation", "Joint", "Number", "Transducer"]

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transducer(abc.ABC):
    """A transducer with its options settled; calling it is the loss.

    A frozen dataclass: it can be built from a configuration file, closed over, or built inside of a
    jitted function from numbers that are traced. If its numbers are known it is hashable, and can
    be a static argument.

    A new transducer is a subclass that says two things, `arcs` and `emission`, and has all of the
    methods for it.

    Attributes:
      sigma: logit under-normalisation in nats, subtracted from the log-probability of every arc;
        makes long jumps attractive while training (arXiv 2211.03541, section 3, which uses 0.05).
      fastemit_lambda: FastEmit (arXiv 2010.11148): scales the loss by `1 + fastemit_lambda` and
        weighs the label arcs' posteriors by it in the gradient of the first head, which is then not
        the derivative of the value. The convention of warp-transducer, ESPnet and NeMo.
      clamp: bounds each element of the gradient of the first head to [-clamp, clamp], before the
        cotangent of the utterance multiplies it; 0 for none.
      implementation: None for the best that there is on the platform, "ffi" to insist on the
        kernels, "xla" for pure JAX (any platform, any order and mode of derivative). Where it is
        None the environment variable JAX_MBRNNT_IMPLEMENTATION may say "ffi" or "xla" instead,
        which counts for what is traced from then on.

    `sigma`, `fastemit_lambda` and `clamp` may be traced numbers, of which a new value compiles
    nothing; one that is out of its range makes the losses NaN, and none has a derivative. A clamp
    that is known to be 0 is static. So is everything else: it decides which program there is.

    Raises:
      TypeError, ValueError: for an option that is not of its kind or out of its range, naming it.

    Source: Graves, "Sequence Transduction with Recurrent Neural Networks", arXiv 1211.3711.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import TDT, MultiblankRNNT, Transducer
      >>> transducers = (MultiblankRNNT(big_blank_durations=(2, 4)), TDT(durations=(0, 1, 2)))
      >>> [transducer.emission(9).heads for transducer in transducers]
      [(9,), (6, 3)]
    """

    sigma: Number = 0.0
    fastemit_lambda: Number = 0.0
    clamp: Number = 0.0
    implementation: Implementation = None

    def __post_init__(self) -> None:
        for name in Given._fields:
            object.__setattr__(self, name, as_number(name, getattr(self, name)))
        check_fastemit_lambda(self.fastemit_lambda)
        check_clamp(self.clamp)
        _checks.check_implementation(self.implementation)

    @property
    @abc.abstractmethod
    def arcs(self) -> tuple[Arc, ...]:
        """The steps through the lattice."""

    @abc.abstractmethod
    def emission(self, num_scores: int) -> Emission:
        """What each of `arcs` reads of a row of so many scores; `ValueError` if they do not fit."""

    # ---- what follows from them ----------------------------------------------------------

    def plan(self, num_scores: int) -> Plan:
        """What losses and decoders take of a transducer, checked, for rows of so many scores."""
        arcs = validate_arcs(self.arcs)
        emission = validate_emission(self.emission(num_scores), len(arcs), num_scores)
        clamped = not (isinstance(self.clamp, float) and self.clamp == 0)
        return Plan(arcs, emission, clamped, _checks.chosen_implementation(self.implementation))

    @property
    def _given(self) -> Given:
        return Given(self.sigma, self.fastemit_lambda, self.clamp)

    def _operands(self, logits, labels, logit_lengths, label_lengths):
        logits = _checks.check_logits(logits)
        plan = self.plan(logits.shape[-1])
        utterances = _checks.check_utterances(
            logits, "logits", labels, logit_lengths, label_lengths, plan.emission
        )
        return (logits, utterances, self._given.on_device(logits.dtype)), plan

    def __call__(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> Array:
        """The negative log-likelihood of every utterance's labels, summed over all alignments.

        Differentiable in the logits (reverse mode; see `implementation`), and usable under `jit`,
        `vmap`, `pmap`, `shard_map` and batch-sharded `jit`.

        Args:
          logits: `[batch_dims..., T, U+1, V]` float32, float64, bfloat16 or float16: unnormalised
            scores of the joint network, those of all heads side by side. -inf masks a class.
          labels: `[batch_dims..., U]` integers in [0, V), or in the first head's classes, none of
            them a blank.
          logit_lengths: `[batch_dims...]` integers, the frames of each utterance, 0 to T. All T if
            None. Frames beyond it are ignored, whatever they hold, and get gradient 0.
          label_lengths: `[batch_dims...]` integers, the labels of each utterance, 0 to U. All U if
            None.

        Returns:
          Losses `[batch_dims...]` in nats, float32 (float64 for float64 logits). An utterance that
          no alignment fits has loss +inf and gradient 0; one with a NaN or +inf logit, or under
          `jit` with a label or length out of range, has loss and gradient NaN, and it alone. An
          utterance without frames and labels has loss 0.

        Raises:
          TypeError: for a dtype other than the above.
          ValueError: for shapes that do not match and, where labels and lengths are not traced, for
            a label or length out of range.
        """
        operands, plan = self._operands(logits, labels, logit_lengths, label_lengths)
        return _loss.losses(*operands, plan=plan)

    def checked(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> Array:
        """The loss, which reports labels and lengths out of range from inside of `jit`.

        For debugging: run the function that calls it under `jax.experimental.checkify.checkify`.
        The message names the argument, the index, what was expected and what came. Operands, losses
        and errors are those of `__call__`.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> from jax.experimental import checkify
          >>> from jax_mbrnnt import MultiblankRNNT
          >>> loss = jax.jit(checkify.checkify(MultiblankRNNT().checked))
          >>> error, losses = loss(jnp.zeros((1, 4, 3, 5)), jnp.array([[1, 7]]))
          >>> "labels[0, 1]" in error.get()
          True
        """
        operands, plan = self._operands(logits, labels, logit_lengths, label_lengths)
        known_logits, utterances, _ = operands
        *_, num_frames, columns, _ = known_logits.shape
        _checks.check_under_checkify(utterances, num_frames, columns, plan.emission)
        return _loss.losses(*operands, plan=plan)

    def score_forward(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> Array:
        """The losses alone: no betas, no posteriors, nothing kept for a gradient.

        Operands, losses and errors are those of `__call__`.
        """
        operands, plan = self._operands(logits, labels, logit_lengths, label_lengths)
        return _loss.losses_without_gradient(*operands, plan=plan)

    def cost_and_grad(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> tuple[Array, Array]:
        """Losses and the gradient of their sum, like `logits`, without automatic differentiation.

        Operands, losses and errors are those of `__call__`.
        """
        operands, plan = self._operands(logits, labels, logit_lengths, label_lengths)
        return _loss.losses_and_gradients(*operands, plan=plan)

    def arc_log_probs(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> Array:
        """The log-probability of every arc, `[batch_dims..., T, U+1, A]` in nats, as in `arcs`.

        The first half of the loss; `lattice_loss` is the second. -inf in padding and where no label
        is left. Differentiable in the logits, by "xla" to any order, but in reverse mode alone.
        Operands and errors are those of `__call__`.

        Example:
          >>> import jax.numpy as jnp
          >>> from jax_mbrnnt import MultiblankRNNT
          >>> criterion = MultiblankRNNT(big_blank_durations=(2,))
          >>> criterion.arc_log_probs(jnp.zeros((3, 2, 4)), jnp.array([0])).shape
          (3, 2, 3)
        """
        operands, plan = self._operands(logits, labels, logit_lengths, label_lengths)
        return _loss.arc_log_probs(*operands, plan=plan)

    def posteriors(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> Array:
        """The probability of taking each arc, `[batch_dims..., T, U+1, A]`: see `arc_posteriors`.

        Operands and errors are those of `__call__`.
        """
        operands, plan = self._operands(logits, labels, logit_lengths, label_lengths)
        return _loss.posteriors(*operands, plan=plan)

    def alignment(
        self,
        logits: ArrayLike,
        labels: ArrayLike,
        logit_lengths: ArrayLike | None = None,
        label_lengths: ArrayLike | None = None,
    ) -> Alignment:
        """The most probable path of every utterance's labels: see `viterbi_alignment`.

        Its arcs are weighed as the loss weighs them, with `sigma`. Operands and errors are those of
        `__call__`; the derivatives are in reverse mode alone.

        Example:
          >>> import jax.numpy as jnp
          >>> from jax_mbrnnt import TDT
          >>> logits = jnp.zeros((6, 3, 4 + 3)).at[1:3, :, -1].set(5.0)  # 4 tokens, 3 durations
          >>> alignment = TDT(durations=(0, 1, 2)).alignment(logits, jnp.array([1, 0]))
          >>> alignment.frames.tolist(), alignment.durations.tolist()
          ([0, 2], [2, 2])
        """
        operands, plan = self._operands(logits, labels, logit_lengths, label_lengths)
        return alignment_of_logits(*operands, plan=plan)

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
    ) -> Array:
        """The loss of a joint network's logits, which are never all there at once.

        The same losses and gradients as those of `__call__` by `joint(params, encoded, predicted)`,
        in the memory of a chunk of frames: each chunk's logits are made when the loss is computed
        and made again for the gradient. Differentiable in `params`, `encoded` and `predicted`, and
        usable under `jit`, `vmap`, `pmap`, `shard_map` and batch-sharded `jit`. `jit` the step:
        without, every call compiles, as the joint is traced at each.

        Args:
          joint: `joint(params, encoded, predicted)` returns logits `[batch_dims..., C, U+1, V]` for
            `encoded` cut to C of its frames, for any C. A node's logits depend on that node's frame
            and label alone. Any function of JAX; what it closes over counts as params.
          params: a pytree of arrays.
          encoded: `[batch_dims..., T, ...]`, an array or a pytree of them: what the joint needs of
            each frame. Integers and random keys, one for each frame, get no gradient; so does
            dropout see the same keys again.
          predicted: `[batch_dims..., U+1, ...]`, likewise of each label.
          labels: as in `__call__`, like the two that follow.
          logit_lengths: the joint sees the utterance's first frame in the place of padding, so that
            nothing of that reaches the params.
          label_lengths: likewise of the labels.
          chunk_frames: the most frames C that the joint is called with. By default as many as keep
            a chunk's logits in a few megabytes, and so in a cache.

        Returns:
          Losses `[batch_dims...]`, as `__call__`.

        Raises:
          TypeError, ValueError: as `__call__`, and for a joint or operands of it that do not fit.

        Source: that logits may be made anew where they are needed: Chen et al., "Training Deep Nets
        with Sublinear Memory Cost", arXiv 1604.06174.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> from jax_mbrnnt import MultiblankRNNT
          >>> def joint(params, encoded, predicted):
          ...     hidden = jnp.tanh(encoded[:, :, None] + predicted[:, None])
          ...     return hidden @ params["kernel"] + params["bias"]
          >>> keys = jax.random.split(jax.random.key(0), 4)
          >>> params = {"kernel": jax.random.normal(keys[0], (16, 32)), "bias": jnp.zeros(32)}
          >>> encoded = jax.random.normal(keys[1], (2, 50, 16))
          >>> predicted = jax.random.normal(keys[2], (2, 11, 16))
          >>> labels = jax.random.randint(keys[3], (2, 10), 0, 28)
          >>> criterion = MultiblankRNNT(big_blank_durations=(2, 4, 8), sigma=0.05)
          >>> def mean_loss(params, encoded, predicted):
          ...     lengths = jnp.array([50, 40]), jnp.array([10, 7])
          ...     return criterion.joint_loss(
          ...         joint, params, encoded, predicted, labels, *lengths
          ...     ).mean()
          >>> step = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1, 2)))
          >>> value, gradients = step(params, encoded, predicted)
          >>> gradients[0]["kernel"].shape
          (16, 32)
        """
        return _joint_loss.losses(
            joint,
            params,
            encoded,
            predicted,
            labels,
            logit_lengths,
            label_lengths,
            chunk_frames=chunk_frames,
            plan_of=self.plan,
            given=self._given,
        )
