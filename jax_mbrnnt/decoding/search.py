"""What every search needs: the caller's functions, checked, and places in arrays of utterances."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_mbrnnt import _checks
from jax_mbrnnt._mesh import check_not_explicit
from jax_mbrnnt._program import run
from jax_mbrnnt.arcs import Emission, as_integer
from jax_mbrnnt.transducers import Transducer

PyTree = Any
Joint = Callable[[jax.Array, PyTree], jax.Array]
Predict = Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]


def check_transducer(transducer: Any) -> None:
    if not isinstance(transducer, Transducer):
        raise TypeError(
            f"transducer: expected a Transducer, as MultiblankRNNT or TDT are, got {transducer!r}"
        )


class Speech(NamedTuple):
    """What is to be recognised, checked: a batch of utterances, or one that is made a batch."""

    encoded: jax.Array  # [B, T, H...]
    lengths: Any  # [B], None for all frames
    initial_state: PyTree
    is_alone: bool

    @classmethod
    def given(cls, encoded: Any, logit_lengths: Any, initial_state: PyTree) -> Speech:
        x = _checks.as_array(encoded)
        is_alone = x.ndim == 2
        if is_alone:
            x, initial_state = jax.tree.map(lambda x: _checks.as_array(x)[None], (x, initial_state))
        if x.ndim < 3:
            raise ValueError(
                f"encoded: expected shape [B, T, H...], or [T, H] of one utterance, got {x.shape}"
            )
        _checks.check_known_sizes("encoded", x.shape, x.shape[1:])
        of_each = () if is_alone else x.shape[:1]
        lengths = _checks.check_lengths("logit_lengths", logit_lengths, of_each, x.shape[1])
        if is_alone and lengths is not None:
            lengths = jnp.asarray(lengths)[None]
        return cls(x, lengths, initial_state, is_alone)

    def searched(self, search: Callable[..., PyTree]) -> PyTree:
        """`search(encoded, lengths, initial_state)`, of one utterance without the batch."""
        found = run(search, self.encoded, self.lengths, self.initial_state)
        return jax.tree.map(lambda x: x[0], found) if self.is_alone else found


def at_least(least: int, name: str, value: Any) -> int:
    value = as_integer(name, value)
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value


def true_of(encoded: jax.Array) -> jax.Array:
    """`[B]`, true, and varying and sharded as `encoded` is."""
    true: jax.Array = jnp.all(encoded[:, :0] == 0, axis=tuple(range(1, encoded.ndim)))
    return true  # all of nothing


def searchable(
    lengths: jax.Array | None, encoded: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`encoded` with a frame at least, since loops need one to be compiled with; `[B]` frames to
    decode; and whether the length is in range (if not, they are 0).
    """
    batch, frames = encoded.shape[:2]
    if lengths is None:
        lengths, in_range = jnp.full((batch,), frames, jnp.int32), jnp.ones((batch,), bool)
    else:
        lengths = _checks.widened(lengths)
        in_range = (lengths >= 0) & (lengths <= frames)
        lengths = jnp.where(in_range, lengths, 0)
    if frames == 0:
        encoded = jnp.zeros((batch, 1, *encoded.shape[2:]), encoded.dtype)
    return encoded, lengths, in_range


def start_label_of(given: Any, emission: Emission) -> Any:
    if isinstance(given, jax.core.Tracer):  # as a language's, say
        return given.astype(jnp.int32)
    if given is None:
        if not emission.blanks:
            raise ValueError(
                "start_label: expected a class of the first head, which has no blank to stand for "
                "it, got None"
            )
        return emission.blanks[0]
    start, classes = as_integer("start_label", given), emission.num_labels
    if not 0 <= start < classes:
        raise ValueError(
            f"start_label: expected a class in [0, {classes}) (V = {classes} classes), got {start}"
        )
    return start


def check_functions(
    joint: Joint, predict: Predict, encoded: jax.Array, initial_state: PyTree
) -> int:
    """Returns V; an error where the functions' shapes do not fit, from the shapes alone."""
    # A search looks up what each utterance asks for; how that is split is left to the compiler.
    check_not_explicit("encoded", encoded)
    check_not_explicit("initial_state", initial_state)
    batch = encoded.shape[0]

    def first_step(encoded: jax.Array, state: PyTree) -> tuple[jax.Array, tuple, tuple]:
        place = jnp.zeros((batch,), jnp.int32)
        first = predict(place, state)
        given, got = jax.tree.structure(state), jax.tree.structure(first[1])
        if str(given) != str(got):
            raise ValueError(
                f"predict: expected a state of initial_state's structure {given}, got {got}"
            )
        return joint(at(encoded, place), first[0]), first, predict(place, first[1])

    logits, first, second = jax.eval_shape(first_step, encoded, initial_state)
    if logits.ndim != 2 or logits.shape[0] != batch:
        raise ValueError(f"joint: expected logits of shape [{batch}, V], got {logits.shape}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"joint: expected logits of a floating dtype, got {logits.dtype}")
    for name, before, after in zip(("prediction", "state"), first, second, strict=True):
        for x in jax.tree.leaves(before):
            if x.shape[:1] != (batch,):
                raise ValueError(
                    "predict: expected a prediction and a state whose arrays begin with the batch "
                    f"dimension {batch}, got an array of shape {x.shape} in the {name}"
                )
        if _signature(before) != _signature(after):
            raise ValueError(
                f"predict: expected a {name} of the same structure, shapes and dtypes at every "
                f"call, got {_signature(before)} at the first and {_signature(after)} at the second"
            )
    return int(logits.shape[1])


def _signature(tree: PyTree) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))


def at(encoded: jax.Array, frame: jax.Array) -> jax.Array:
    """Returns `encoded[b, frame[b]]` for every b, the last frame for those that are past it."""
    # A vmap, not `encoded[arange(B), frame]`: the batch stays local where it is sharded.
    rows: jax.Array = jax.vmap(partial(lax.dynamic_index_in_dim, keepdims=False))(encoded, frame)
    return rows


def put(buffer: jax.Array, place: jax.Array, value: jax.Array) -> jax.Array:
    """Writes `value[b]` to `buffer[b, place[b]]` where that is inside of the buffer."""
    if buffer.size == 0:  # JAX refuses to index an axis of size 0, even to write nothing.
        return buffer
    written: jax.Array = jax.vmap(lambda row, i, x: row.at[i].set(x, mode="drop"))(
        buffer, place, value
    )
    return written


def select(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Returns `new` for the utterances where `condition` holds, else `old`."""

    def select(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(condition, range(1, new.ndim)), new, old)

    return jax.tree.map(select, new, old)
