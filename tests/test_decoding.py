"""Greedy decoding against a loop over one utterance at a time, written in plain Python."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import (
    NEXT_LABEL,
    Arc,
    Emission,
    GreedyDecoding,
    Transducer,
    greedy_decode,
)
from plain_search import (
    EACH,
    HAT,
    LABELS,
    assert_equal,
    assert_matches,
    decode,
    decode_arrays,
    decode_one,
    initial_state,
    joint,
    make_model,
    multiblank,
    name,
    predict,
    tdt,
)

MANY = [
    multiblank(),
    multiblank(2),
    multiblank(2, 4, 8),
    multiblank(5, 3),
    multiblank(2, 4, blank_id=0, big_blank_ids=(-2, -1)),  # big blanks appended
    multiblank(3, 2, blank_id=1, big_blank_ids=(4, 0)),
    tdt(0, 1, 2, 3, 4),
    tdt(1, 2),
    tdt(0, 2),  # a blank of no frames goes on by one, which is no duration of the model
    tdt(4, 0, 1),
    tdt(3),
    tdt(0, 1, 2, 4, blank_id=0),
    HAT(),
]


@pytest.mark.parametrize("transducer", MANY, ids=name)
@pytest.mark.parametrize("seed", range(4))
def test_decodes_each_utterance_as_if_it_were_alone(transducer: Transducer, seed: int) -> None:
    model = make_model(seed, batch=5, frames=24, transducer=transducer)
    lengths = [24, 11, 0, 23, 1]
    expected = [decode_one(model, b, length) for b, length in enumerate(lengths)]
    assert len({e.joint_evaluations for e in expected}) > 2  # The batch is out of step.
    assert_matches(decode(model, lengths), expected)


def test_dtypes_and_shapes() -> None:
    found = decode(make_model(0, batch=3, frames=7), max_labels=5)
    assert found.labels.shape == found.frames.shape == found.durations.shape == (3, 5)
    assert found.label_lengths.shape == found.log_probs.shape == (3,)
    assert found.labels.dtype == found.frames.dtype == found.durations.dtype == jnp.int32
    assert found.label_lengths.dtype == found.joint_evaluations.dtype == jnp.int32
    assert found.joint_rows.shape == found.prediction_steps.shape == (3,)
    assert found.joint_rows.dtype == found.prediction_steps.dtype == jnp.int32
    assert found.label_log_probs.shape == (3, 5)
    assert found.log_probs.dtype == found.label_log_probs.dtype == jnp.float32


def test_default_max_labels_is_the_most_an_utterance_can_emit() -> None:
    model = make_model(0, batch=2, frames=6)
    model.encoded[..., 2] = 50.0  # Always the same label.
    found = decode(model, max_symbols_per_frame=3)
    assert found.labels.shape == (2, 18)
    np.testing.assert_array_equal(found.label_lengths, 18)
    np.testing.assert_array_equal(found.labels, 2)
    np.testing.assert_array_equal(found.frames, [np.arange(18) // 3] * 2)


def test_each_utterance_jumps_by_its_own_blank() -> None:
    model = make_model(0, batch=4, frames=16, transducer=multiblank(2, 4, 8))
    for b, chosen in enumerate([model.blank, *(model.blank - 1 - i for i in range(3))]):
        model.encoded[b, :, chosen] = 50.0
    found = decode(model)
    np.testing.assert_array_equal(found.joint_evaluations, [16, 8, 4, 2])
    np.testing.assert_array_equal(found.label_lengths, 0)


def test_a_big_blank_beyond_the_last_frame_ends_the_utterance() -> None:
    model = make_model(0, batch=1, frames=9, transducer=multiblank(8))
    model.encoded[..., model.blank - 1] = 50.0
    np.testing.assert_array_equal(decode(model).joint_evaluations, [2])
    np.testing.assert_array_equal(decode(model, [3]).joint_evaluations, [1])


@pytest.mark.parametrize("durations", [(0, 1, 2, 4), (4, 2, 0, 1)])
def test_each_label_takes_its_own_duration(durations: tuple[int, ...]) -> None:
    model = make_model(0, batch=4, frames=16, transducer=tdt(*durations))
    model.encoded[..., 1] = 50.0
    for b in range(4):
        model.encoded[b, :, LABELS + 1 + b] = 50.0  # Always the same duration.
    found = decode(model, max_symbols_per_frame=3)
    for b, d in enumerate(durations):
        count = 16 // d if d else 16 * 3
        frames = d * np.arange(count) if d else np.arange(count) // 3
        np.testing.assert_array_equal(found.labels[b, :count], 1)
        np.testing.assert_array_equal(found.frames[b, :count], frames)
        np.testing.assert_array_equal(found.durations[b, :count], d)
        assert found.label_lengths[b] == found.joint_evaluations[b] == count


def test_a_jump_restarts_the_count_of_symbols() -> None:
    """By a label as by a blank; and only symbols of no frames are counted."""
    model = make_model(0, batch=1, frames=8, transducer=tdt(0, 1))
    alone = model._replace(predictions=np.zeros_like(model.predictions))
    alone.encoded[..., :LABELS] += 50.0  # Labels alone
    alone.encoded[:, 0::2, LABELS + 1] = 50.0  # of no frames
    alone.encoded[:, 1::2, LABELS + 2] = 50.0  # or of one.
    found = decode(alone, max_symbols_per_frame=2)
    assert_matches(found, [decode_one(alone, 0, max_symbols_per_frame=2)])
    assert found.frames[0, :12].tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
    assert found.durations[0, :12].tolist() == [0, 0, 1] * 4


def test_classes_that_no_arc_reads_together_emit_nothing() -> None:
    """Where labels and blanks have durations of their own, a row may ask for the other kind's."""

    class Apart(Transducer):
        arcs = (Arc(0, True), Arc(2, False))

        def emission(self, num_scores: int) -> Emission:
            return Emission((num_scores - 2, 2), ((NEXT_LABEL, 0), (LABELS, 1)))

    logits = np.full((1, 5, LABELS + 1 + 2), -9.0, np.float32)
    for frame, (token, other) in enumerate([(0, 0), (0, 1), (LABELS, 0), (LABELS, 1), (0, 0)]):
        logits[0, frame, [token, LABELS + 1 + other]] = 0.0
    found = greedy_decode(
        Apart(),
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        logits,
        initial_state=(),
        max_symbols_per_frame=1,
    )
    # Frame 0 emits and is left at the limit; 1 and 2 are left by nothing, 3 by a blank of two.
    assert found.label_lengths.tolist() == [1]
    assert found.frames[0, 0] == 0
    assert found.joint_evaluations.tolist() == [4]


@pytest.mark.parametrize("transducer", [multiblank(2, 4), tdt(0, 2)], ids=name)
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_symbols_per_frame_are_limited(transducer: Transducer, limit: int) -> None:
    model = make_model(1, batch=4, frames=15, transducer=transducer)
    model.encoded[..., :LABELS] += 1.5  # Many labels, some frames with more than the limit.
    unlimited = [decode_one(model, b, max_symbols_per_frame=1000, max_labels=50) for b in range(4)]
    expected = [decode_one(model, b, max_symbols_per_frame=limit) for b in range(4)]
    assert unlimited != expected
    found = decode(model, max_symbols_per_frame=limit)
    assert_matches(found, expected)
    for b in range(4):
        assert np.bincount(found.frames[b, : found.label_lengths[b]]).max() == limit


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_an_utterance_ends_with_its_last_label_when_the_buffer_is_full(
    transducer: Transducer,
) -> None:
    model = make_model(2, batch=6, frames=20, transducer=transducer)
    expected = [decode_one(model, b, max_labels=3) for b in range(6)]
    assert expected != [decode_one(model, b) for b in range(6)]
    assert_matches(decode(model, max_labels=3), expected)


def test_no_room_for_labels() -> None:
    found = decode(make_model(2, batch=2, frames=5), max_labels=0)
    assert found.labels.shape == (2, 0)
    np.testing.assert_array_equal(found.joint_evaluations, 0)


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_start_label(transducer: Transducer) -> None:
    model = make_model(3, batch=4, frames=12, transducer=transducer)
    expected = [decode_one(model, b, start_label=1) for b in range(4)]
    assert expected != [decode_one(model, b) for b in range(4)]
    assert_matches(decode(model, start_label=1), expected)


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_predict_sees_no_blank_but_the_start_label(transducer: Transducer) -> None:
    """An embedding need hold no more than the labels and the start label."""
    model = make_model(4, batch=2, frames=5, transducer=transducer)
    seen: list[np.ndarray] = []

    def spy(labels: jax.Array, state: Any) -> tuple[Any, Any]:
        if not isinstance(labels, jax.core.Tracer):
            seen.append(np.asarray(labels))
        return predict(jnp.asarray(model.predictions), labels, state)

    with jax.disable_jit():
        found = greedy_decode(
            transducer,
            joint,
            spy,
            jnp.asarray(model.encoded),
            initial_state=initial_state(2),
            start_label=0,
        )
    assert_equal(found, decode(model, start_label=0))
    assert len(seen) == max(found.prediction_steps)
    assert np.max(seen) < LABELS


@pytest.mark.parametrize(("blank_id", "durations"), [(0, ()), (3, ()), (2, (2, 5)), (-3, (3,))])
def test_blank_may_be_any_class(blank_id: int, durations: tuple[int, ...]) -> None:
    """Reordering the classes reorders the labels and changes nothing else."""
    model = make_model(5, batch=4, frames=18, transducer=multiblank(*durations))
    classes = model.blank + 1
    blank = blank_id % classes
    blanks = [blank - 1 - i for i in reversed(range(len(durations)))] + [blank]
    order = np.empty(classes, int)  # The new class of each class.
    order[LABELS:] = blanks
    order[:LABELS] = [c for c in range(classes) if c not in blanks]
    back = jnp.asarray(np.argsort(order), jnp.int32)
    plain = decode(model)
    moved = greedy_decode(
        multiblank(*durations, blank_id=blank_id),
        lambda frame, prediction: joint(frame, prediction)[:, back],
        lambda labels, state: predict(jnp.asarray(model.predictions), back[labels], state),
        jnp.asarray(model.encoded),
        initial_state=initial_state(4),
    )
    np.testing.assert_array_equal(
        moved.labels, np.where(plain.labels < 0, -1, order[np.asarray(plain.labels)])
    )
    np.testing.assert_array_equal(moved.frames, plain.frames)
    np.testing.assert_array_equal(moved.joint_evaluations, plain.joint_evaluations)
    np.testing.assert_allclose(moved.log_probs, plain.log_probs, rtol=1e-6)


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_batch_is_the_same_as_one_by_one_and_vmap(transducer: Transducer) -> None:
    model = make_model(6, batch=6, frames=17, transducer=transducer)
    lengths = np.array([17, 3, 9, 0, 16, 12])
    batch = decode(model, lengths)
    for b in range(6):
        one = decode(model, lengths[b : b + 1], model.encoded[b : b + 1])
        assert_equal(one, GreedyDecoding(*(x[b : b + 1] for x in batch)))
    mapped = jax.vmap(lambda lengths, encoded: decode(model, lengths, encoded))(
        lengths.reshape(3, 2), model.encoded.reshape(3, 2, 17, -1)
    )
    assert_equal(GreedyDecoding(*(x.reshape(6, *x.shape[2:]) for x in mapped)), batch)


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_jit_over_parameters_and_lengths(transducer: Transducer) -> None:
    model = make_model(7, batch=4, frames=13, transducer=transducer)
    traces: list[int] = []

    @jax.jit
    def jitted(encoded: jax.Array, table: jax.Array, lengths: jax.Array) -> GreedyDecoding:
        traces.append(1)
        return greedy_decode(
            transducer,
            joint,
            partial(predict, table),
            encoded,
            lengths,
            initial_state=initial_state(4),
        )

    for lengths in [[13, 2, 8, 5], [1, 13, 13, 0]]:
        found = jitted(model.encoded, model.predictions, jnp.array(lengths))
        assert_equal(found, decode(model, lengths))
    assert len(traces) == 1


def test_frames_of_any_rank_and_no_state() -> None:
    model = make_model(8, batch=3, frames=10)
    found = greedy_decode(
        multiblank(),
        lambda frame, prediction: jnp.sum(frame, axis=1) + prediction,
        lambda labels, state: (jnp.asarray(model.predictions)[labels], state),
        jnp.stack([0.25 * model.encoded, 0.75 * model.encoded], axis=2),
        initial_state=(),
    )
    flat = greedy_decode(
        multiblank(),
        lambda frame, prediction: frame + prediction,
        lambda labels, state: (jnp.asarray(model.predictions)[labels], state),
        jnp.asarray(model.encoded),
        initial_state=None,
    )
    np.testing.assert_array_equal(found.labels, flat.labels)
    np.testing.assert_array_equal(found.joint_evaluations, flat.joint_evaluations)


@pytest.mark.parametrize("transducer", EACH, ids=name)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_logits_are_summed_in_float32(dtype: Any, transducer: Transducer) -> None:
    model = make_model(9, batch=3, frames=40, transducer=transducer)
    rounded = model._replace(
        encoded=np.asarray(jnp.asarray(model.encoded, dtype), np.float32),
        predictions=np.zeros_like(model.predictions),
    )
    found = greedy_decode(
        transducer,
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        jnp.asarray(model.encoded, dtype),
        initial_state=(),
    )
    assert_matches(found, [decode_one(rounded, b) for b in range(3)])


def test_log_prob_of_a_row_of_log_probabilities_is_the_largest() -> None:
    logits = np.log(np.array([[[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]], np.float32))
    found = greedy_decode(
        multiblank(),
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        logits,
        initial_state=(),
        max_symbols_per_frame=1,
    )
    np.testing.assert_array_equal(found.labels, [[1, -1]])
    np.testing.assert_allclose(found.log_probs, [np.log(0.5 * 0.7)], rtol=1e-6)
    np.testing.assert_array_equal(found.joint_evaluations, [2])


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_masked_classes_are_not_taken(transducer: Transducer) -> None:
    model = make_model(11, batch=3, frames=12, transducer=transducer)
    model.encoded[..., 1:3] = -np.inf
    found = decode(model)
    assert not np.isin(found.labels, [1, 2]).any()
    assert_matches(found, [decode_one(model, b) for b in range(3)])


@pytest.mark.parametrize("transducer", [multiblank(), *EACH], ids=name)
def test_sharded_batch(transducer: Transducer) -> None:
    """The batch stays on its devices; only the question whether anybody is left is collective."""
    model = make_model(15, batch=16, frames=12, transducer=transducer)
    lengths = np.random.default_rng(15).integers(0, 13, 16)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spec, replicated = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    sharding = jax.sharding.NamedSharding(mesh, spec)
    run = partial(decode_arrays, transducer=model.transducer)
    arguments = (
        jax.device_put(model.encoded, sharding),
        jax.device_put(lengths, sharding),
        jnp.asarray(model.predictions),
    )
    expected = decode(model, lengths)
    compiled = jax.jit(run).lower(*arguments).compile()
    assert_equal(compiled(*arguments), expected)
    assert "all-gather" not in (compiled.as_text() or "")

    mapped = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(spec, spec, replicated), out_specs=spec)
    )
    assert_equal(mapped(*arguments), expected)
    assert "all-" not in (mapped.lower(*arguments).compile().as_text() or "")
    full = jax.shard_map(
        lambda encoded, table: run(encoded, None, table),
        mesh=mesh,
        in_specs=(spec, replicated),
        out_specs=spec,
    )
    assert_equal(full(arguments[0], arguments[2]), decode(model))


def test_explicitly_sharded_batch_is_a_type_error() -> None:
    """What to do about it is in docs/devices.md."""
    kind = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=kind, devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    plain = {"encoded": np.zeros((2, 5, 6), np.float32), "initial_state": np.zeros((2, 6))}
    for operand, array in plain.items():
        operands = plain | {operand: jax.device_put(array, split)}
        with pytest.raises(TypeError, match=rf"{operand}: .* got float\d+\[2@data,.*auto_axes"):
            greedy_decode(multiblank(), jnp.add, lambda labels, state: (state, state), **operands)


def test_a_state_may_settle_at_the_first_call() -> None:
    """Zeros in float32 for a network in bfloat16, say."""

    def predict(labels: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        prediction = jnp.sum(state, axis=1, keepdims=True).astype(jnp.float32)
        return prediction, state.astype(jnp.bfloat16)

    found = greedy_decode(
        multiblank(),
        lambda frame, prediction: frame + prediction,
        predict,
        jnp.zeros((2, 5, 6), jnp.float32),
        initial_state=jnp.zeros((2, 3), jnp.float32),
    )
    assert found.label_lengths.tolist() == [50, 50]
