"""What the CPU's benchmarks run: random problems, and every loss that is written in JAX."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import rivals
from jax_mbrnnt import multiblank_rnnt_loss

Shape = tuple[int, int, int, int]  # B, T, U+1, V
BIG_BLANKS = (2, 4, 8)
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "ours": functools.partial(multiblank_rnnt_loss, implementation="ffi"),
    "twin": functools.partial(multiblank_rnnt_loss, implementation="xla"),
    "strong": rivals.strong_scan,
    "autodiff": rivals.autodiff_scan,
    "remat": rivals.remat_scan,
}


@dataclasses.dataclass
class Problem:
    """Utterances of full length: every logit counts."""

    logits: jax.Array  # [B, T, U+1, V]
    labels: jax.Array  # [B, U]
    logit_lengths: jax.Array  # [B]
    label_lengths: jax.Array  # [B]

    def loss(self, which: str, durations: tuple[int, ...], logits: jax.Array):
        """The mean, and every utterance's."""
        operands = (logits, self.labels, self.logit_lengths, self.label_lengths)
        losses = LOSSES[which](*operands, big_blank_durations=durations)
        return losses.mean(), losses

    def step(self, which: str, durations: tuple[int, ...]) -> Callable[[jax.Array], Any]:
        """As a user calls it; jit it. The gradient is one result of it, beside the losses."""
        return jax.value_and_grad(functools.partial(self.loss, which, durations), has_aux=True)

    def compiled(self, which: str, durations: tuple[int, ...] = BIG_BLANKS) -> Callable[..., Any]:
        """The step, to be called with `logits`."""
        return jax.jit(self.step(which, durations)).lower(self.logits).compile()


def make_problem(shape: Shape, dtype: Any = jnp.float32) -> Problem:
    batch, frames, columns, classes = shape
    keys = jax.random.split(jax.random.key(0), 2)
    return Problem(
        logits=2 * jax.random.normal(keys[0], shape, dtype),
        labels=jax.random.randint(keys[1], (batch, columns - 1), 0, classes - len(BIG_BLANKS) - 1),
        logit_lengths=jnp.full(batch, frames),
        label_lengths=jnp.full(batch, columns - 1),
    )
