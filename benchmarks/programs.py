"""What the CPU's benchmarks run: random problems, and every loss that is written in JAX."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import rivals
from jax_mbrnnt import TDT, MultiblankRNNT, Transducer

Shape = tuple[int, int, int, int]  # B, T, U+1, V
BIG_BLANKS = (2, 4, 8)
DURATIONS = (0, 1, 2, 3, 4)
Loss = Callable[..., jax.Array]  # of logits, labels and both lengths


@dataclasses.dataclass(frozen=True)
class Kind:
    """A transducer, and what the rivals call the same."""

    ours: Transducer
    model: rivals.Model

    def loss(self, which: str) -> Loss:
        return LOSSES[which](self)


RNNT = Kind(MultiblankRNNT(), rivals.multiblank(()))
MULTIBLANK = Kind(MultiblankRNNT(big_blank_durations=BIG_BLANKS), rivals.multiblank(BIG_BLANKS))
TDT_0_TO_4 = Kind(TDT(durations=DURATIONS), rivals.tdt(DURATIONS))
# By what the names of their programs end in.
KINDS = {"": MULTIBLANK, ", RNN-T": RNNT, ", TDT": TDT_0_TO_4}

LOSSES: dict[str, Callable[[Kind], Loss]] = {
    "ours": lambda kind: dataclasses.replace(kind.ours, implementation="ffi"),
    "twin": lambda kind: dataclasses.replace(kind.ours, implementation="xla"),
    "strong": lambda kind: functools.partial(rivals.strong_scan, model=kind.model),
    "autodiff": lambda kind: functools.partial(rivals.autodiff_scan, model=kind.model),
    "remat": lambda kind: functools.partial(rivals.remat_scan, model=kind.model),
}


@dataclasses.dataclass
class Problem:
    """Utterances of full length: every logit counts."""

    kind: Kind
    logits: jax.Array  # [B, T, U+1, V], and durations behind the V tokens
    labels: jax.Array  # [B, U]
    logit_lengths: jax.Array  # [B]
    label_lengths: jax.Array  # [B]

    def loss(self, which: str, logits: jax.Array):
        """The mean, and every utterance's."""
        operands = (logits, self.labels, self.logit_lengths, self.label_lengths)
        losses = self.kind.loss(which)(*operands)
        return losses.mean(), losses

    def step(self, which: str) -> Callable[[jax.Array], Any]:
        """As a user calls it; jit it. The gradient is one result of it, beside the losses."""
        return jax.value_and_grad(functools.partial(self.loss, which), has_aux=True)

    def compiled(self, which: str) -> Callable[..., Any]:
        """The step, to be called with `logits`."""
        return jax.jit(self.step(which)).lower(self.logits).compile()


def make_problem(shape: Shape, kind: Kind = MULTIBLANK, dtype: Any = jnp.float32) -> Problem:
    batch, frames, columns, classes = shape
    keys = jax.random.split(jax.random.key(0), 2)
    scores = (*shape[:3], classes + kind.model.durations)
    return Problem(
        kind=kind,
        logits=2 * jax.random.normal(keys[0], scores, dtype),
        labels=jax.random.randint(keys[1], (batch, columns - 1), 0, classes - len(BIG_BLANKS) - 1),
        logit_lengths=jnp.full(batch, frames),
        label_lengths=jnp.full(batch, columns - 1),
    )
