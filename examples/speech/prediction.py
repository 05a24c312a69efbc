"""Prediction networks: what was said, as seen by the joint."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class Prediction(Protocol):
    """Every prediction network; `H` is the joint's width, a state any tree of arrays `[B, ...]`."""

    def initial_state(self, batch: int) -> Any:
        """Returns the state of whoever has said nothing."""
        ...

    def step(self, labels: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Maps a further label `[B]`, or the start label, and a state to `[B, H]` and the next."""
        ...

    def __call__(self, labels: jax.Array) -> jax.Array:
        """Maps labels `[B, U]` to what is predicted before each and behind them, `[B, U+1, H]`."""
        ...


class Stateless(nnx.Module):
    """Sees the last few labels, and has no other memory (Ghodsi et al. 2020)."""

    def __init__(
        self,
        classes: int,
        start: int,
        width: int,
        context: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.start, self.context = start, context
        self.embedding = nnx.Embed(classes, width // context, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(width // context * context, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch: int) -> jax.Array:
        return jnp.full((batch, self.context), self.start, jnp.int32)

    def step(self, labels: jax.Array, recent: jax.Array) -> tuple[jax.Array, jax.Array]:
        recent = jnp.concatenate([recent[:, 1:], labels[:, None]], axis=1)
        return self._predict(recent), recent

    def __call__(self, labels: jax.Array) -> jax.Array:
        padded = jnp.pad(labels, ((0, 0), (self.context, 0)), constant_values=self.start)
        recent = jnp.arange(labels.shape[1] + 1)[:, None] + jnp.arange(self.context)
        return self._predict(padded[:, recent])

    def _predict(self, recent: jax.Array) -> jax.Array:
        embedded = self.embedding(recent)
        return self.output(embedded.reshape(*recent.shape[:-1], -1))


class LSTM(nnx.Module):
    """Remembers all labels (Graves 2012)."""

    def __init__(
        self,
        classes: int,
        start: int,
        width: int,
        hidden: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.start = start
        self.embedding = nnx.Embed(classes, hidden, dtype=dtype, rngs=rngs)
        self.cell = nnx.OptimizedLSTMCell(hidden, hidden, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch: int) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros((batch, self.cell.hidden_features), self.cell.dtype)
        return nothing, nothing

    def step(self, labels: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        state, hidden = self.cell(state, self.embedding(labels))
        return self.output(hidden), state

    def __call__(self, labels: jax.Array) -> jax.Array:
        started = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=self.start)
        scan = nnx.RNN(self.cell)
        initial = self.initial_state(len(labels))
        return self.output(scan(self.embedding(started), initial_carry=initial))
