"""The token-and-duration transducer (TDT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax_mbrnnt.arcs import (
    NEXT_LABEL,
    NOTHING,
    Arc,
    Emission,
    as_class,
    as_integer,
    rnnt_arcs,
    tdt_arcs,
)
from jax_mbrnnt.transducers.transducer import (
    Array,
    ArrayLike,
    Implementation,
    Joint,
    Number,
    Transducer,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TDT(Transducer):
    """The token-and-duration transducer: a token and how many frames it takes, at every node.

    The scores of a node are V tokens', the blank among them, and behind them D durations', in their
    order: the layout of NeMo and transformers. Each of the two heads has its own log-softmax, and
    an arc's log-probability is that of its token, plus that of its duration, minus `sigma`. Any
    token may take any duration, but a blank takes a frame at least.

    Attributes:
      durations: frames that a token may take, distinct, at least 0 and in any order, one of them of
        a frame or more.
      blank_id: class of the blank among the tokens; negative counts from the last of the V.

    and those of `Transducer`.

    Raises:
      TypeError, ValueError: as `Transducer`.

    Source: Xu et al., "Efficient Sequence Transduction by Jointly Predicting Tokens and Durations",
    arXiv 2304.06795, eq. 3 to 9.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_mbrnnt import TDT
      >>> criterion = TDT(durations=(0, 1, 2, 3, 4), sigma=0.05)
      >>> logits = jax.random.normal(jax.random.key(0), (2, 50, 11, 29 + 5))
      >>> labels = jax.random.randint(jax.random.key(1), (2, 10), 0, 28)
      >>> losses = criterion(logits, labels, jnp.array([50, 40]), jnp.array([10, 7]))
      >>> losses.shape
      (2,)
    """

    durations: Sequence[int]  # a tuple once it is made
    blank_id: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        durations = tuple(arc.duration for arc in tdt_arcs(self.durations) if arc.emits)
        object.__setattr__(self, "durations", durations)
        object.__setattr__(self, "blank_id", as_integer("blank_id", self.blank_id))

    @property
    def arcs(self) -> tuple[Arc, ...]:
        """A label for every duration, then a blank for every duration of a frame or more."""
        return tdt_arcs(self.durations)

    def emission(self, num_scores: int) -> Emission:
        """Two heads: the next label or the blank, and the duration."""
        num_tokens = num_scores - len(self.durations)
        if num_tokens < 1:
            raise ValueError(
                f"logits: expected a last axis of V tokens and {len(self.durations)} durations "
                f"{self.durations}, got {num_scores}"
            )
        blank = as_class("blank_id", self.blank_id, num_tokens)
        reads = tuple(
            (NEXT_LABEL if arc.emits else blank, self.durations.index(arc.duration))
            for arc in self.arcs
        )
        return Emission((num_tokens, len(self.durations)), reads)

    @property
    def rnnt(self) -> Transducer:
        """The RNN-T of the same rows' tokens, to train with now and then (the paper's omega)."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(Transducer)}
        return _TokenHead(num_durations=len(self.durations), blank_id=self.blank_id, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TokenHead(Transducer):
    """The RNN-T of TDT's tokens, which does not read the durations behind them."""

    num_durations: int
    blank_id: int

    @property
    def arcs(self) -> tuple[Arc, ...]:
        return rnnt_arcs()

    def emission(self, num_scores: int) -> Emission:
        num_tokens = num_scores - self.num_durations
        blank = as_class("blank_id", self.blank_id, num_tokens)
        reads = (NEXT_LABEL, NOTHING), (blank, NOTHING)
        return Emission((num_tokens, self.num_durations), reads)


def tdt_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    label_lengths: ArrayLike | None = None,
    *,
    durations: Sequence[int],
    blank_id: int = -1,
    sigma: Number = 0.0,
    fastemit_lambda: Number = 0.0,
    clamp: Number = 0.0,
    implementation: Implementation = None,
) -> Array:
    """The token-and-duration transducer's loss of every utterance: `TDT(...)(logits, ...)`.

    `logits` `[batch_dims..., T, U+1, V + D]`, the tokens' scores and behind them the durations',
    `labels` `[batch_dims..., U]` in [0, V) and the lengths `[batch_dims...]`, full if None, are the
    operands of `Transducer.__call__`; the options are the attributes of `TDT`.

    Returns:
      Losses `[batch_dims...]` in nats.

    Raises:
      TypeError, ValueError: as `TDT` and `Transducer.__call__`.

    Source: Xu et al., arXiv 2304.06795, eq. 3 to 9.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax_mbrnnt import tdt_loss
      >>> # Two frames, one label, 3 tokens and the durations 0 and 1, all equally likely: a label
      >>> # that takes no frame stands before either of two blanks, one that takes one is a blank
      >>> # less.
      >>> loss = tdt_loss(jnp.zeros((2, 2, 3 + 2)), jnp.array([0]), durations=(0, 1))
      >>> bool(jnp.allclose(loss, -jnp.log(2 / 6**3 + 1 / 6**2)))
      True
    """
    criterion = TDT(
        durations=tuple(durations),
        blank_id=blank_id,
        sigma=sigma,
        fastemit_lambda=fastemit_lambda,
        clamp=clamp,
        implementation=implementation,
    )
    return criterion(logits, labels, logit_lengths, label_lengths)


def tdt_joint_loss(
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
    """`TDT(**options).joint_loss(joint, params, ...)`: all its operands are documented there."""
    operands = params, encoded, predicted, labels, logit_lengths, label_lengths
    return TDT(**options).joint_loss(joint, *operands, chunk_frames=chunk_frames)
