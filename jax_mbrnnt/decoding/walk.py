"""The one walk of greedy recognition, whoever wants it: a whole utterance or a chunk of a stream.

A turn looks at a window of frames of every utterance, each from its own frame on: the joint is
evaluated for all of it with the prediction that there is, and the walk goes through what came out,
jumping as the arcs taken say, until it finds a label or leaves the window. A label asks for a new
prediction, and its utterance waits for it; the prediction network runs when enough of them wait
(`quorum`). No utterance waits for another's blanks, and where nobody found a label the prediction
network, often the dearer half, does not run.

With fewer `lanes` than utterances a turn takes only so many of those who search, and a prediction
so many of those who wait, always the ones with the most frames left: what is computed for nothing
is little, and utterances that are over cost nothing.

What is found depends on none of this: every node is visited that a search of one node at a time
would visit, with the same scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_mbrnnt._mesh import zeros_like
from jax_mbrnnt.decoding.lanes import Lanes
from jax_mbrnnt.decoding.result import GreedyDecoding
from jax_mbrnnt.decoding.rows import check_start_row
from jax_mbrnnt.decoding.search import (
    Joint,
    Predict,
    PyTree,
    at_least,
    check_functions,
    select,
    start_label_of,
)
from jax_mbrnnt.decoding.step import Step, Steps
from jax_mbrnnt.transducers import Transducer

_INT32_MAX = 2**31 - 1


class Place(NamedTuple):
    """Where each utterance stands between two turns."""

    frame: jax.Array  # [B], of those given; may be beyond their end, by what a jump has left over
    symbols: jax.Array  # [B], labels of no frames at this frame so far
    label: jax.Array  # [B], the one that the prediction does not know yet; -1 if there is none
    prediction: PyTree  # of [B, ...]
    state: PyTree  # of [B, ...]
    found: GreedyDecoding


class _Turn(NamedTuple):
    """Where an utterance is in its window, and what it met there. All `[B]`."""

    frame: jax.Array
    symbols: jax.Array
    log_prob: jax.Array  # the utterance's
    visited: jax.Array  # nodes
    searches: jax.Array  # for a label
    emits: jax.Array  # found one: here it is
    label: jax.Array
    at: jax.Array
    duration: jax.Array
    label_log_prob: jax.Array


@dataclasses.dataclass(frozen=True)
class Walk:
    """The caller's functions, and how to go about them."""

    joint: Joint
    predict: Predict
    steps: Steps
    start_label: Any
    max_symbols_per_frame: int
    window: int
    quorum: float
    lanes: int | None  # None: as many as utterances, which stay where they are

    def __call__(
        self, encoded: jax.Array, lengths: jax.Array, place: Place, offset: jax.Array | None = None
    ) -> Place:
        """Goes on from `place` to the utterances' ends, or until they have no room for labels.

        `encoded` is `[B, T, H...]`, T at least 1; `lengths` `[B]` int32 are the frames to search,
        and `offset` `[B]` counts those before them.
        """
        max_labels = place.found.labels.shape[1]

        def unfinished(place: Place) -> jax.Array:
            return (place.frame < lengths) & (place.found.label_lengths < max_labels)

        def turn(state: tuple[jax.Array, Place]) -> tuple[jax.Array, Place]:
            _, place = state
            place = self._search(encoded, lengths, unfinished(place), place, offset)
            waits, goes_on = place.label >= 0, unfinished(place)
            counts = jnp.stack([waits, goes_on & ~waits, goes_on])
            waiting, searching, left = jnp.sum(counts, axis=1, dtype=jnp.int32)
            at_once = waiting + searching
            if self.lanes is not None:
                at_once = jnp.minimum(at_once, self.lanes)
                left += jnp.maximum(waiting - self.lanes, 0)
            # Those who search go on until the others are enough; when nobody does, they are.
            share = jnp.float32(self.quorum) * at_once.astype(jnp.float32)
            enough = (waiting > 0) & (waiting.astype(jnp.float32) >= share)
            return left > 0, self._predict_if(enough, lengths, place)

        going = jnp.any(unfinished(place))
        return lax.while_loop(lambda state: state[0], turn, (going, place))[1]

    def _search(
        self,
        encoded: jax.Array,
        lengths: jax.Array,
        unfinished: jax.Array,
        place: Place,
        offset: jax.Array | None,
    ) -> Place:
        """Those who search go through one window, to its end or to their next label."""
        searches = unfinished & (place.label < 0)
        lanes = self._lanes(searches, lengths - place.frame)
        found = place.found
        searches, lengths, frame, symbols, label, prediction, log_probs, counts = lanes.take(
            (
                *(searches, lengths, place.frame, place.symbols, place.label, place.prediction),
                *(found.log_probs, found.label_lengths),
            )
        )
        window = min(self.window, encoded.shape[1])
        # The last windows begin before their utterance's frame: none is beyond the padding's end.
        first = jnp.minimum(frame, encoded.shape[1] - window)
        frames = lanes.windows(encoded, first, window)
        if window == 1:
            logits = self.joint(frames[0], prediction)[None]
        else:
            logits = jax.vmap(self.joint, in_axes=(0, None))(frames, prediction)
        steps = self.steps.best(logits)

        nothing = zeros_like(frame)
        turn = _Turn(
            frame=frame,
            symbols=symbols,
            log_prob=log_probs,
            visited=nothing,
            searches=searches,
            emits=zeros_like(searches),
            label=nothing,
            at=nothing,
            duration=nothing,
            label_log_prob=zeros_like(log_probs),
        )
        for w in range(window):
            here = turn.searches & (turn.frame == first + w) & (turn.frame < lengths)
            turn = self._visit(jax.tree.map(lambda x, w=w: x[w], steps), here, turn)

        # Outside the buffer nothing is written: that is where the others put what they have.
        room = jnp.where(turn.emits, counts, found.labels.shape[1])
        at = turn.at if offset is None else turn.at + lanes.take(offset)
        return place._replace(
            frame=lanes.give(place.frame, turn.frame),
            symbols=lanes.give(place.symbols, turn.symbols),
            label=lanes.give(place.label, jnp.where(turn.emits, turn.label, label)),
            found=GreedyDecoding(
                labels=lanes.put(found.labels, room, turn.label),
                label_lengths=lanes.give(
                    found.label_lengths, counts + turn.emits.astype(jnp.int32)
                ),
                frames=lanes.put(found.frames, room, at),
                durations=lanes.put(found.durations, room, turn.duration),
                log_probs=lanes.give(found.log_probs, turn.log_prob),
                joint_evaluations=lanes.add(found.joint_evaluations, turn.visited),
                label_log_probs=lanes.put(found.label_log_probs, room, turn.label_log_prob),
                joint_rows=lanes.add(found.joint_rows, nothing + window),
                prediction_steps=found.prediction_steps,
            ),
        )

    def _visit(self, step: Step, here: jax.Array, turn: _Turn) -> _Turn:
        """One node each: the utterances that are `here` take its arc."""
        emits = here & step.emits
        symbols = jnp.where(emits & (step.duration == 0), turn.symbols + 1, 0)
        is_full = symbols == self.max_symbols_per_frame
        jump = jnp.where(is_full, 1, step.duration)
        jump = jnp.minimum(jump, _INT32_MAX - turn.frame)  # a sum beyond it would be negative
        return _Turn(
            frame=jnp.where(here, turn.frame + jump, turn.frame),
            symbols=jnp.where(here, jnp.where(is_full, 0, symbols), turn.symbols),
            log_prob=turn.log_prob + jnp.where(here, step.log_prob, 0.0),
            visited=turn.visited + here.astype(jnp.int32),
            searches=turn.searches & ~emits,
            emits=turn.emits | emits,
            label=jnp.where(emits, step.label, turn.label),
            at=jnp.where(emits, turn.frame, turn.at),
            duration=jnp.where(emits, step.duration, turn.duration),
            label_log_prob=jnp.where(emits, step.log_prob, turn.label_log_prob),
        )

    def _predict_if(self, enough: jax.Array, lengths: jax.Array, place: Place) -> Place:
        """The predictions of those who wait for one, if they are enough."""

        def predict(operands: tuple) -> tuple:
            label, *before, steps = operands
            lanes = self._lanes(label >= 0, lengths - place.frame)
            own_label, own_before = lanes.take((label, before))
            waits = own_label >= 0
            after = self.predict(jnp.where(waits, own_label, self.start_label), own_before[1])
            return (
                lanes.give(label, zeros_like(own_label) - 1),
                *lanes.give(before, select(waits, list(after), own_before)),
                lanes.add(steps, zeros_like(own_label) + 1),
            )

        operands = place.label, place.prediction, place.state, place.found.prediction_steps
        label, prediction, state, steps = lax.cond(
            enough, predict, lambda operands: operands, operands
        )
        return Place(
            frame=place.frame,
            symbols=place.symbols,
            label=label,
            prediction=prediction,
            state=state,
            found=place.found._replace(prediction_steps=steps),
        )

    def _lanes(self, who: jax.Array, left: jax.Array) -> Lanes:
        """For those `[B]` who have something to do, most frames left first, if not for all."""
        if self.lanes is None:
            return Lanes(None)
        return Lanes(lax.top_k(jnp.where(who, jnp.maximum(left, 0) + 1, 0), self.lanes)[1])


def make_walk(
    transducer: Transducer,
    joint: Joint,
    predict: Predict,
    encoded: jax.Array,
    initial_state: PyTree,
    *,
    start_label: Any,
    max_symbols_per_frame: int,
    max_duration: int | None,
    window: int | None,
    quorum: float | None,
    lanes: int | None,
) -> Walk:
    """The walk through `encoded` `[B, T, H...]`, its functions and options checked."""
    max_symbols_per_frame = at_least(1, "max_symbols_per_frame", max_symbols_per_frame)
    if max_duration is not None:
        max_duration = at_least(1, "max_duration", max_duration)
    plan = transducer.plan(check_functions(joint, predict, encoded, initial_state))
    start_label = start_label_of(start_label, plan.emission)
    check_start_row(predict, encoded.shape[0], initial_state, start_label)
    steps = Steps(plan, max_duration)
    batch = encoded.shape[0]
    longest = np.inf if max_duration is None else max_duration
    jumps = bool(((steps.durations > 1) & (steps.durations <= longest)).any())
    usual_window, usual_quorum = _usual(jumps)
    if lanes is not None:
        lanes = at_least(1, "lanes", lanes)
        if not isinstance(batch, int):
            raise ValueError(
                f"lanes: expected None for a batch of unknown size {batch}, got {lanes}"
            )
        lanes = lanes if lanes < batch else None
        usual_quorum = 1.0 if lanes else usual_quorum
    quorum = usual_quorum if quorum is None else float(quorum)
    if not 0 <= quorum <= 1:
        raise ValueError(f"quorum: expected a share in [0, 1], got {quorum}")
    return Walk(
        joint=joint,
        predict=predict,
        steps=steps,
        start_label=start_label,
        max_symbols_per_frame=min(max_symbols_per_frame, _INT32_MAX),
        window=usual_window if window is None else at_least(1, "window", window),
        quorum=quorum,
        lanes=lanes,
    )


def _usual(jumps: bool) -> tuple[int, float]:
    """The window and the quorum that are fastest, if there are jumps of several frames or none.

    Measured on a CPU by benchmarks/decoding.py, for batches of 1 and 16, an LSTM and a stateless
    network: rows cost time there, those of a window less together, unless jumps leave most of them
    out; and with jumps all find their labels at about the same turn, so that waiting is cheap.
    Elsewhere a turn costs time, however many rows it has (not measured yet).
    """
    if jax.default_backend() != "cpu":
        return 8, 0.0
    return (1, 0.75) if jumps else (4, 0.5)
