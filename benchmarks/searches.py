"""Other ways to search greedily, in JAX: what `decoding.py` compares with.

All take networks as `greedy_decode` does, and one head of scores alone, or two as a `TDT` has:
`arcs_of` says what a row stands for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_mbrnnt import Transducer


class Result(NamedTuple):
    """What `decoding.py` looks at, of any search."""

    labels: jax.Array
    label_lengths: jax.Array
    frames: jax.Array
    log_probs: jax.Array
    joint_evaluations: jax.Array
    joint_rows: jax.Array
    prediction_steps: jax.Array


Arcs = Callable[[jax.Array], tuple[jax.Array, ...]]


def arcs_of(transducer: Transducer, scores: int) -> Arcs:
    """Of rows `[B, V]`: the label, whether it is one, the duration, the log-probability."""
    emission = transducer.emission(scores)
    tokens, blanks = emission.heads[0], jnp.asarray(emission.blanks)
    of_class = np.zeros(emission.heads[-1], np.int32)  # the last head says how long
    for arc, reads in zip(transducer.arcs, emission.reads, strict=True):
        if reads[-1] >= 0:
            of_class[reads[-1]] = arc.duration

    def read(logits: jax.Array) -> tuple[jax.Array, ...]:
        heads = [logits[:, :tokens], logits[:, tokens:]][: len(emission.heads)]
        label = jnp.argmax(heads[0], axis=-1).astype(jnp.int32)
        emits = jnp.all(label[:, None] != blanks, axis=-1)
        duration = jnp.asarray(of_class)[jnp.argmax(heads[-1], axis=-1)]
        duration = jnp.where(emits, duration, jnp.maximum(duration, 1))
        return label, emits, duration, sum(map(highest, heads))

    return read


def highest(logits: jax.Array) -> jax.Array:
    """The largest log-probability `[B]`."""
    return jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(
        lambda x, y: jnp.where(jnp.expand_dims(condition, range(1, x.ndim)), x, y), new, old
    )


def put(buffer: jax.Array, place: jax.Array, value: jax.Array) -> jax.Array:
    return jax.vmap(lambda row, i, x: row.at[i].set(x, mode="drop"))(buffer, place, value)


def emitted(
    r: Result,
    active: jax.Array,
    emits: jax.Array,
    label: jax.Array,
    log_prob: jax.Array,
    frame: jax.Array,
) -> Result:
    """`r`, and what a turn found for the utterances `active`."""
    place = jnp.where(emits, r.label_lengths, r.labels.shape[1])
    return Result(
        put(r.labels, place, label),
        r.label_lengths + emits,
        put(r.frames, place, frame),
        r.log_probs + jnp.where(active, log_prob, 0.0),
        r.joint_evaluations + active,
        r.joint_rows + 1,
        r.prediction_steps + 1,
    )


class Networks(NamedTuple):
    """What all of them ask."""

    arcs: Arcs
    joint: Any
    predict: Any
    start: int

    def ask(
        self,
        row: jax.Array,
        active: jax.Array,
        frame: jax.Array,
        prediction: Any,
        memory: Any,
        r: Result,
    ) -> tuple[jax.Array, jax.Array, Any, Any, Result]:
        """Of the utterances `active`: which say a label, durations, prediction, memory, result."""
        label, emits, duration, log_prob = self.arcs(self.joint(row, prediction))
        emits &= active
        r = emitted(r, active, emits, label, log_prob, frame)
        after = self.predict(jnp.where(emits, label, self.start), memory)
        return emits, duration, *select(emits, after, (prediction, memory)), r


def one_at_a_time(
    networks: Networks, encoded: jax.Array, lengths: jax.Array, initial: Any, room: int
) -> Result:
    """`greedy_decode` as it was: a joint and a prediction a turn, each utterance at its own frame.

    No label here is followed by ten others at its frame, so that limit is left out.
    """

    def turn(state):
        frame, *rest = state
        active = frame < lengths
        row = jax.vmap(lambda x, i: lax.dynamic_index_in_dim(x, i, keepdims=False))(encoded, frame)
        _, duration, *rest = networks.ask(row, active, frame, *rest)
        frame += jnp.where(active, jnp.minimum(duration, lengths - frame), 0)
        return frame, *rest

    return _search(turn, networks, lengths, initial, room)


def _search(turn, networks: Networks, lengths: jax.Array, initial: Any, room: int) -> Result:
    zeros = jnp.zeros_like(lengths)
    nothing = jnp.full((len(zeros), room), -1, jnp.int32)
    result = Result(nothing, zeros, nothing, zeros.astype(jnp.float32), zeros, zeros, zeros + 1)
    prediction, memory = networks.predict(zeros + networks.start, initial)
    state = zeros, prediction, memory, result
    return lax.while_loop(lambda state: jnp.any(state[0] < lengths), turn, state)[3]


def frame_by_frame(
    networks: Networks, encoded: jax.Array, lengths: jax.Array, initial: Any, room: int
) -> Result:
    """In the manner of NeMo's older batched decoders: the batch is at one frame.

    At a frame the joint and the prediction network run until nobody has a label; then all go on by
    the shortest jump of the batch.
    """

    def turn(state):
        frame, *rest = state
        row = lax.dynamic_index_in_dim(encoded, frame[0], axis=1, keepdims=False)

        def ask(inner):
            asks, jump, *rest = inner
            emits, duration, *rest = networks.ask(row, asks, frame, *rest)
            jump = jnp.where(asks, duration, jump)
            return asks & emits & (duration == 0), jump, *rest

        inner = frame < lengths, jnp.ones_like(frame), *rest
        _, jump, *rest = lax.while_loop(lambda inner: jnp.any(inner[0]), ask, inner)
        return frame + jnp.min(jump), *rest

    return _search(turn, networks, lengths, initial, room)
