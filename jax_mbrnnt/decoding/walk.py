"""The one walk of greedy recognition, whoever wants it: a whole utterance or a chunk of a stream.

A turn looks at a window of frames of every utterance, each from its own frame on: the joint is
evaluated for all of it with the prediction that there is, and the walk goes through what came out,
jumping as the arcs taken say, until it finds a label or leaves the window. A label asks for a new
prediction, and its utterance waits for it; the prediction network runs when enough of them wait
(`quorum`). No utterance waits for another's blanks, and where nobody found a label the prediction
network, often the dearer half, does not run.

What is found depends on none of this: every node is visited that a search of one node at a time
would visit, with the same scores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_mbrnnt.arcs import as_integer
from jax_mbrnnt.decoding.result import GreedyDecoding
from jax_mbrnnt.decoding.search import (
    Joint,
    Predict,
    PyTree,
    check_functions,
    put,
    select,
    start_label_of,
)
from jax_mbrnnt.decoding.step import Step, Steps
from jax_mbrnnt.transducers import Transducer

_INT32_MAX = 2**31 - 1

# Window and quorum, by what they run on and whether there are jumps of several frames.
_USUAL = {
    ("cpu", False): (4, 0.5),
    ("cpu", True): (1, 0.75),
    ("other", False): (8, 0.0),
    ("other", True): (8, 0.0),
}


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

    def __call__(
        self, encoded: jax.Array, lengths: jax.Array, place: Place, offset: jax.Array | None = None
    ) -> Place:
        """Goes on from `place` to the utterances' ends, or until they have no room for labels.

        `encoded` is `[B, T, H...]`, T at least 1; `lengths` `[B]` int32 are the frames to search,
        and `offset` `[B]` counts those before them.
        """
        window = min(self.window, encoded.shape[1])
        max_labels = place.found.labels.shape[1]

        def unfinished(place: Place) -> jax.Array:
            return (place.frame < lengths) & (place.found.label_lengths < max_labels)

        def turn(state: tuple[jax.Array, Place]) -> tuple[jax.Array, Place]:
            _, place = state
            searches = unfinished(place) & (place.label < 0)
            place = self._search(encoded, lengths, window, searches, place, offset)
            waits, unfinished_ = place.label >= 0, unfinished(place)
            counts = jnp.stack([waits, unfinished_ & ~waits, unfinished_])
            waiting, searching, left = jnp.sum(counts, axis=1, dtype=jnp.int32)
            # Those who search go on until the others are enough; when nobody does, they are.
            share = jnp.float32(self.quorum) * (waiting + searching).astype(jnp.float32)
            enough = (waiting > 0) & (waiting.astype(jnp.float32) >= share)
            return left > 0, self._predict_if(enough, place)

        going = jnp.any(unfinished(place))
        return lax.while_loop(lambda state: state[0], turn, (going, place))[1]

    def _search(
        self,
        encoded: jax.Array,
        lengths: jax.Array,
        window: int,
        searches: jax.Array,
        place: Place,
        offset: jax.Array | None,
    ) -> Place:
        """Those who search go through one window, to its end or to their next label."""
        # The last windows begin before their utterance's frame: none is beyond the padding's end.
        first = jnp.minimum(place.frame, encoded.shape[1] - window)
        steps = self.steps.best(self._logits(encoded, first, window, place.prediction))
        found, nothing = place.found, jnp.zeros_like(place.frame)
        turn = _Turn(
            frame=place.frame,
            symbols=place.symbols,
            log_prob=found.log_probs,
            visited=nothing,
            searches=searches,
            emits=jnp.zeros_like(searches),
            label=nothing,
            at=nothing,
            duration=nothing,
            label_log_prob=jnp.zeros_like(found.log_probs),
        )
        for w in range(window):
            here = turn.searches & (turn.frame == first + w) & (turn.frame < lengths)
            turn = self._visit(jax.tree.map(lambda x, w=w: x[w], steps), here, turn)

        # Outside the buffer nothing is written: that is where the others put what they have.
        room = jnp.where(turn.emits, found.label_lengths, found.labels.shape[1])
        at = turn.at if offset is None else turn.at + offset
        return place._replace(
            frame=turn.frame,
            symbols=turn.symbols,
            label=jnp.where(turn.emits, turn.label, place.label),
            found=GreedyDecoding(
                labels=put(found.labels, room, turn.label),
                label_lengths=found.label_lengths + turn.emits.astype(jnp.int32),
                frames=put(found.frames, room, at),
                durations=put(found.durations, room, turn.duration),
                log_probs=turn.log_prob,
                joint_evaluations=found.joint_evaluations + turn.visited,
                label_log_probs=put(found.label_log_probs, room, turn.label_log_prob),
                joint_rows=found.joint_rows + window,
                prediction_steps=found.prediction_steps,
            ),
        )

    def _logits(
        self, encoded: jax.Array, first: jax.Array, window: int, prediction: PyTree
    ) -> jax.Array:
        """`[window, B, V]`, each utterance's from its own first frame on."""
        # A vmap, not an index `arange(B)`: the batch stays local where it is sharded.
        frames = jax.vmap(partial(lax.dynamic_slice_in_dim, slice_size=window), out_axes=1)(
            encoded, first
        )
        if window == 1:
            return self.joint(frames[0], prediction)[None]
        logits: jax.Array = jax.vmap(self.joint, in_axes=(0, None))(frames, prediction)
        return logits

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

    def _predict_if(self, enough: jax.Array, place: Place) -> Place:
        """The predictions of those who wait for one, if they are enough."""

        def predict(operands: tuple) -> tuple:
            label, *before = operands
            waits = label >= 0
            after = self.predict(jnp.where(waits, label, self.start_label), before[1])
            return jnp.full_like(label, -1), *select(waits, list(after), before)

        operands = place.label, place.prediction, place.state
        label, prediction, state = lax.cond(enough, predict, lambda x: x, operands)
        steps = place.found.prediction_steps + enough.astype(jnp.int32)
        return Place(
            frame=place.frame,
            symbols=place.symbols,
            label=label,
            prediction=prediction,
            state=state,
            found=place.found._replace(prediction_steps=steps),
        )


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
) -> Walk:
    """The walk through `encoded` `[B, T, H...]`, its functions and options checked."""
    max_symbols_per_frame = at_least(1, "max_symbols_per_frame", max_symbols_per_frame)
    if max_duration is not None:
        max_duration = at_least(1, "max_duration", max_duration)
    plan = transducer.plan(check_functions(joint, predict, encoded, initial_state))
    steps = Steps(plan, max_duration)
    platform = "cpu" if jax.default_backend() == "cpu" else "other"
    usual_window, usual_quorum = _USUAL[platform, bool((steps.durations > 1).any())]
    window = usual_window if window is None else at_least(1, "window", window)
    quorum = usual_quorum if quorum is None else float(quorum)
    if not 0 <= quorum <= 1:
        raise ValueError(f"quorum: expected a share in [0, 1], got {quorum}")
    return Walk(
        joint=joint,
        predict=predict,
        steps=steps,
        start_label=start_label_of(start_label, plan.emission),
        max_symbols_per_frame=min(max_symbols_per_frame, _INT32_MAX),
        window=window,
        quorum=quorum,
    )


def at_least(least: int, name: str, value: Any) -> int:
    value = as_integer(name, value)
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value
