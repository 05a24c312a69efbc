"""Language models for shallow fusion."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


class LanguageModel(abc.ABC):
    @abc.abstractmethod
    def initial_state(self, batch: int) -> PyTree: ...

    @abc.abstractmethod
    def score(self, labels: jax.Array, state: PyTree) -> jax.Array: ...

    @abc.abstractmethod
    def advance(self, labels: jax.Array, state: PyTree) -> PyTree: ...

    def end(self, state: PyTree) -> jax.Array:
        return jnp.zeros(jax.tree.leaves(state)[0].shape[0], jnp.float32)
