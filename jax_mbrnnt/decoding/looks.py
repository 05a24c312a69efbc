"""What the caller's networks say of a beam's hypotheses, some of them at a time.

A beam is seldom full: most of the time one hypothesis of an utterance is worth its evaluation. So
the networks see `width` hypotheses of every utterance, those that need them, and not all places.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_mbrnnt._mesh import zeros_like
from jax_mbrnnt.decoding.arc_scores import ArcScores
from jax_mbrnnt.decoding.hypotheses import Hypotheses, parents_of, take, total
from jax_mbrnnt.decoding.language_model import LanguageModel
from jax_mbrnnt.decoding.largest import largest
from jax_mbrnnt.decoding.search import Joint, Predict, PyTree


class Networks(NamedTuple):
    """Of every hypothesis, what the prediction network and the language model know of it."""

    prediction: PyTree  # of [B, K, ...]
    state: PyTree  # of [B, K, ...]
    language: PyTree  # of [B, K, ...], None without a language model


class Rows(NamedTuple):
    """Of every hypothesis, what the joint says at n."""

    label_arcs: jax.Array  # [B, K, label arcs], log-probabilities but for the label's own
    blank_arcs: jax.Array  # [B, K, blank arcs]
    of_children: jax.Array  # [B, K, K], log-probabilities of labels that others of the beam end in
    log_probs: jax.Array  # [B, K, C], of those other labels that come up to the threshold
    labels: jax.Array  # [B, K, C]
    has_nan: jax.Array  # [B, K]

    @classmethod
    def nothing(cls, like: jax.Array, scores: ArcScores, candidates: int) -> Rows:
        """Before anything is said; `like` is `[B, K]`."""
        zeros = zeros_like(like, jnp.float32)[..., None]

        def of(count: int) -> jax.Array:
            return jnp.broadcast_to(zeros - jnp.inf, (*like.shape, count))

        return cls(
            of(len(scores.label_durations)),
            of(len(scores.blank_durations)),
            of(like.shape[1]),
            of(candidates),
            zeros_like(of(candidates), jnp.int32),
            zeros[..., 0] != 0,
        )


class Some(NamedTuple):
    """At most `width` hypotheses of every utterance."""

    which: jax.Array  # [B, K], which they are
    places: jax.Array | None  # [B, width], where they stand; None if all may be
    rank: jax.Array  # [B, K], where each of them stands in `places`

    @classmethod
    def first_of(cls, which: jax.Array, width: int) -> Some:
        """The first `width` hypotheses of `which` `[B, K]`."""
        beam = which.shape[1]
        rank = jnp.cumsum(which, axis=1, dtype=jnp.int32) - 1
        if width == beam:
            return cls(which, None, rank)
        nth = jnp.arange(width, dtype=jnp.int32)[None, :, None]
        is_nth = which[:, None] & (rank[:, None] == nth)  # [B, width, K]
        place = jnp.arange(beam, dtype=jnp.int32)
        index = jnp.sum(jnp.where(is_nth, place[None, None], 0), axis=-1, dtype=jnp.int32)
        return cls(which & (rank < width), index, jnp.clip(rank, 0, width - 1))

    def of(self, tree: Any) -> Any:
        """Theirs of the arrays `[B, K, ...]`, `[B, width, ...]`."""
        return tree if self.places is None else take(tree, self.places)

    def put(self, new: Any, old: Any) -> Any:
        """`old` `[B, K, ...]`, and `new` `[B, width, ...]` in their places."""
        if self.places is not None and self.places.shape[1] > 1:  # else it is one for all places
            new = take(new, self.rank)

        def where(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(jnp.expand_dims(self.which, range(2, old.ndim)), new, old)

        return jax.tree.map(where, new, old)


class Looks(NamedTuple):
    """The caller's functions, and what they are asked."""

    joint: Joint
    predict: Predict
    model: LanguageModel | None
    weight: jax.Array
    label_bonus: jax.Array
    scores: ArcScores
    encoded: jax.Array  # [B, T, H...]
    lengths: jax.Array  # [B]
    max_labels: int
    candidates: int
    threshold: jax.Array

    def step(self, some: Some, hypotheses: Hypotheses, networks: Networks) -> Networks:
        """Shows them their last labels."""
        labels, of_some = some.of((hypotheses.last_labels, networks))
        shape, rows = labels.shape, flat(of_some)
        labels = labels.reshape(-1)
        prediction, state = self.predict(labels, rows.state)
        stepped = Networks(prediction, state, self.advance(labels, rows.language))
        return some.put(_unflat(stepped, shape), networks)

    def advance(self, labels: jax.Array, language: PyTree) -> PyTree:
        return language if self.model is None else self.model.advance(labels, language)

    def extras(self, rows: Rows, language: PyTree) -> jax.Array:
        """What the language model and the bonus add to the scores of labels `[B, K, C]`."""
        extras = jnp.zeros_like(rows.log_probs) + self.label_bonus
        if self.model is not None:
            scores = self.model.score(flat(rows.labels), flat(language)).astype(jnp.float32)
            scores = scores.reshape(extras.shape)
            # What is forbidden is so at a weight of 0, too.
            extras += jnp.where(jnp.isneginf(scores), -jnp.inf, self.weight * scores)
        return jnp.where(rows.log_probs > -jnp.inf, extras, 0.0)

    def look(
        self,
        some: Some,
        hypotheses: Hypotheses,
        sums: jax.Array,
        frames: jax.Array,
        networks: Networks,
        rows: Rows,
    ) -> Rows:
        """Evaluates the joint for them, at their `frames`; `sums` are those of `Alignments`.

        Labels come up to the threshold by what is known before the rest of the beam is evaluated
        and without a language model's own opinion of them: the search decides later, and finer.
        """
        beam = frames.shape[1]
        parent, has_parent = parents_of(hypotheses)
        place = jnp.arange(beam, dtype=jnp.int32)[None, :, None]
        is_child = has_parent[:, None] & (parent[:, None] == place)  # [B, parent, child]
        children = jnp.where(is_child, hypotheses.last_labels[:, None], -1)
        here = sums[..., 0] + hypotheses.extras
        # Those that are not at n can but grow.
        elsewhere = jnp.where(jnp.isneginf(here), total(sums) + hypotheses.extras, -jnp.inf)
        best = jnp.broadcast_to(jnp.max(elsewhere, axis=1, keepdims=True), here.shape)
        may_emit = hypotheses.label_lengths < self.max_labels
        left = self.lengths[:, None] - frames
        of_some = some.of((frames, networks.prediction, children, here, best, may_emit, left))
        shape = of_some[0].shape
        encoded = flat(take(self.encoded, of_some[0]))
        _, prediction, children, here, best, may_emit, left = flat(of_some)

        row = self.scores.rows(self.joint(encoded, prediction))
        label_arcs = jnp.where(may_emit[:, None], row.label_arcs, -jnp.inf)
        gain = self.label_bonus + total(_within(label_arcs, self.scores.label_durations, left - 1))
        blanks = _within(row.blank_arcs, self.scores.blank_durations, left)
        stays = jnp.max(blanks, axis=1, initial=-jnp.inf)
        # One by one: XLA's CPU backend vectorises this, but not a reduction.
        classes = jnp.arange(row.logits.shape[1], dtype=jnp.int32)[None]
        is_child = functools.reduce(
            operator.or_, (children[:, k, None] == classes for k in range(beam))
        )
        logits = jnp.where(is_child, -jnp.inf, row.logits)
        most = row.of_logit(jnp.max(logits, axis=1))
        # In the order of the sums below: at a threshold of 0 the best label comes up to itself.
        floor = jnp.maximum(jnp.maximum(here + stays, here + gain + most), best) - self.threshold

        def is_worth(logit: jax.Array) -> jax.Array:
            """Whether a label with this logit, `[R, ...]`, comes up to the threshold."""
            axes = range(1, logit.ndim)
            score = jnp.expand_dims(here + gain, axes) + row.of_logit(logit)
            return (score >= jnp.expand_dims(floor, axes)) & (score > -jnp.inf)

        values, labels = largest(logits, self.candidates, is_worth)
        of_children = jnp.take_along_axis(row.logits, jnp.maximum(children, 0), axis=1)
        found = Rows(
            label_arcs,
            row.blank_arcs,
            jnp.where(children >= 0, row.of_logit(of_children), -jnp.inf),
            jnp.where(is_worth(values), row.of_logit(values), -jnp.inf),
            labels,
            jnp.isnan(row.log_sum)
            | jnp.any(jnp.isnan(row.label_arcs), axis=1)
            | jnp.any(jnp.isnan(row.blank_arcs), axis=1),
        )
        return some.put(_unflat(found, shape), rows)


def _within(log_probs: jax.Array, durations: Sequence[int], left: jax.Array) -> jax.Array:
    """The arcs `[R, A]` that take no more than the frames `left` `[R]`, -inf for the others."""
    fits = jnp.asarray(durations, jnp.int32)[None] <= left[:, None]
    return jnp.where(fits, log_probs, -jnp.inf)


def flat(tree: Any) -> Any:
    """As a batch of hypotheses, `[B * K, ...]`."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def _unflat(tree: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tree)
