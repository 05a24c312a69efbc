"""Beam search that skips frames as the model asks for it, and sums over alignments.

What is searched for are sequences of labels. Big blanks and durations put the alignments of one
sequence at many frames at once, so a hypothesis is here a sequence with all of its alignments, and
no two hypotheses of a beam have the same labels. Every arc leads to a node of larger n = t + u, by
which the search goes on, each utterance at its own: all that leads to a node is there when it is
expanded, and nothing is expanded twice.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_mbrnnt import _checks
from jax_mbrnnt._mesh import unify_varying, zeros_like, zeros_of_batch
from jax_mbrnnt._program import run
from jax_mbrnnt.arcs import as_integer
from jax_mbrnnt.decoding import hypotheses as hyp
from jax_mbrnnt.decoding.arc_scores import ArcScores, best_labels
from jax_mbrnnt.decoding.history import History
from jax_mbrnnt.decoding.hypotheses import Alignments, Emissions, Hypotheses, Labels, Networks
from jax_mbrnnt.decoding.language_model import LanguageModel
from jax_mbrnnt.decoding.search import (
    Joint,
    Predict,
    PyTree,
    check_functions,
    lengths_in_range,
    select,
    start_label_of,
)
from jax_mbrnnt.transducers import Transducer


class BeamDecoding(NamedTuple):
    """What `beam_decode` found: of each utterance `beam` hypotheses, the best one first.

    Attributes:
      labels: `[B, beam, max_labels]` int32, the label classes; -1 from `label_lengths` on.
      label_lengths: `[B, beam]` int32, how many labels there are.
      frames: `[B, beam, max_labels]` int32, the frame at which each label was emitted, in the most
        probable of the alignments that were kept; -1 as in `labels`.
      durations: `[B, beam, max_labels]` int32, the frames that each label was said to take there;
        -1 as in `labels`.
      label_log_probs: `[B, beam, max_labels]` float32, the log-probability of the arc that emitted
        each label there, in nats; 0 from `label_lengths` on.
      log_probs: `[B, beam]` float32, the log of the sum of the probabilities of all alignments that
        were kept: without pruning the model's log-likelihood of these labels, minus the loss.
      scores: `[B, beam]` float32, what the hypotheses are ordered by: `log_probs`, and what the
        language model and `label_bonus` add.
      joint_evaluations: `[B]` int32, at how many nodes of its lattices the utterance needed the
        joint.
      joint_rows: `[]` int32, how many rows of the joint were computed for the whole batch.
      prediction_steps: `[]` int32, how many rows of the prediction network likewise.

    A place without a hypothesis has no labels, and -inf in `log_probs` and `scores`. So has the
    first, if no alignment ends exactly after the last frame: a TDT without a duration of 1 may have
    none. Both are NaN for an utterance with a NaN or a +inf among its scores on the way, or with a
    length out of range.
    """

    labels: jax.Array
    label_lengths: jax.Array
    frames: jax.Array
    durations: jax.Array
    label_log_probs: jax.Array
    log_probs: jax.Array
    scores: jax.Array
    joint_evaluations: jax.Array
    joint_rows: jax.Array
    prediction_steps: jax.Array


class _Options(NamedTuple):
    beam: int
    candidates: int
    max_labels: int
    start_label: Any
    threshold: Any
    language_model: LanguageModel | None
    language_model_weight: Any
    label_bonus: Any


class _Search(NamedTuple):
    """Where the search stands between two turns."""

    n: jax.Array  # [B], t + u of the alignments to expand
    is_sound: jax.Array  # [B], no NaN so far
    hypotheses: Hypotheses
    alignments: Alignments
    networks: Networks
    is_behind: jax.Array  # [B, K], the networks have not seen the last label
    history: History
    joint_evaluations: jax.Array  # [B]
    joint_rows: jax.Array  # []
    prediction_steps: jax.Array  # []


def beam_decode(
    transducer: Transducer,
    joint: Joint,
    predict: Predict,
    encoded: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    *,
    initial_state: PyTree,
    beam: int = 4,
    threshold: float | ArrayLike = 10.0,
    candidates: int | None = None,
    start_label: int | None = None,
    max_labels: int | None = None,
    language_model: LanguageModel | None = None,
    language_model_weight: float | ArrayLike = 0.3,
    label_bonus: float | ArrayLike = 0.0,
) -> BeamDecoding:
    """Decodes a batch of utterances: the sequences of labels that are most probable in total."""
    if not isinstance(transducer, Transducer):
        raise TypeError(
            f"transducer: expected a Transducer, as MultiblankRNNT or TDT are, got {transducer!r}"
        )
    encoded = _checks.as_array(encoded)
    if encoded.ndim < 3:
        hint = "; a batch of one utterance is encoded[None]" if encoded.ndim == 2 else ""
        raise ValueError(f"encoded: expected shape [B, T, H...], got {encoded.shape}{hint}")
    batch, frames = encoded.shape[:2]
    _checks.check_known_sizes("encoded", encoded.shape, encoded.shape[1:])
    lengths = _checks.check_lengths("logit_lengths", logit_lengths, (batch,), frames)
    beam = _at_least("beam", beam, 1)
    if candidates is None:
        candidates = beam if language_model is None else 2 * beam
    options = _Options(
        beam,
        _at_least("candidates", candidates, 1),
        _at_least("max_labels", frames if max_labels is None else max_labels, 0),
        start_label,
        _number("threshold", threshold),
        language_model,
        _number("language_model_weight", language_model_weight),
        _number("label_bonus", label_bonus),
    )
    if isinstance(threshold, int | float) and not threshold >= 0:
        raise ValueError(f"threshold: expected at least 0, got {threshold}")
    if language_model is not None and not isinstance(language_model, LanguageModel):
        raise TypeError(f"language_model: expected a LanguageModel, got {language_model!r}")
    search = partial(_search, transducer, joint, predict, options)
    return run(search, encoded, lengths, initial_state)


def _at_least(name: str, value: Any, least: int) -> int:
    value = as_integer(name, value)
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value


def _number(name: str, value: Any) -> jax.Array:
    number = jnp.asarray(value)
    if number.ndim or not jnp.issubdtype(number.dtype, jnp.number):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return number.astype(jnp.float32)


def _search(
    transducer: Transducer,
    joint: Joint,
    predict: Predict,
    options: _Options,
    encoded: jax.Array,
    lengths: jax.Array | None,
    initial_state: PyTree,
) -> BeamDecoding:
    batch, frames = encoded.shape[:2]
    lengths, in_range = lengths_in_range(lengths, encoded)
    if frames == 0:  # Nothing is decoded, but the loop still needs a frame to be compiled with.
        encoded = jnp.zeros((batch, 1, *encoded.shape[2:]), encoded.dtype)
    plan = transducer.plan(check_functions(joint, predict, encoded, initial_state))
    turns = _Turns(joint, predict, options, ArcScores(plan), encoded, lengths)
    start = start_label_of(options.start_label, plan.emission)
    search = lax.while_loop(
        lambda search: jnp.any(_is_alive(search)),
        turns.turn,
        turns.begin(in_range, initial_state, start),
    )
    return turns.end(search)


def _is_alive(search: _Search) -> jax.Array:
    """`[B]`, whether any alignment has not come to the end."""
    return jnp.any(search.alignments.sums[..., :-1] > -jnp.inf, axis=(1, 2))


class _Turns:
    """The search of one batch: what a turn does with where it stands."""

    def __init__(
        self,
        joint: Joint,
        predict: Predict,
        options: _Options,
        scores: ArcScores,
        encoded: jax.Array,
        lengths: jax.Array,
    ):
        self.joint, self.predict, self.options, self.scores = joint, predict, options, scores
        self.encoded, self.lengths = encoded, lengths
        frames = encoded.shape[1]
        furthest = [d for d in scores.blank_durations if d < frames]
        furthest += [d + 1 for d in scores.label_durations if d < frames]
        # n, what lies ahead of it, and the final node: the columns of `Alignments`.
        self.columns = 2 + max(furthest, default=1)
        # How many hypotheses of each utterance the networks see at once. A CPU takes as long for
        # one row as for eight, for which it reads the same parameters; beyond that, rows cost.
        # Elsewhere they cost nothing to speak of, and a loop does.
        is_cpu = jax.default_backend() == "cpu"
        rows = 8 if is_cpu else math.inf
        self.quorum = 0.5 if is_cpu else 0.0
        self.width = int(min(options.beam, max(1, rows // max(1, encoded.shape[0]))))

    # ---- the turns -----------------------------------------------------------------------

    def begin(self, in_range: jax.Array, initial_state: PyTree, start: Any) -> _Search:
        batch, beam, model = len(in_range), self.options.beam, self.options.language_model
        # Everything varies over a mesh as the encoder's output does, from the start.
        zeros = zeros_of_batch(self.encoded, 1, jnp.int32) + jnp.where(in_range, 0, 0)
        prediction, state = self.predict(zeros + start, initial_state)
        language = None if model is None else model.initial_state(batch)

        def spread(x: jax.Array) -> jax.Array:
            x = jnp.broadcast_to(x[:, None], (batch, beam, *x.shape[1:]))
            varying, _ = unify_varying(x, zeros)
            return varying

        of_each = spread(zeros)
        is_first = jnp.arange(beam)[None] == 0
        # An utterance without frames is at its end.
        column = jnp.where(self.lengths > 0, 0, self.columns - 1)
        is_there = jnp.arange(self.columns)[None] == column[:, None]
        is_there = is_there[:, None] & (is_first & in_range[:, None])[..., None]
        sums = jnp.where(is_there, 0.0, -jnp.inf).astype(jnp.float32) + of_each[..., None]
        hashes = jnp.stack([of_each, of_each], axis=-1).astype(jnp.uint32)
        arcs = jnp.zeros((1, 1, len(self.scores.label_durations)), jnp.float32)
        emissions = Emissions(of_each, of_each, of_each, arcs + of_each[..., None])
        scalar = jnp.sum(zeros)
        return _Search(
            n=zeros,
            is_sound=in_range & (zeros == 0),
            hypotheses=Hypotheses(hashes, hashes, of_each, of_each, of_each.astype(jnp.float32)),
            alignments=Alignments(sums, sums, jnp.full_like(sums, -1, jnp.int32)),
            networks=jax.tree.map(spread, Networks(prediction, state, language)),
            is_behind=of_each != 0,
            history=History.empty(self.encoded.shape[1] + self.options.max_labels, emissions),
            joint_evaluations=zeros,
            joint_rows=scalar,
            prediction_steps=scalar,
        )

    def turn(self, search: _Search) -> _Search:
        """Expands the alignments at n, and goes on to the next."""
        options, model = self.options, self.options.language_model
        here = Alignments(*(x[..., 0] for x in search.alignments))
        is_here = here.sums > -jnp.inf
        # Who needs a new prediction waits until enough do: a prediction network costs as much for
        # one as for all of them.
        waits = jnp.any(is_here & search.is_behind, axis=1)
        quorum = self.quorum * jnp.sum(_is_alive(search), dtype=jnp.float32)
        enough = jnp.sum(waits, dtype=jnp.float32) >= quorum
        search = self._catch_up(search, is_here & search.is_behind & enough)
        is_here &= (~waits | enough)[:, None]
        here = hyp.none_where(~is_here, here)
        known = search.hypotheses
        frames = search.n[:, None] - known.label_lengths
        frames_left = self.lengths[:, None] - frames

        rows, computed = self._evaluate(search, is_here, frames)

        # The blanks.
        sums, bests, _ = hyp.steps(
            rows.blank_arcs, self.scores.blank_durations, False, frames_left, self.columns
        )
        is_first = jnp.arange(self.columns)[None, None] == 0
        stay = hyp.add(
            hyp.none_where(is_first & is_here[..., None], search.alignments),
            Alignments(
                here.sums[..., None] + sums,
                here.bests[..., None] + bests,
                jnp.broadcast_to(here.ends[..., None], sums.shape),
            ),
        )

        # The labels. Most of the time there are none, and so nobody to choose from.
        parent, has_parent = hyp.parents_of(known)
        gets = has_parent & hyp.take(is_here, parent)
        emits = jnp.any(rows.log_probs > -jnp.inf) | jnp.any(gets)

        def with_labels() -> hyp.Extended:
            extras = jnp.zeros_like(rows.log_probs) + options.label_bonus
            if model is not None:
                extras += self._fused(rows.labels, search.networks.language)
            extras = jnp.where(rows.log_probs > -jnp.inf, extras, 0.0)
            labels = Labels(rows.of_children, rows.log_probs, rows.labels, extras, rows.label_arcs)
            return hyp.extend(
                known,
                stay,
                here,
                frames,
                frames_left,
                labels,
                self.scores.label_durations,
                search.n[:, None] * options.beam,
                options.threshold,
            )

        def without_labels() -> hyp.Extended:
            place = zeros_like(frames) + jnp.arange(options.beam, dtype=jnp.int32)[None]
            none = Emissions(frames, frames, frames, rows.label_arcs)
            return hyp.Extended(known, stay, place, place < 0, none, search.is_sound)

        extended = lax.cond(emits, with_labels, without_labels)
        networks = lax.cond(
            jnp.any(extended.is_new),
            lambda: hyp.take(search.networks, extended.source),
            lambda: search.networks,
        )
        alignments, ahead = hyp.advance(extended.hypotheses, extended.alignments, options.threshold)
        # Nobody reads on after a NaN.
        is_sound = extended.is_sound & search.is_sound
        is_sound &= ~jnp.any(is_here & rows.has_nan, axis=1)
        alignments = hyp.none_where(~is_sound[:, None, None], alignments)
        return _Search(
            n=search.n + ahead,
            is_sound=is_sound,
            hypotheses=extended.hypotheses,
            alignments=alignments,
            networks=networks,
            is_behind=extended.is_new | search.is_behind,
            history=search.history.write(search.n, extended.emissions),
            joint_evaluations=search.joint_evaluations + jnp.sum(is_here, axis=1, dtype=jnp.int32),
            joint_rows=search.joint_rows + computed,
            prediction_steps=search.prediction_steps,
        )

    def _catch_up(self, search: _Search, behind: jax.Array) -> _Search:
        """Lets the networks of the hypotheses `behind` `[B, K]` see their last labels."""

        def step(inputs: Any) -> Networks:
            labels, networks = inputs
            rows, shape = _flat(networks), labels.shape
            labels = labels.reshape(-1)
            prediction, state = self.predict(labels, rows.state)
            language = self._advance(labels, rows.language)
            return _unflat(Networks(prediction, state, language), shape)

        last = search.hypotheses.last_labels
        networks, computed = self._for_each(behind, step, (last, search.networks), search.networks)
        return search._replace(
            networks=networks,
            is_behind=search.is_behind & ~behind,
            prediction_steps=search.prediction_steps + computed,
        )

    def _advance(self, labels: jax.Array, language: PyTree) -> PyTree:
        model = self.options.language_model
        return language if model is None else model.advance(labels, language)

    def _evaluate(
        self, search: _Search, is_here: jax.Array, frames: jax.Array
    ) -> tuple[_Rows, jax.Array]:
        """What the joint says of the hypotheses `is_here` `[B, K]`, at `frames` `[B, K]`."""
        options, known = self.options, search.hypotheses
        parent, has_parent = hyp.parents_of(known)
        place = jnp.arange(options.beam, dtype=jnp.int32)[None, :, None]
        is_child = has_parent[:, None] & (parent[:, None] == place)  # [B, parent, child]
        children = jnp.where(is_child, known.last_labels[:, None], -1)
        totals = hyp.total(search.alignments.sums) + known.extras
        # The best that is known before: of those that are not here, which can but grow.
        waiting = jnp.max(jnp.where(is_here, -jnp.inf, totals), axis=1, keepdims=True)
        here = search.alignments.sums[..., 0] + known.extras
        inputs = (
            frames,
            search.networks.prediction,
            children,
            here,
            jnp.broadcast_to(waiting, here.shape),
            known.label_lengths < options.max_labels,
        )

        def evaluate(inputs: Any) -> _Rows:
            frames, prediction, children, here, waiting, may_emit = inputs
            shape = frames.shape
            encoded = _flat(hyp.take(self.encoded, frames))
            row = self.scores.rows(self.joint(encoded, _flat(prediction)))
            left = (self.lengths[:, None] - frames).reshape(-1, 1)
            children, here, waiting, may_emit = _flat((children, here, waiting, may_emit))

            def within(log_probs: jax.Array, durations: tuple[int, ...], limit: Any) -> jax.Array:
                fits = jnp.asarray(durations, jnp.int32)[None] <= limit
                return jnp.where(fits, log_probs, -jnp.inf)

            label_arcs = jnp.where(may_emit[:, None], row.label_arcs, -jnp.inf)
            gain = hyp.total(within(label_arcs, self.scores.label_durations, left - 1))
            gain += options.label_bonus
            stays = jnp.max(
                within(row.blank_arcs, self.scores.blank_durations, left),
                axis=1,
                initial=-jnp.inf,
            )
            classes = jnp.arange(row.logits.shape[1], dtype=jnp.int32)
            # One by one: XLA's CPU backend vectorises this, but not a reduction.
            is_child = [children[:, k, None] == classes[None] for k in range(options.beam)]
            is_taken = functools.reduce(operator.or_, is_child)
            logits = jnp.where(is_taken, -jnp.inf, row.logits)
            most = jnp.max(logits, axis=1)
            reference = jnp.maximum(here + jnp.maximum(stays, row.of_logit(most) + gain), waiting)

            def worth(logit: jax.Array) -> jax.Array:
                """Whether a label with this logit comes up to the threshold; `logit` [R, ...]."""
                axes = range(1, logit.ndim)
                add, floor = (
                    jnp.expand_dims(x, axes) for x in (here + gain, reference - options.threshold)
                )
                score = add + row.of_logit(logit)
                return (score >= floor) & (score > -jnp.inf)

            values, labels = best_labels(logits, options.candidates, worth)
            of_children = jnp.take_along_axis(row.logits, jnp.maximum(children, 0), axis=1)
            rows = _Rows(
                label_arcs,
                row.blank_arcs,
                jnp.where(children >= 0, row.of_logit(of_children), -jnp.inf),
                jnp.where(worth(values), row.of_logit(values), -jnp.inf),
                labels,
                jnp.isnan(row.log_sum)
                | jnp.any(jnp.isnan(row.label_arcs), axis=1)
                | jnp.any(jnp.isnan(row.blank_arcs), axis=1),
            )
            return _unflat(rows, shape)

        of_each = zeros_like(frames, jnp.float32)[..., None]

        def nothing(count: int) -> jax.Array:
            return jnp.broadcast_to(of_each - jnp.inf, (*frames.shape, count))

        candidates = nothing(options.candidates)
        results = _Rows(
            nothing(len(self.scores.label_durations)),
            nothing(len(self.scores.blank_durations)),
            nothing(options.beam),
            candidates,
            zeros_like(candidates, jnp.int32),
            of_each[..., 0] != 0,
        )
        return self._for_each(is_here, evaluate, inputs, results)

    def _fused(self, labels: jax.Array, language: PyTree) -> jax.Array:
        """What the language model adds to the scores of `labels` `[B, K, C]`."""
        assert self.options.language_model is not None
        scores = self.options.language_model.score(_flat(labels), _flat(language))
        scores = scores.astype(jnp.float32).reshape(labels.shape)
        return jnp.where(  # even if the weight is 0
            jnp.isneginf(scores), -jnp.inf, self.options.language_model_weight * scores
        )

    def _for_each(
        self, which: jax.Array, function: Callable[[Any], Any], inputs: Any, results: Any
    ) -> tuple[Any, jax.Array]:
        """`results` `[B, K, ...]`, where `which` `[B, K]` those of `function(inputs)`.

        The function sees `width` hypotheses of each utterance at once, so that it costs what it has
        to be asked for: seldom all of the beam. Also returns how many rows it has seen.
        """
        width, beam = self.width, self.options.beam
        rows = jnp.int32(which.shape[0] * width)
        if width == beam:
            computed = lax.cond(
                jnp.any(which),
                lambda: hyp_where(which, function(inputs), results),
                lambda: results,
            )
            return computed, rows * jnp.any(which)
        rank = jnp.cumsum(which, axis=1, dtype=jnp.int32) - 1
        most = jnp.max(jnp.sum(which, axis=1, dtype=jnp.int32), initial=0)

        def some(carry: tuple) -> tuple:
            first, results = carry
            place = jnp.arange(beam, dtype=jnp.int32)
            nth = first + jnp.arange(width, dtype=jnp.int32)
            is_nth = which[:, None] & (rank[:, None] == nth[None, :, None])  # [B, width, K]
            index = jnp.sum(jnp.where(is_nth, place[None, None], 0), axis=-1, dtype=jnp.int32)
            new = function(hyp.take(inputs, index))
            is_it = is_nth.any(axis=1)
            if width > 1:  # else it is one for all
                new = hyp.take(new, jnp.clip(rank - first, 0, width - 1))
            return first + width, hyp_where(is_it, new, results)

        ranges = most - most, results
        first, results = lax.while_loop(lambda carry: carry[0] < most, some, ranges)
        return results, (first // width) * rows

    def end(self, search: _Search) -> BeamDecoding:
        options, model = self.options, self.options.language_model
        known, ended = search.hypotheses, Alignments(*(x[..., -1] for x in search.alignments))
        scores = ended.sums + known.extras
        if model is not None:
            language = _flat(search.networks.language)
            last = self._advance(known.last_labels.reshape(-1), language)
            last = select(search.is_behind.reshape(-1), last, language)
            at_end = model.end(last).astype(jnp.float32).reshape(scores.shape)
            scores += options.language_model_weight * at_end
        scores = jnp.where(ended.sums > -jnp.inf, scores, -jnp.inf)
        scores, order = lax.top_k(scores, options.beam)
        is_there = (scores > -jnp.inf) & search.is_sound[:, None]

        def of_sound(x: jax.Array) -> jax.Array:
            return jnp.where(search.is_sound[:, None], x, jnp.nan)

        log_probs, ends, lengths = hyp.take((ended.sums, ended.ends, known.label_lengths), order)
        lengths = jnp.where(is_there, lengths, 0)
        durations = np.array(self.scores.label_durations, np.int32)
        found = search.history.read(
            jnp.where(is_there, ends, -1), lengths, jnp.asarray(durations), options.max_labels
        )
        return BeamDecoding(
            labels=found.labels,
            label_lengths=lengths,
            frames=found.frames,
            durations=found.durations,
            label_log_probs=found.log_probs,
            log_probs=of_sound(log_probs),
            scores=of_sound(scores),
            joint_evaluations=search.joint_evaluations,
            joint_rows=search.joint_rows,
            prediction_steps=search.prediction_steps,
        )


class _Rows(NamedTuple):
    """What the joint says of every hypothesis at n; -inf where there is none."""

    label_arcs: jax.Array  # [B, K, label arcs]
    blank_arcs: jax.Array  # [B, K, blank arcs]
    of_children: jax.Array  # [B, K, K]
    log_probs: jax.Array  # [B, K, C], of `labels`
    labels: jax.Array  # [B, K, C]
    has_nan: jax.Array  # [B, K]


def _flat(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def _unflat(tree: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tree)


def hyp_where(condition: jax.Array, new: Any, old: Any) -> Any:
    def where(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(condition, range(2, new.ndim)), new, old)

    return jax.tree.map(where, new, old)
