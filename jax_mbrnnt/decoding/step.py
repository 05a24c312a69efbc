"""Which arc a row of scores stands for, when each head decides by its own maximum."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import and_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_mbrnnt._stages import Plan
from jax_mbrnnt.arcs import NEXT_LABEL, NOTHING, Arc


class Step(NamedTuple):
    """The arc that an utterance takes at a node."""

    emits: jax.Array  # [nodes...]
    label: jax.Array  # [nodes...], the class of the first head, of use if it emits
    duration: jax.Array  # [nodes...], at least 1 if it does not
    log_prob: jax.Array  # [nodes...] float32


class Steps:
    """The steps of a transducer.

    The arc taken is the one that reads every head's most probable class, the first of them if
    several do. Some classes no arc reads together, as TDT's blank and its duration of no frames:
    the utterance then goes on by a frame, as by a blank, at the log-probability of these classes.

    With a `max_duration` the classes are out of the question that longer arcs alone read.
    """

    def __init__(self, plan: Plan, max_duration: int | None = None):
        arcs = (*plan.arcs, Arc(1, False))  # the last is for what no arc reads together
        self._heads = plan.emission.heads
        takes = [_takes(plan, h) for h in range(len(self._heads))]
        # Classes that may be had with the same arcs are of one kind; what counts is the kinds.
        kinds = [np.unique(of_head, axis=0, return_inverse=True) for of_head in takes]
        self._kinds = [of_class.reshape(-1).astype(np.int32) for _, of_class in kinds]
        grid = np.ix_(*(range(len(rows)) for rows, _ in kinds))
        fits = reduce(and_, (rows[at] for (rows, _), at in zip(kinds, grid, strict=True)))
        arc = fits.argmax(axis=-1)  # [kinds of each head]
        self._emits = np.array([a.emits for a in arcs])[arc]
        self._durations = np.array([a.duration for a in arcs], np.int32)[arc]
        reads = np.array([*plan.emission.reads, (0,) * len(self._heads)])
        self._looks_at = [(reads[:, h] != NOTHING)[arc] for h in range(len(self._heads))]
        self._masks = [_too_long(plan, h, max_duration) for h in range(len(self._heads))]

    @property
    def durations(self) -> np.ndarray:
        """Of all steps that there may be."""
        return self._durations

    def best(self, logits: jax.Array) -> Step:
        """The steps from the logits `[nodes..., V]`."""
        starts = np.cumsum((0, *self._heads))
        rows = [lax.slice_in_dim(logits, a, b, axis=-1) for a, b in pairwise(starts)]
        best = [_best(row, mask) for row, mask in zip(rows, self._masks, strict=True)]
        classes, log_probs = zip(*best, strict=True)
        kinds = tuple(_look_up(of, v) for of, v in zip(self._kinds, classes, strict=True))
        of_heads = [
            x if looks.all() else jnp.where(_look_up(looks, *kinds), x, 0.0)
            for looks, x in zip(self._looks_at, log_probs, strict=True)
        ]
        return Step(
            emits=_look_up(self._emits, *kinds),
            label=classes[0],
            duration=_look_up(self._durations, *kinds),
            log_prob=sum(of_heads[1:], of_heads[0]),
        )


def _takes(plan: Plan, head: int) -> np.ndarray:
    """`[size, A + 1]`: may the arc be had with this class of the head?"""
    reads = np.array([of_arc[head] for of_arc in plan.emission.reads])
    classes = np.arange(plan.emission.heads[head])[:, None]
    is_label = ~np.isin(classes, plan.emission.blanks)
    takes = (reads == classes) | (reads == NOTHING) | ((reads == NEXT_LABEL) & is_label)
    return np.pad(takes, ((0, 0), (0, 1)), constant_values=True)


def _too_long(plan: Plan, head: int, max_duration: int | None) -> np.ndarray | None:
    """`[size]`: do arcs read this class by its number, and longer ones than allowed alone?"""
    if max_duration is None:
        return None
    shortest: dict[int, int] = {}
    for arc, reads in zip(plan.arcs, plan.emission.reads, strict=True):
        shortest[reads[head]] = min(arc.duration, shortest.get(reads[head], arc.duration))
    mask = np.array(
        [shortest.get(v, 0) > max_duration for v in range(plan.emission.heads[head])], bool
    )
    blanks = list(plan.emission.blanks)
    if head == 0 and mask[blanks].all():
        mask[blanks] = False  # what they skip, another head says, or the rule for what none reads
    if mask.all():
        raise ValueError(
            f"max_duration: expected at least {min(shortest.values())}, the shortest duration of "
            f"the transducer, got {max_duration}"
        )
    return mask if mask.any() else None


def _look_up(table: np.ndarray, *index: jax.Array) -> jax.Array:
    if len({*table.flat}) == 1:
        return jnp.full_like(index[0], table.flat[0], dtype=table.dtype)
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def _best(row: jax.Array, mask: np.ndarray | None) -> tuple[jax.Array, jax.Array]:
    """The most probable class `[nodes...]` and its log-probability, float32.

    The maximum first, then where it is: XLA compiles `jnp.argmax` to a loop of scalars on a CPU,
    several times slower. Of a row with a NaN, which no class equals, the last class is taken, and
    its log-probability is NaN.
    """
    allowed = row if mask is None else jnp.where(mask, -jnp.inf, row)
    size = row.shape[-1]
    highest = jnp.max(allowed, axis=-1, keepdims=True)
    classes = lax.broadcasted_iota(jnp.int32, row.shape, row.ndim - 1)
    best = jnp.min(jnp.where(allowed == highest, classes, size - 1), axis=-1)

    wide: Any = row.astype(jnp.float32)
    highest = highest.astype(jnp.float32)
    largest = highest if mask is None else jnp.max(wide, axis=-1, keepdims=True)
    log_prob = -jnp.log(jnp.sum(jnp.exp(wide - largest), axis=-1))
    if mask is not None:
        log_prob += jnp.squeeze(highest - largest, axis=-1)
    no_exit = jnp.squeeze(jnp.isneginf(largest), axis=-1)
    return best, jnp.where(no_exit, -jnp.inf, log_prob)
