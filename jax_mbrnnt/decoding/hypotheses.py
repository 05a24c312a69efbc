"""The hypotheses of a beam: what each of them is, how it goes on, and which of them stay.

A hypothesis is a sequence of labels together with all of its alignments that are still kept. They
stand at nodes of the lattice at or ahead of the column n = t + u that is expanded now; at each of
them the sum of their probabilities is held, and the best of them. `docs/beam.md` says why.

`[B, K, J+1]`: of each of K hypotheses its alignments at n, n + 1, ..., n + J - 1, and at last those
that have come to the final node.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp

from jax_mbrnnt.decoding.largest import largest

# Odd multipliers of the two hashes of a sequence of labels; any with well-mixed bits would do.
_MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA6B], np.uint32)


class Alignments(NamedTuple):
    """Of every hypothesis `[B, K, J+1]`; or of some step of it."""

    sums: jax.Array  # log of the sum of the alignments' probabilities
    bests: jax.Array  # log-probability of the best of them
    ends: jax.Array  # the last label of the best: its node and arc in the history; -1: none yet


class Hypotheses(NamedTuple):
    """What each of K hypotheses is; a place in the beam is free if it has no alignments."""

    hashes: jax.Array  # [B, K, 2] uint32, of the labels
    parent_hashes: jax.Array  # [B, K, 2] uint32, of the labels but the last
    label_lengths: jax.Array  # [B, K]
    last_labels: jax.Array  # [B, K]
    extras: jax.Array  # [B, K] float32, what the language model and the bonus add to the score


class Labels(NamedTuple):
    """The labels that may follow each hypothesis, and what an alignment pays for one at n."""

    of_children: jax.Array  # [B, K, K], log-probabilities of the labels that others of them end in
    log_probs: jax.Array  # [B, K, C], of labels that none does
    labels: jax.Array  # [B, K, C]
    extras: jax.Array  # [B, K, C], of the same labels
    arc_log_probs: jax.Array  # [B, K, label arcs]


class Emissions(NamedTuple):
    """The labels that a turn emits, of each hypothesis at most one, its last; `History.write`."""

    parents: jax.Array  # [B, K], the end of the best alignment before, as in Alignments.ends
    labels: jax.Array  # [B, K]
    frames: jax.Array  # [B, K]
    log_probs: jax.Array  # [B, K, label arcs]


def take(tree: Any, index: jax.Array) -> Any:
    """`x[b, index[b, i]]` for every array of the tree."""
    of_row = partial(jnp.take, axis=0, mode="clip")
    return jax.tree.map(lambda x: jax.vmap(of_row)(x, index), tree)


def total(sums: jax.Array) -> jax.Array:
    return logsumexp(sums, axis=-1)


def steps(
    arc_log_probs: jax.Array,
    durations: Sequence[int],
    emits: bool,
    frames_left: jax.Array,
    columns: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the arcs `[B, K, A]` lead: by column their sum, the best of them, and which that is.

    Just as in the loss's lattice: no arc leads beyond the last frame, and only a blank to the end.
    """
    batch, beam, num_arcs = arc_log_probs.shape
    if num_arcs == 0:
        nothing = jnp.full((batch, beam, columns), -jnp.inf, jnp.float32)
        return nothing, nothing, jnp.zeros(nothing.shape, jnp.int32)
    duration, column = np.array(durations)[:, None], np.arange(columns)
    ahead = (column == duration + emits) & (column < columns - 1)  # [A, J+1], static
    last = np.broadcast_to((column == columns - 1) & (not emits), ahead.shape)
    left, takes = frames_left[..., None, None], jnp.asarray(duration, jnp.int32)[None, None]
    leads = jnp.asarray(ahead)[None, None] & (takes < left)
    leads |= jnp.asarray(last)[None, None] & (takes == left)
    by_column = jnp.where(leads, arc_log_probs[..., None], -jnp.inf)
    return (
        logsumexp(by_column, axis=2),
        jnp.max(by_column, axis=2),
        jnp.argmax(by_column, axis=2).astype(jnp.int32),
    )


def add(alignments: Alignments, others: Alignments) -> Alignments:
    """Merges alignments of the same labels."""
    better = others.bests > alignments.bests
    return Alignments(
        jnp.logaddexp(alignments.sums, others.sums),
        jnp.where(better, others.bests, alignments.bests),
        jnp.where(better, others.ends, alignments.ends),
    )


def none_where(gone: jax.Array, alignments: Alignments) -> Alignments:
    sums, bests, ends = alignments
    return Alignments(jnp.where(gone, -jnp.inf, sums), jnp.where(gone, -jnp.inf, bests), ends)


def parents_of(hypotheses: Hypotheses) -> tuple[jax.Array, jax.Array]:
    """`[B, K]`, which hypothesis has all of its labels but the last, and whether any does.

    Equal hashes count as equal labels. Those of two different sequences of a length are equal once
    in 2**64; a search of a thousand turns compares some thousands.
    """
    equal = hypotheses.parent_hashes[:, :, None] == hypotheses.hashes[:, None]
    is_parent = equal.all(-1) & (
        hypotheses.label_lengths[:, :, None] == hypotheses.label_lengths[:, None] + 1
    )
    return jnp.argmax(is_parent, axis=-1).astype(jnp.int32), is_parent.any(-1)


def hash_of(hashes: jax.Array, label: jax.Array) -> jax.Array:
    """Of sequences `[B, K, 2]` with one label more."""
    mixed = (hashes ^ (label[..., None].astype(jnp.uint32) + 1)) * jnp.asarray(_MULTIPLIERS)[
        None, None
    ]
    return mixed ^ (mixed >> 15)


class Extended(NamedTuple):
    """The beam after a turn's labels."""

    hypotheses: Hypotheses
    alignments: Alignments
    source: jax.Array  # [B, K], whose networks a hypothesis goes on with
    is_new: jax.Array  # [B, K], whether its last label is new to them
    emissions: Emissions
    is_sound: jax.Array  # [B], whether no score was NaN


def extend(
    hypotheses: Hypotheses,
    stay: Alignments,
    here: Alignments,
    frames: jax.Array,
    frames_left: jax.Array,
    labels: Labels,
    durations: Sequence[int],
    first_node: jax.Array,
    threshold: jax.Array,
) -> Extended:
    """Adds what labels bring: to hypotheses of the beam that end in them, and new hypotheses.

    `stay` are the alignments `[B, K, J+1]` that take no label now, among them those that took a
    blank; `here` those at n, `[B, K]`, -inf where there is none; `frames` `[B, K]` their frames,
    and `frames_left` how many there are from these on. The label of place k becomes node
    `first_node + k` of the history; `first_node` is `[B, 1]`.
    """
    batch, beam, columns = stay.sums.shape
    count = labels.labels.shape[-1]
    sums, bests, arcs = steps(labels.arc_log_probs, durations, True, frames_left, columns)
    any_arc = here.sums + total(sums)  # [B, K]

    parent, has_parent = parents_of(hypotheses)
    of_child = jnp.take_along_axis(jnp.swapaxes(labels.of_children, 1, 2), parent[..., None], 2)
    of_child = jnp.where(has_parent, of_child[..., 0], -jnp.inf)
    grown = jnp.logaddexp(total(stay.sums), take(any_arc, parent) + of_child)
    new = (any_arc + hypotheses.extras)[..., None] + labels.log_probs + labels.extras
    scores = jnp.concatenate([grown + hypotheses.extras, new.reshape(batch, beam * count)], axis=1)
    floor = jnp.max(scores, axis=1) - threshold

    def is_worth(score: jax.Array) -> jax.Array:
        return (score >= jnp.expand_dims(floor, range(1, score.ndim))) & (score > -jnp.inf)

    best, index = largest(scores, beam, is_worth)
    index = jnp.where(is_worth(best), index, -1)

    # Who stays keeps its place, so that networks are moved for new labels alone.
    place = jnp.arange(beam, dtype=jnp.int32)[None]
    stays = jnp.any(index[:, :, None] == place[:, None], axis=1)
    comes = index >= beam
    free = jnp.cumsum(~stays, axis=1)  # [B, K], 1 for the first free place
    nth = jnp.cumsum(comes, axis=1)  # [B, K], 1 for the first that comes
    takes = comes[:, None] & ~stays[..., None] & (free[..., None] == nth[:, None])  # [B, place, i]
    is_new = takes.any(axis=-1)
    chosen = jnp.sum(jnp.where(takes, index[:, None] - beam, 0), axis=-1, dtype=jnp.int32)

    source = jnp.where(is_new, chosen // count, place)
    before = jnp.where(is_new, source, parent)
    of_new, log_probs, extras = (
        x.reshape(batch, beam * count) for x in (labels.labels, labels.log_probs, labels.extras)
    )
    label = jnp.where(is_new, take(of_new, chosen), hypotheses.last_labels)
    log_prob = jnp.where(is_new, take(log_probs, chosen), of_child)
    log_prob = jnp.where(stays | is_new, log_prob, -jnp.inf)
    extra = jnp.where(
        is_new, take(hypotheses.extras, source) + take(extras, chosen), hypotheses.extras
    )

    # What each gets of its parent at n, and as which node of the history.
    node = first_node + place
    arrives = Alignments(
        (take(here.sums, before) + log_prob)[..., None] + take(sums, before),
        (take(here.bests, before) + log_prob)[..., None] + take(bests, before),
        node[..., None] * len(durations) + take(arcs, before),
    )
    return Extended(
        Hypotheses(
            jnp.where(
                is_new[..., None],
                hash_of(take(hypotheses.hashes, source), label),
                hypotheses.hashes,
            ),
            jnp.where(is_new[..., None], take(hypotheses.hashes, source), hypotheses.parent_hashes),
            jnp.where(is_new, take(hypotheses.label_lengths, source) + 1, hypotheses.label_lengths),
            label,
            extra,
        ),
        add(none_where(~stays[..., None], stay), arrives),
        source,
        is_new,
        Emissions(
            take(here.ends, before),
            label,
            take(frames, before),
            log_prob[..., None] + take(labels.arc_log_probs, before),
        ),
        ~jnp.any(jnp.isnan(scores), axis=1),
    )


def advance(
    hypotheses: Hypotheses, alignments: Alignments, threshold: jax.Array
) -> tuple[Alignments, jax.Array]:
    """Drops what is `threshold` below the best hypothesis; puts the next alignments to the front.

    Also returns `[B]` by how much n goes on.
    """
    sums = alignments.sums
    scores = total(sums) + hypotheses.extras
    floor = jnp.max(scores, axis=1, keepdims=True) - threshold
    of_alignments = sums + hypotheses.extras[..., None]
    # The best alignment stays, though it may be far below its hypothesis, where many share that.
    most = jnp.max(of_alignments, axis=(1, 2))[:, None]
    drops = of_alignments < jnp.minimum(floor, most)[..., None]
    # A hypothesis that has come to the end is dropped as a whole or not at all.
    columns = sums.shape[-1]
    is_last = jnp.arange(columns, dtype=jnp.int32)[None, None] == columns - 1
    drops = jnp.where(is_last, (scores < floor)[..., None], drops)
    alignments = none_where(drops, alignments)

    waits = jnp.any(alignments.sums[..., :-1] > -jnp.inf, axis=1)  # [B, J]
    ahead = jnp.argmax(waits, axis=1).astype(jnp.int32)
    column = ahead[:, None] + jnp.arange(columns - 1, dtype=jnp.int32)[None]
    inside = column < columns - 1
    index = jnp.append(
        jnp.minimum(column, columns - 2), jnp.full_like(column[:, :1], columns - 1), axis=1
    )
    inside = jnp.append(inside, jnp.ones_like(inside[:, :1]), axis=1)

    def shift(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(take(jnp.swapaxes(x, 1, 2), index), 1, 2)

    shifted = Alignments(*(shift(x) for x in alignments))
    return none_where(~inside[:, None], shifted), ahead
