"""RNN-T and the multi-blank RNN-T."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax_mbrnnt.arcs import NEXT_LABEL, Arc, Emission, as_class, as_integer, multiblank_arcs
from jax_mbrnnt.transducers.transducer import (
    Array,
    ArrayLike,
    Implementation,
    Joint,
    Number,
    Transducer,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiblankRNNT(Transducer):
    """The multi-blank RNN-Transducer: blanks that take several frames at once.

    A standard blank takes one frame and big blank i takes `big_blank_durations[i]`; labels take
    none. Without big blanks it is the RNN-Transducer. Its methods are the counterparts of those of
    ESPnet's `MultiblankGPURNNT`.

    Attributes:
      blank_id: class of the standard blank; negative counts from the end.
      big_blank_durations: frames that each big blank skips, distinct and at least 2.
      big_blank_ids: class of each big blank, in the order of their durations; negative counts from
        the end. If None, big blank i is class `blank_id - 1 - i`, the layout of ESPnet and NeMo:
        labels first, then the big blanks, the standard blank last. For a model that has its blank
        first, with big blanks appended: `blank_id=0, big_blank_ids=(-2, -1)`.

    and those of `Transducer`.

    Raises:
      TypeError, ValueError: as `Transducer`.

    Source: Xu et al., "Multi-blank Transducers for Speech Recognition", arXiv 2211.03541, eq. 3
    to 6; without big blanks Graves, arXiv 1211.3711, eq. 16 to 20.

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

    blank_id: int = -1
    big_blank_durations: Sequence[int] = ()  # a tuple once it is made, as the next
    big_blank_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blank_id", as_integer("blank_id", self.blank_id))
        _, _, *big = multiblank_arcs(self.big_blank_durations)
        object.__setattr__(self, "big_blank_durations", tuple(arc.duration for arc in big))
        if self.big_blank_ids is not None:
            ids = tuple(
                as_integer(f"big_blank_ids[{i}]", v) for i, v in enumerate(self.big_blank_ids)
            )
            if len(ids) != len(big):
                raise ValueError(
                    "big_blank_ids: expected one for each of big_blank_durations "
                    f"{self.big_blank_durations}, got {ids}"
                )
            object.__setattr__(self, "big_blank_ids", ids)

    @property
    def arcs(self) -> tuple[Arc, ...]:
        """The label, the standard blank, then the big blanks."""
        return multiblank_arcs(self.big_blank_durations)

    def emission(self, num_scores: int) -> Emission:
        """One head: the next label, the standard blank, the big blanks."""
        blanks = (as_class("blank_id", self.blank_id, num_scores), *self._big_blanks(num_scores))
        for i, v in enumerate(blanks):
            if v in blanks[:i]:
                raise ValueError(
                    f"big_blank_ids: expected classes of their own, got class {v} twice among the "
                    f"blanks {blanks}"
                )
        return Emission((num_scores,), ((NEXT_LABEL,), *((v,) for v in blanks)))

    def _big_blanks(self, num_scores: int) -> tuple[int, ...]:
        if self.big_blank_ids is not None:
            return tuple(
                as_class(f"big_blank_ids[{i}]", v, num_scores)
                for i, v in enumerate(self.big_blank_ids)
            )
        blank, count = (
            as_class("blank_id", self.blank_id, num_scores),
            len(self.big_blank_durations),
        )
        if blank < count:
            raise ValueError(
                f"blank_id: expected at least {count} classes below the blank for the big blanks "
                f"{self.big_blank_durations}, got blank_id = {blank}, which puts the last big "
                f"blank in class {blank - count}; big_blank_ids takes any classes"
            )
        return tuple(range(blank - 1, blank - 1 - count, -1))


def multiblank_rnnt_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    blank_id: int = -1,
    big_blank_durations: Sequence[int] = (),
    big_blank_ids: Sequence[int] | None = None,
    sigma: Number = 0.0,
    fastemit_lambda: Number = 0.0,
    clamp: Number = 0.0,
    implementation: Implementation = None,
) -> Array:
    """The multi-blank RNN-Transducer loss of every utterance: `MultiblankRNNT(...)(logits, ...)`.

    `logits` `[batch_dims..., T, U+1, V]`, `labels` `[batch_dims..., U]` and the lengths
    `[batch_dims...]`, full if None, are the operands of `Transducer.__call__`; the options are the
    attributes of `MultiblankRNNT`.

    Returns:
      Losses `[batch_dims...]` in nats.

    Raises:
      TypeError, ValueError: as `MultiblankRNNT` and `Transducer.__call__`.

    Source: Xu et al., "Multi-blank Transducers for Speech Recognition", arXiv 2211.03541, eq. 3
    to 6.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import multiblank_rnnt_loss
      >>> logits = jax.random.normal(jax.random.key(0), (2, 50, 11, 32))
      >>> labels = jax.random.randint(jax.random.key(1), (2, 10), 0, 28)
      >>> def mean_loss(logits, sigma):
      ...     losses = multiblank_rnnt_loss(
      ...         logits,
      ...         labels,
      ...         logit_lengths=jnp.array([50, 40]),
      ...         label_lengths=jnp.array([10, 7]),
      ...         big_blank_durations=(2, 4, 8),
      ...         sigma=sigma,
      ...     )
      ...     return losses.mean()
      >>> value, gradient = jax.jit(jax.value_and_grad(mean_loss))(logits, 0.05)
      >>> gradient.shape
      (2, 50, 11, 32)
    """
    criterion = MultiblankRNNT(
        blank_id=blank_id,
        big_blank_durations=tuple(big_blank_durations),
        big_blank_ids=None if big_blank_ids is None else tuple(big_blank_ids),
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
    fastemit_lambda: Number = 0.0,
    clamp: Number = 0.0,
    implementation: Implementation = None,
) -> Array:
    """The RNN-Transducer loss of every utterance: `MultiblankRNNT` without big blanks.

    `logits` `[batch_dims..., T, U+1, V]`, `labels` `[batch_dims..., U]` and the lengths
    `[batch_dims...]`, full if None, are the operands of `Transducer.__call__`; the options are the
    attributes of `MultiblankRNNT`.

    Returns:
      Losses `[batch_dims...]` in nats.

    Raises:
      TypeError, ValueError: as `MultiblankRNNT` and `Transducer.__call__`.

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
    criterion = MultiblankRNNT(
        blank_id=blank_id,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        implementation=implementation,
    )
    return criterion(logits, labels, logit_lengths, label_lengths)


def multiblank_rnnt_joint_loss(
    joint: Joint,
    params: Any,
    encoded: Any,
    predicted: Any,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    chunk_frames: int | None = None,
    **options: Any,
) -> Array:
    """`MultiblankRNNT(**options).joint_loss(joint, params, ...)`: its operands are told there."""
    operands = params, encoded, predicted, labels, logit_lengths, label_lengths
    return MultiblankRNNT(**options).joint_loss(joint, *operands, chunk_frames=chunk_frames)
