"""The log-probability of every arc out of a node, from its row of scores."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_mbrnnt._stages import Plan
from jax_mbrnnt.arcs import NEXT_LABEL, NOTHING


class Row(NamedTuple):
    """Of R rows of scores: a label arc's log-probability is that of its label plus its own."""

    label_arcs: jax.Array  # [R, label arcs], what each reads beside the label
    blank_arcs: jax.Array  # [R, blank arcs]
    logits: jax.Array  # [R, V] float32 of the labels, -inf for the blanks among them
    largest: jax.Array  # [R], subtracted before log_sum, so that an offset costs no digits
    log_sum: jax.Array  # [R]

    def of_logit(self, logit: jax.Array) -> jax.Array:
        """The log-probability of a label with this logit; `logit` `[R, ...]`."""
        largest, log_sum = (
            jnp.expand_dims(x, range(1, logit.ndim)) for x in (self.largest, self.log_sum)
        )
        return logit - largest - log_sum


class ArcScores:
    """How a transducer reads its rows of scores, for every label at once."""

    def __init__(self, plan: Plan, max_duration: int | None = None):
        reads = plan.emission.reads
        short = [
            i
            for i, arc in enumerate(plan.arcs)
            if max_duration is None or arc.duration <= max_duration
        ]
        of_label = [i for i in short if plan.arcs[i].emits]
        of_blank = [i for i in short if not plan.arcs[i].emits]
        if not of_blank:
            raise ValueError(
                "max_duration: expected at least the duration of a blank, without which nothing "
                f"ends, got {max_duration} for {plan.arcs}"
            )
        for i, of_arc in enumerate(reads):
            if (of_arc[0] == NEXT_LABEL) != plan.arcs[i].emits:
                raise ValueError(
                    f"reads[{i}]: expected label arcs, and no others, to read NEXT_LABEL of the "
                    f"first head, got {of_arc} for {plan.arcs[i]}"
                )
        self.label_durations = tuple(plan.arcs[i].duration for i in of_label)
        self.blank_durations = tuple(plan.arcs[i].duration for i in of_blank)
        self._heads = plan.emission.heads
        self._label_reads = [reads[i][1:] for i in of_label]
        self._blank_reads = [reads[i] for i in of_blank]
        self._is_blank = np.isin(np.arange(self._heads[0]), plan.emission.blanks)

    def rows(self, logits: jax.Array) -> Row:
        """What `logits` `[R, scores]` say."""
        ends = np.cumsum(self._heads)
        heads = [
            lax.slice_in_dim(logits, end - size, end, axis=1).astype(jnp.float32)
            for end, size in zip(ends, self._heads, strict=True)
        ]
        normalizers = [_normalizer(head) for head in heads]

        def of_arcs(reads: list[tuple[int, ...]], first: int) -> jax.Array:
            def of_arc(classes: tuple[int, ...]) -> jax.Array:
                log_prob = jnp.zeros(logits.shape[0], jnp.float32)
                for h, v in enumerate(classes, first):
                    if v != NOTHING:
                        largest, log_sum = normalizers[h]
                        log_prob += heads[h][:, v] - largest - log_sum
                return log_prob

            empty = jnp.zeros((logits.shape[0], 0), jnp.float32)
            return jnp.stack([of_arc(r) for r in reads], axis=1) if reads else empty

        is_blank = jnp.asarray(self._is_blank)[None]
        return Row(
            of_arcs(self._label_reads, 1),
            of_arcs(self._blank_reads, 0),
            jnp.where(is_blank, -jnp.inf, heads[0]),
            *normalizers[0],
        )


def _normalizer(head: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest of every row and the logarithm of the sum of what is left without it."""
    largest = jnp.max(head, axis=1)
    largest = jnp.where(jnp.isneginf(largest), 0.0, largest)
    log_sum = jnp.log(jnp.sum(jnp.exp(head - largest[:, None]), axis=1))
    return largest, jnp.where(jnp.isneginf(log_sum), 0.0, log_sum)  # a row without any exit
