"""Greedy decoding at its edges: scores that are no numbers, lengths, what the caller got wrong."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import TDT, GreedyDecoding, MultiblankRNNT, Transducer, greedy_decode
from plain_search import (
    EACH,
    HAT,
    assert_equal,
    assert_matches,
    decode,
    decode_one,
    initial_state,
    joint,
    make_model,
    multiblank,
    name,
    predict,
    tdt,
)

RNNT = multiblank()


@pytest.mark.parametrize("transducer", EACH, ids=name)
@pytest.mark.parametrize("how", [{}, {"window": 3, "quorum": 0.0}, {"window": 2, "lanes": 2}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_end_in_nan_for_their_utterance_alone(
    bad: float, how: dict[str, Any], transducer: Transducer
) -> None:
    model = make_model(10, batch=4, frames=12, transducer=transducer)
    clean = decode(model, **how)
    model.encoded[1, 0, 2] = bad
    found = decode(model, **how)
    assert np.isnan(found.log_probs[1])
    assert found.joint_evaluations[1] <= 12 * 10
    others = np.array([0, 2, 3])
    assert_equal(
        GreedyDecoding(*(x[others] for x in found)),
        GreedyDecoding(*(x[others] for x in clean)),
    )


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_all_nan_ends(transducer: Transducer, window: int) -> None:
    model = make_model(10, batch=2, frames=12, transducer=transducer)
    model.encoded[:] = np.nan
    found = decode(model, max_symbols_per_frame=2, window=window)
    assert np.all(np.isnan(found.log_probs))
    assert np.all(np.asarray(found.joint_evaluations) <= 24)


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_a_row_without_exits_has_probability_zero(transducer: Transducer) -> None:
    model = make_model(11, batch=2, frames=4, transducer=transducer)
    model.encoded[0, 1] = -np.inf
    found = decode(model)
    assert found.log_probs[0] == -np.inf
    assert np.isfinite(found.log_probs[1])


@pytest.mark.parametrize("frames", [0, 5])
def test_utterances_of_no_length(frames: int) -> None:
    found = decode(make_model(12, batch=2, frames=frames), [0, 0], max_labels=4)
    np.testing.assert_array_equal(found.labels, np.full((2, 4), -1))
    np.testing.assert_array_equal(found.label_lengths, 0)
    np.testing.assert_array_equal(found.log_probs, 0.0)
    np.testing.assert_array_equal(found.joint_evaluations, 0)


def test_no_frames_and_the_default_of_max_labels() -> None:
    assert decode(make_model(12, batch=2, frames=0)).labels.shape == (2, 0)


def test_no_utterances() -> None:
    assert decode(make_model(12, batch=0, frames=5), max_labels=3).labels.shape == (
        0,
        3,
    )


@pytest.mark.parametrize("transducer", EACH, ids=name)
@pytest.mark.parametrize("length", [-1, 8])
def test_length_out_of_range(transducer: Transducer, length: int) -> None:
    """Traced it is NaN for its utterance alone, concrete an error."""
    model = make_model(13, batch=3, frames=7, transducer=transducer)
    found = decode(model, [7, length, 5])
    assert np.isnan(found.log_probs[1])
    assert found.label_lengths[1] == found.joint_evaluations[1] == 0
    expected = [decode_one(model, 0, 7), decode_one(model, 2, 5)]
    assert_matches(GreedyDecoding(*(x[np.array([0, 2])] for x in found)), expected)
    with pytest.raises(ValueError, match=rf"logit_lengths\[1\]: .*\[0, 8\).*, got {length}"):
        greedy_decode(
            transducer,
            lambda frame, _: frame,
            lambda labels, state: ((), state),
            model.encoded,
            np.array([7, length, 5]),
            initial_state=(),
        )


def test_errors() -> None:
    model = make_model(14, batch=2, frames=5, transducer=multiblank(2))
    with pytest.raises(ValueError, match=r"logit_lengths: expected shape \(2,\), got \(3,\)"):
        decode(model, [1, 2, 3])
    with pytest.raises(TypeError, match="logit_lengths: expected an integer dtype, got float32"):
        decode(model, np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"encoded: .*\[B, T, H...\], or \[T, H\] .*, got \(2,\)"):
        decode(model, encoded=np.ones(2, np.float32))
    with pytest.raises(ValueError, match="max_symbols_per_frame: expected at least 1, got 0"):
        decode(model, max_symbols_per_frame=0)
    with pytest.raises(ValueError, match="max_labels: expected at least 0, got -1"):
        decode(model, max_labels=-1)


WRONG_TRANSDUCERS: dict[str, tuple[Any, type, str]] = {
    "blank": (
        multiblank(2, blank_id=6),
        ValueError,
        r"blank_id: expected a class in \[-6, 6\).*got 6",
    ),
    "layout": (
        multiblank(2, blank_id=0),
        ValueError,
        "blank_id: expected at least 1 classes below the blank",
    ),
    "token": (tdt(0, 1, blank_id=4), ValueError, r"blank_id: expected a class in \[-4, 4\).*got 4"),
    "durations": (tdt(*range(6)), ValueError, "logits: expected a last axis of V tokens and 6 dur"),
    "options": ({"big_blank_durations": (2,)}, TypeError, "transducer: expected a Transducer"),
    "class": (MultiblankRNNT, TypeError, "transducer: expected a Transducer"),
}


@pytest.mark.parametrize("what", WRONG_TRANSDUCERS)
def test_transducers_that_do_not_fit(what: str) -> None:
    transducer, error, message = WRONG_TRANSDUCERS[what]
    with pytest.raises(error, match=message):
        decode_concretely(transducer=transducer)


def test_a_big_blank_of_one_frame() -> None:
    with pytest.raises(
        ValueError, match=r"big_blank_durations\[0\]: expected .* at least 2, got 1"
    ):
        multiblank(1)


def test_a_transducer_without_a_blank_to_start_with() -> None:
    with pytest.raises(ValueError, match="start_label: expected a class of the first head, which"):
        decode_concretely(transducer=HAT())


def test_errors_in_the_functions() -> None:
    encoded = jnp.zeros((2, 5, 3))

    def run(logits: jax.Array, prediction: jax.Array) -> GreedyDecoding:
        return greedy_decode(
            multiblank(),
            lambda *_: logits,
            lambda _, state: (prediction, state),
            encoded,
            initial_state=(),
        )

    with pytest.raises(ValueError, match=r"joint: expected logits of shape \[2, V\], got \(3,\)"):
        run(jnp.zeros(3), jnp.zeros(2))
    with pytest.raises(TypeError, match="joint: expected logits of a floating dtype, got int32"):
        run(jnp.zeros((2, 3), jnp.int32), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"batch dimension 2, got an array of shape \(1, 4\)"):
        run(jnp.zeros((2, 3)), jnp.zeros((1, 4)))


@pytest.mark.parametrize("length", [None, 3])
def test_one_utterance_without_a_batch(length: int | None) -> None:
    model = make_model(14, batch=1, frames=5)
    options = {"joint": joint, "predict": partial(predict, jnp.asarray(model.predictions))}
    found = greedy_decode(
        model.transducer,
        encoded=model.encoded[0],
        logit_lengths=length,
        initial_state=jax.tree.map(lambda x: x[0], initial_state(1)),
        **options,
    )
    batch = decode(model, None if length is None else [length])
    assert_equal(found, GreedyDecoding(*(x[0] for x in batch)))
    assert found.labels.shape == (50,)
    assert found.tolist() == batch.tolist()[0] == decode_one(model, 0, length).labels


WRONG_OPTIONS: dict[str, tuple[Any, type, str]] = {
    "max_symbols_per_frame": (2.5, TypeError, "expected an integer, got 2.5"),
    "max_labels": (2.5, TypeError, "expected an integer, got 2.5"),
    "start_label": (2.5, TypeError, "expected an integer, got 2.5"),
    "window": (0, ValueError, "expected at least 1, got 0"),
    "lanes": (1.5, TypeError, "expected an integer, got 1.5"),
    "quorum": (1.5, ValueError, r"expected a share in \[0, 1\], got 1.5"),
    "max_duration": (0, ValueError, "expected at least 1, got 0"),
}


def decode_concretely(transducer: Any = RNNT, **options: Any) -> GreedyDecoding:
    return greedy_decode(
        transducer,
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        jnp.zeros((2, 5, 6), jnp.float32),
        **{"initial_state": (), **options},
    )


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_wrong_options(option: str) -> None:
    value, error, message = WRONG_OPTIONS[option]
    with pytest.raises(error, match=f"{option}: {message}"):
        decode_concretely(**{option: value})


def test_no_duration_is_short_enough() -> None:
    with pytest.raises(
        ValueError, match=r"max_duration: expected at least 3, the shortest .* got 2"
    ):
        decode_concretely(transducer=tdt(3, 4), max_duration=2)


TABLE = jnp.zeros((4, 6), jnp.float32)  # a row for each label, none for the blank
RECENT = jnp.zeros((2, 3), jnp.int32)


def of_recent(labels: jax.Array, recent: jax.Array) -> tuple[jax.Array, jax.Array]:
    recent = jnp.concatenate([recent[:, 1:], labels[:, None]], axis=1)
    return TABLE[recent].sum(axis=1), recent


WITHOUT_A_ROW: dict[str, Any] = {
    "index": lambda labels, state: (TABLE[labels], state),
    "take": lambda labels, state: (jnp.take(TABLE, labels, axis=0), state),
    "mapped": lambda labels, state: (jax.vmap(lambda v: TABLE[v])(labels), state),
    "compiled": jax.jit(lambda labels, state: (TABLE[labels], state)),
    "shifted": lambda labels, state: (TABLE[jnp.maximum(labels - 1, 0)], state),
    "context": of_recent,
}
WITH_A_ROW: dict[str, Any] = {
    "start": lambda labels, state: (TABLE[jnp.where(labels == 5, 0, labels)], state),
    "zeros": lambda labels, state: (TABLE.at[labels].get(mode="fill", fill_value=0), state),
    "one hot": lambda labels, state: (jax.nn.one_hot(labels, 4, dtype=TABLE.dtype) @ TABLE, state),
    "unknown": lambda labels, state: (TABLE[state[:, 0]], state),
}


@pytest.mark.parametrize("how", WITHOUT_A_ROW)
def test_a_prediction_network_without_a_row_for_the_start_label(how: str) -> None:
    def run(**options: Any) -> GreedyDecoding:
        functions = (lambda frame, prediction: frame + prediction), WITHOUT_A_ROW[how]
        encoded = jnp.zeros((2, 5, 6), jnp.float32)
        return greedy_decode(RNNT, *functions, encoded, initial_state=RECENT, **options)

    with pytest.raises(ValueError, match=r"predict: .* start label, class 5, .*\(4, 6\); name"):
        run()
    assert run(start_label=3).labels.shape == (2, 50)


@pytest.mark.parametrize("how", WITH_A_ROW)
def test_a_prediction_network_that_knows_what_to_do_with_the_start_label(how: str) -> None:
    found = greedy_decode(
        RNNT,
        lambda frame, prediction: frame + prediction,
        WITH_A_ROW[how],
        jnp.zeros((2, 5, 6), jnp.float32),
        initial_state=RECENT,
    )
    assert not jnp.isnan(found.log_probs).any()


@pytest.mark.parametrize("start_label", [-1, 6, 2**40])
def test_start_label_out_of_range(start_label: int) -> None:
    with pytest.raises(ValueError, match=rf"start_label: .*\[0, 6\) .*, got {start_label}"):
        decode_concretely(start_label=start_label)


def test_buffers_of_more_labels_than_can_be_counted() -> None:
    with pytest.raises(ValueError, match=r"max_labels: expected at most 2147483647, got 5\d+"):
        decode_concretely(max_symbols_per_frame=10**9)
    found = decode_concretely(max_symbols_per_frame=2**40, max_labels=3)
    assert found.label_lengths.tolist() == [3, 3]  # class 0 at frame 0, again and again


@pytest.mark.parametrize("durations", [(2**31 - 1,), (2, 2**31 - 1), (2**31 - 2, 2**30)])
@pytest.mark.parametrize("frames", [1, 2, 300])
def test_the_longest_blanks_end_the_utterance(durations: tuple[int, ...], frames: int) -> None:
    """A sum of frames that overflows would go back, and round and round."""
    classes = 2 + len(durations)
    for big in range(1, classes - 1):
        logits = np.zeros((1, frames, classes), np.float32)
        logits[:, 0, classes - 1] = 1  # the standard blank
        logits[:, 1:, big] = 1
        found = greedy_decode(
            multiblank(*durations),
            lambda frame, _: frame,
            lambda labels, state: ((), state),
            logits,
            initial_state=(),
        )
        duration = durations[classes - 2 - big]
        assert found.joint_evaluations.tolist() == [1 + -(-(frames - 1) // duration)]
        assert found.label_lengths.tolist() == [0]


@pytest.mark.parametrize("frames", [1, 2, 300])
def test_the_longest_durations_end_the_utterance(frames: int) -> None:
    longest = 2**31 - 1
    logits = np.zeros((1, frames, 2 + 2), np.float32)
    logits[:, :, 0] = 1  # a label
    logits[:, 0, 2] = 1  # of one frame
    logits[:, 1:, 3] = 1
    found = greedy_decode(
        TDT(durations=(1, longest)),
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        logits,
        initial_state=(),
    )
    count = min(frames, 2)
    assert found.joint_evaluations.tolist() == found.label_lengths.tolist() == [count]
    assert found.durations[0, :count].tolist() == [1, longest][:count]


@pytest.mark.parametrize("offset", [-1e6, 1e6])
def test_log_probs_of_any_offset(offset: float) -> None:
    found = decode_concretely()
    shifted = greedy_decode(
        multiblank(),
        lambda frame, _: frame + offset,
        lambda labels, state: ((), state),
        jnp.zeros((2, 5, 6), jnp.float32),
        initial_state=(),
    )
    np.testing.assert_array_equal(shifted.log_probs, found.log_probs)


def doubled(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, x], axis=1)


# What predict makes of a state `{"x": [2, 3]}`: its prediction, the next state.
CHANGES: dict[str, tuple[Any, str]] = {
    "structure": (
        lambda state: (state["x"], {**state, "y": state["x"]}),
        r"a state of initial_state's structure .*'x'.*, got .*'x'.*'y'",
    ),
    "shape": (
        lambda state: (state["x"][:, :1], {"x": doubled(state["x"])}),
        r"a state of the same structure, .*\[2, 6\].* at the first and .*\[2, 12\].* at the second",
    ),
    "prediction": (
        lambda state: (state["x"], {"x": doubled(state["x"])}),
        r"a prediction of the same structure, .*\[2, 3\] at the first and .*\[2, 6\] at the second",
    ),
    "batch": (
        lambda state: (jnp.zeros((2, 1)), {"x": doubled(state["x"]).T}),
        r"the batch dimension 2, got an array of shape \(6, 2\) in the state",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_predictions_and_states_that_change(what: str) -> None:
    change, message = CHANGES[what]
    with pytest.raises(ValueError, match=f"predict: expected .*{message}"):
        greedy_decode(
            multiblank(),
            lambda frame, _: frame,
            lambda labels, state: change(state),
            jnp.zeros((2, 5, 6), jnp.float32),
            initial_state={"x": jnp.zeros((2, 3), jnp.float32)},
        )
