"""Which arc a row of scores stands for, when each head decides by its own maximum."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_mbrnnt._stages import Plan
from jax_mbrnnt.arcs import NEXT_LABEL, NOTHING, Arc


class Step(NamedTuple):
    """The arc that an utterance takes."""

    emits: jax.Array  # [B]
    label: jax.Array  # [B], the class of the first head, of use if it emits
    duration: jax.Array  # [B], at least 1 if it does not
    log_prob: jax.Array  # [B] float32


class Steps:
    """The steps of a transducer.

    The arc taken is the one that reads every head's most probable class, the first of them if
    several do. Some classes no arc reads together, as TDT's blank and its duration of no frames:
    the utterance then goes on by a frame, as by a blank, at the log-probability of these classes.
    """

    def __init__(self, plan: Plan):
        arcs = (*plan.arcs, Arc(1, False))  # the last is for what no arc reads together
        self._heads = plan.emission.heads
        self._emits = np.array([arc.emits for arc in arcs])
        self._durations = np.array([arc.duration for arc in arcs], np.int32)
        self._looks_at = []  # of each head: [A + 1] whether the arc reads any class of it
        self._takes = []  # of each head: [size, A + 1] whether the arc may be had with this class
        for h, size in enumerate(self._heads):
            reads = np.array([of_arc[h] for of_arc in plan.emission.reads])
            classes = np.arange(size)[:, None]
            is_label = ~np.isin(classes, plan.emission.blanks)
            takes = (reads == classes) | (reads == NOTHING) | ((reads == NEXT_LABEL) & is_label)
            self._takes.append(np.pad(takes, ((0, 0), (0, 1)), constant_values=True))
            self._looks_at.append(np.append(reads != NOTHING, True))

    def best(self, logits: jax.Array) -> Step:
        """The step from the logits `[B, V]`."""
        starts = np.cumsum((0, *self._heads))
        rows = [lax.slice_in_dim(logits, a, b, axis=1) for a, b in pairwise(starts)]
        classes = [jnp.argmax(row, axis=-1).astype(jnp.int32) for row in rows]
        fits = [jnp.asarray(takes)[v] for takes, v in zip(self._takes, classes, strict=True)]
        arc = jnp.argmax(jnp.stack(fits).all(axis=0), axis=-1)
        log_probs = [
            jnp.where(jnp.asarray(looks)[arc], _max_log_prob(row), 0.0)
            for looks, row in zip(self._looks_at, rows, strict=True)
        ]
        return Step(
            emits=jnp.asarray(self._emits)[arc],
            label=classes[0],
            duration=jnp.asarray(self._durations)[arc],
            log_prob=jnp.stack(log_probs).sum(axis=0),
        )


def _max_log_prob(logits: jax.Array) -> jax.Array:
    """Returns the log-probability `[B]` of the most probable class."""
    logits = logits.astype(jnp.float32)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    log_prob = -jnp.log(jnp.sum(jnp.exp(logits - largest), axis=-1))
    return jnp.where(jnp.isneginf(largest[:, 0]), -jnp.inf, log_prob)  # A row without any exit.
