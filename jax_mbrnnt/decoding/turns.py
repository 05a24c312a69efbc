"""The turns of a beam search: where it stands, what a turn does, and how it begins and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_mbrnnt._mesh import unify_varying, zeros_like, zeros_of_batch
from jax_mbrnnt.decoding import hypotheses as hyp
from jax_mbrnnt.decoding.history import History
from jax_mbrnnt.decoding.hypotheses import Alignments, Emissions, Extended, Hypotheses, take
from jax_mbrnnt.decoding.looks import Looks, Networks, Rows, Some
from jax_mbrnnt.decoding.search import PyTree


class Search(NamedTuple):
    """Where the search stands between two turns."""

    n: jax.Array  # [B], t + u of the alignments that are expanded
    is_sound: jax.Array  # [B], no NaN so far
    hypotheses: Hypotheses
    alignments: Alignments
    networks: Networks
    is_behind: jax.Array  # [B, K], the networks have not seen the last label
    rows: Rows
    is_known: jax.Array  # [B, K], `rows` are those at n
    history: History
    joint_evaluations: jax.Array  # [B]
    joint_rows: jax.Array  # [B]
    prediction_steps: jax.Array  # [B]

    @property
    def is_alive(self) -> jax.Array:
        """`[B]`, whether any alignment has not come to the end."""
        return jnp.any(self.alignments.sums[..., :-1] > -jnp.inf, axis=(1, 2))


class Turns(NamedTuple):
    """How a batch is searched.

    A turn asks the prediction network if enough of the utterances wait for it, then evaluates the
    joint for some hypotheses of each utterance; the utterances that then know all of their rows at
    n go on. So no utterance waits for another with more hypotheses. Nothing that is found depends
    on who waits for whom.
    """

    looks: Looks
    beam: int
    columns: int  # of `Alignments`
    widths: tuple[int, ...]  # how many hypotheses of each utterance the networks may see at once
    quorum: float

    @classmethod
    def of(cls, looks: Looks, beam: int) -> Turns:
        batch, frames = looks.encoded.shape[:2]
        furthest = [d for d in looks.scores.blank_durations if d < frames]
        furthest += [d + 1 for d in looks.scores.label_durations if d < frames]
        # On a CPU a row that nobody needs costs, but a few at once cost less than one by one, for
        # the parameters are read once. Elsewhere rows cost nothing to speak of; turns do.
        is_cpu = jax.default_backend() == "cpu"
        most = min(beam, max(1, 8 // max(1, batch))) if is_cpu else beam
        return cls(
            looks=looks,
            beam=beam,
            columns=2 + max(furthest, default=1),  # n, what lies ahead of it, the final node
            widths=(1, most) if is_cpu and most > 1 else (most,),
            quorum=0.5 if is_cpu else 0.0,
        )

    def begin(self, in_range: jax.Array, initial_state: PyTree, start: Any) -> Search:
        batch, beam = len(in_range), self.beam
        scores, model = self.looks.scores, self.looks.model
        # Everything varies over a mesh as the encoder's output does, from the start.
        zeros = zeros_of_batch(self.looks.encoded, 1, jnp.int32) + jnp.where(in_range, 0, 0)
        prediction, state = self.looks.predict(zeros + start, initial_state)
        language = None if model is None else model.initial_state(batch)

        def spread(x: jax.Array) -> jax.Array:
            x = jnp.broadcast_to(x[:, None], (batch, beam, *x.shape[1:]))
            varying, _ = unify_varying(x, zeros)
            return varying

        of_each = spread(zeros)
        is_first = jnp.arange(beam, dtype=jnp.int32)[None] == 0
        # An utterance without frames is at its end.
        column = jnp.where(self.looks.lengths > 0, 0, self.columns - 1)
        is_there = jnp.arange(self.columns, dtype=jnp.int32)[None] == column[:, None]
        is_there = is_there[:, None] & (is_first & in_range[:, None])[..., None]
        sums = jnp.where(is_there, 0.0, -jnp.inf) + of_each.astype(jnp.float32)[..., None]
        hashes = jnp.stack([of_each, of_each], axis=-1).astype(jnp.uint32)
        rows = Rows.nothing(of_each, scores, self.looks.candidates)
        emissions = Emissions(of_each, of_each, of_each, zeros_like(rows.label_arcs))
        return Search(
            n=zeros,
            is_sound=in_range & (zeros == 0),
            hypotheses=Hypotheses(hashes, hashes, of_each, of_each, of_each.astype(jnp.float32)),
            alignments=Alignments(sums, sums, zeros_like(sums, jnp.int32) - 1),
            networks=jax.tree.map(spread, Networks(prediction, state, language)),
            is_behind=of_each != 0,
            rows=rows,
            is_known=of_each != 0,
            history=History.empty(self.looks.encoded.shape[1] + self.looks.max_labels, emissions),
            joint_evaluations=zeros,
            joint_rows=zeros,
            prediction_steps=zeros + 1,
        )

    def turn(self, search: Search) -> Search:
        is_here = search.alignments.sums[..., 0] > -jnp.inf
        search = self._catch_up(search, is_here & ~search.is_known)
        frames = search.n[:, None] - search.hypotheses.label_lengths
        ready = is_here & ~search.is_known & ~search.is_behind
        rows, done, width = self._for_some(
            ready,
            lambda some: self.looks.look(
                some,
                search.hypotheses,
                search.alignments.sums,
                frames,
                search.networks,
                search.rows,
            ),
            search.rows,
        )
        search = search._replace(
            rows=rows,
            is_known=search.is_known | done,
            joint_rows=search.joint_rows + width,
        )
        is_here &= jnp.all(~is_here | search.is_known, axis=1, keepdims=True)
        return self._go_on(search, is_here, frames)

    def _catch_up(self, search: Search, wanted: jax.Array) -> Search:
        """Shows the networks new labels of the hypotheses `wanted` `[B, K]`, if it is worth it.

        A prediction network costs about as much for one utterance as for all.
        """
        behind = wanted & search.is_behind
        waits = jnp.any(behind, axis=1) & ~jnp.any(wanted & ~behind, axis=1)
        needed = self.quorum * jnp.sum(search.is_alive, dtype=jnp.float32)
        networks, done, width = self._for_some(
            behind & (jnp.sum(waits, dtype=jnp.float32) >= needed),
            lambda some: self.looks.step(some, search.hypotheses, search.networks),
            search.networks,
        )
        return search._replace(
            networks=networks,
            is_behind=search.is_behind & ~done,
            prediction_steps=search.prediction_steps + width,
        )

    def _for_some(
        self, which: jax.Array, function: Callable[[Some], Any], otherwise: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        """`function` of the first hypotheses of each utterance among `which` `[B, K]`, if any.

        Also returns which they are, and how many of each utterance were computed.
        """

        def at(width: int) -> Callable[[], tuple[Any, jax.Array, jax.Array]]:
            some = Some.first_of(which, width)
            return lambda: (function(some), some.which, jnp.int32(width))

        def nothing() -> tuple[Any, jax.Array, jax.Array]:
            return otherwise, zeros_like(which), jnp.int32(0)

        most = jnp.max(jnp.sum(which, axis=1, dtype=jnp.int32), initial=0)
        fewer = jnp.stack([most > width for width in (0, *self.widths[:-1])])
        wanted = jnp.sum(fewer, dtype=jnp.int32)
        return lax.switch(wanted, [nothing, *(at(width) for width in self.widths)])

    def _go_on(self, search: Search, is_here: jax.Array, frames: jax.Array) -> Search:
        """Expands the alignments at n of the hypotheses `is_here` `[B, K]`, all of an utterance."""
        looks, known, rows = self.looks, search.hypotheses, search.rows
        here = hyp.none_where(~is_here, Alignments(*(x[..., 0] for x in search.alignments)))
        frames_left = looks.lengths[:, None] - frames

        # The blanks.
        sums, bests, _ = hyp.steps(
            rows.blank_arcs, looks.scores.blank_durations, False, frames_left, self.columns
        )
        is_first = jnp.arange(self.columns, dtype=jnp.int32)[None, None] == 0
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
        emits = is_here & jnp.any(rows.log_probs > -jnp.inf, axis=-1)
        emits |= has_parent & take(is_here, parent)

        def with_labels() -> Extended:
            labels = hyp.Labels(
                rows.of_children,
                rows.log_probs,
                rows.labels,
                looks.extras(rows, search.networks.language),
                rows.label_arcs,
            )
            return hyp.extend(
                known,
                stay,
                here,
                frames,
                frames_left,
                labels,
                looks.scores.label_durations,
                search.n[:, None] * self.beam,
                looks.threshold,
            )

        def without_labels() -> Extended:
            place = zeros_like(frames) + jnp.arange(self.beam, dtype=jnp.int32)[None]
            none = Emissions(frames, frames, frames, rows.label_arcs)
            return Extended(known, stay, place, place < 0, none, search.is_sound)

        extended = lax.cond(jnp.any(emits), with_labels, without_labels)
        networks = lax.cond(
            jnp.any(extended.is_new),
            lambda: take(search.networks, extended.source),
            lambda: search.networks,
        )
        alignments, ahead = hyp.advance(extended.hypotheses, extended.alignments, looks.threshold)
        has_nan = jnp.any(is_here & rows.has_nan, axis=1)
        is_sound = search.is_sound & extended.is_sound & ~has_nan
        return search._replace(
            n=search.n + ahead,
            is_sound=is_sound,
            hypotheses=extended.hypotheses,
            # After a NaN nobody reads on.
            alignments=hyp.none_where(~is_sound[:, None, None], alignments),
            networks=networks,
            is_behind=extended.is_new | search.is_behind,
            is_known=search.is_known & ~jnp.any(is_here, axis=1, keepdims=True),
            history=search.history.write(search.n, jnp.any(is_here, axis=1), extended.emissions),
            joint_evaluations=search.joint_evaluations + jnp.sum(is_here, axis=1, dtype=jnp.int32),
        )
