"""Greedy decoding against a loop over one utterance at a time, written here in plain Python."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt.decoding import GreedyDecoding, greedy_decode

LABELS = 4
CONTEXTS = 13


class Model(NamedTuple):
    """A transducer of two tables: its logits are sums of two float32, the same ones everywhere."""

    encoded: np.ndarray  # [B, T, V]
    predictions: np.ndarray  # [CONTEXTS, V]
    durations: tuple[int, ...]

    @property
    def blank(self) -> int:
        return LABELS + len(self.durations)


def make_model(seed: int, batch: int, frames: int, durations: tuple[int, ...] = ()) -> Model:
    rng = np.random.default_rng(seed)
    classes = LABELS + len(durations) + 1
    return Model(
        encoded=rng.normal(size=(batch, frames, classes)).astype(np.float32),
        predictions=rng.normal(size=(CONTEXTS, classes)).astype(np.float32),
        durations=durations,
    )


def joint(frame: jax.Array, prediction: dict[str, jax.Array]) -> jax.Array:
    return frame + prediction["logits"]


def predict(table: jax.Array, labels: jax.Array, state: dict[str, jax.Array]) -> tuple[Any, Any]:
    """Depends on every label so far; its state has two leaves, of different ranks."""
    hidden = (3 * state["hidden"] + state["cell"][:, 0] + labels + 1) % CONTEXTS
    cell = jnp.stack([hidden + labels, state["cell"][:, 0]], axis=1) % CONTEXTS
    return {"logits": table[hidden]}, {"hidden": hidden, "cell": cell}


def initial_state(batch: int) -> dict[str, jax.Array]:
    return {
        "hidden": jnp.zeros((batch,), jnp.int32),
        "cell": jnp.ones((batch, 2), jnp.int32),
    }


def decode(
    model: Model, logit_lengths: Any = None, encoded: Any = None, **options: Any
) -> GreedyDecoding:
    encoded = jnp.asarray(model.encoded if encoded is None else encoded)
    lengths = None if logit_lengths is None else jnp.asarray(logit_lengths)
    table = jnp.asarray(model.predictions)
    found: GreedyDecoding = decode_arrays(
        encoded, lengths, table, durations=model.durations, **options
    )
    return found


@partial(
    jax.jit,
    static_argnames=("durations", "blank_id", "max_symbols_per_frame", "max_labels"),
)
def decode_arrays(
    encoded: jax.Array,
    logit_lengths: jax.Array | None,
    table: jax.Array,
    *,
    durations: tuple[int, ...],
    **options: Any,
) -> GreedyDecoding:
    return greedy_decode(
        joint,
        partial(predict, table),
        encoded,
        logit_lengths,
        initial_state=initial_state(len(encoded)),
        big_blank_durations=durations,
        **options,
    )


class Expected(NamedTuple):
    labels: list[int]
    frames: list[int]
    log_prob: float
    joint_evaluations: int


def decode_one(
    model: Model,
    utterance: int,
    length: int | None = None,
    max_symbols_per_frame: int = 10,
    max_labels: int | None = None,
    start_label: int | None = None,
) -> Expected:
    """The same search, one utterance and one arc at a time."""

    def advance(label: int, hidden: int, cell: list[int]) -> tuple[int, list[int]]:
        hidden = (3 * hidden + cell[0] + label + 1) % CONTEXTS
        return hidden, [(hidden + label) % CONTEXTS, cell[0]]

    encoded = model.encoded[utterance]
    length = len(encoded) if length is None else length
    duration_of = {model.blank: 1}
    duration_of |= {model.blank - 1 - i: d for i, d in enumerate(model.durations)}
    hidden, cell = advance(model.blank if start_label is None else start_label, 0, [1, 1])
    labels: list[int] = []
    frames: list[int] = []
    log_prob, evaluations, frame, symbols = 0.0, 0, 0, 0
    while frame < length and (max_labels is None or len(labels) < max_labels):
        logits = (encoded[frame] + model.predictions[hidden]).astype(np.float64)
        evaluations += 1
        best = int(np.argmax(logits))
        log_prob += logits[best] - np.log(np.sum(np.exp(logits)))
        if best in duration_of:
            frame += duration_of[best]
            symbols = 0
            continue
        labels.append(best)
        frames.append(frame)
        hidden, cell = advance(best, hidden, cell)
        symbols += 1
        if symbols == max_symbols_per_frame:
            frame += 1
            symbols = 0
    return Expected(labels, frames, log_prob, evaluations)


def assert_matches(found: GreedyDecoding, expected: list[Expected]) -> None:
    lengths = [len(e.labels) for e in expected]
    np.testing.assert_array_equal(found.label_lengths, lengths)
    for b, e in enumerate(expected):
        np.testing.assert_array_equal(found.labels[b, : lengths[b]], e.labels)
        np.testing.assert_array_equal(found.frames[b, : lengths[b]], e.frames)
        np.testing.assert_array_equal(found.labels[b, lengths[b] :], -1)
        np.testing.assert_array_equal(found.frames[b, lengths[b] :], -1)
    np.testing.assert_array_equal(found.joint_evaluations, [e.joint_evaluations for e in expected])
    np.testing.assert_allclose(found.log_probs, [e.log_prob for e in expected], rtol=1e-5)


def assert_equal(one: GreedyDecoding, other: GreedyDecoding) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("durations", [(), (2,), (2, 4, 8), (5, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_decodes_each_utterance_as_if_it_were_alone(durations: tuple[int, ...], seed: int) -> None:
    model = make_model(seed, batch=5, frames=24, durations=durations)
    lengths = [24, 11, 0, 23, 1]
    expected = [decode_one(model, b, length) for b, length in enumerate(lengths)]
    assert len({e.joint_evaluations for e in expected}) > 2  # The batch is out of step.
    assert_matches(decode(model, lengths), expected)


def test_dtypes_and_shapes() -> None:
    found = decode(make_model(0, batch=3, frames=7), max_labels=5)
    assert found.labels.shape == found.frames.shape == (3, 5)
    assert found.label_lengths.shape == found.log_probs.shape == (3,)
    assert found.labels.dtype == found.frames.dtype == jnp.int32
    assert found.label_lengths.dtype == found.joint_evaluations.dtype == jnp.int32
    assert found.log_probs.dtype == jnp.float32


def test_default_max_labels_is_the_most_an_utterance_can_emit() -> None:
    model = make_model(0, batch=2, frames=6)
    model.encoded[..., 2] = 50.0  # Always the same label.
    found = decode(model, max_symbols_per_frame=3)
    assert found.labels.shape == (2, 18)
    np.testing.assert_array_equal(found.label_lengths, 18)
    np.testing.assert_array_equal(found.labels, 2)
    np.testing.assert_array_equal(found.frames, [np.arange(18) // 3] * 2)


def test_each_utterance_jumps_by_its_own_blank() -> None:
    model = make_model(0, batch=4, frames=16, durations=(2, 4, 8))
    for b, chosen in enumerate([model.blank, *(model.blank - 1 - i for i in range(3))]):
        model.encoded[b, :, chosen] = 50.0
    found = decode(model)
    np.testing.assert_array_equal(found.joint_evaluations, [16, 8, 4, 2])
    np.testing.assert_array_equal(found.label_lengths, 0)


def test_a_big_blank_beyond_the_last_frame_ends_the_utterance() -> None:
    model = make_model(0, batch=1, frames=9, durations=(8,))
    model.encoded[..., model.blank - 1] = 50.0
    np.testing.assert_array_equal(decode(model).joint_evaluations, [2])
    np.testing.assert_array_equal(decode(model, [3]).joint_evaluations, [1])


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_symbols_per_frame_are_limited(limit: int) -> None:
    model = make_model(1, batch=4, frames=15, durations=(2, 4))
    model.encoded[..., :LABELS] += 1.5  # Many labels, some frames with more than the limit.
    unlimited = [decode_one(model, b, max_symbols_per_frame=1000, max_labels=50) for b in range(4)]
    expected = [decode_one(model, b, max_symbols_per_frame=limit) for b in range(4)]
    assert unlimited != expected
    found = decode(model, max_symbols_per_frame=limit)
    assert_matches(found, expected)
    for b in range(4):
        assert np.bincount(found.frames[b, : found.label_lengths[b]]).max() == limit


def test_an_utterance_ends_with_its_last_label_when_the_buffer_is_full() -> None:
    model = make_model(2, batch=6, frames=20, durations=(2, 4))
    expected = [decode_one(model, b, max_labels=3) for b in range(6)]
    assert expected != [decode_one(model, b) for b in range(6)]
    assert_matches(decode(model, max_labels=3), expected)


def test_no_room_for_labels() -> None:
    found = decode(make_model(2, batch=2, frames=5), max_labels=0)
    assert found.labels.shape == (2, 0)
    np.testing.assert_array_equal(found.joint_evaluations, 0)


def test_start_label() -> None:
    model = make_model(3, batch=4, frames=12, durations=(3,))
    expected = [decode_one(model, b, start_label=1) for b in range(4)]
    assert expected != [decode_one(model, b) for b in range(4)]
    assert_matches(decode(model, start_label=1), expected)


def test_predict_sees_no_blank_but_the_start_label() -> None:
    """An embedding need hold no more than the labels and the start label."""
    model = make_model(4, batch=4, frames=12, durations=(2, 4))
    seen: list[np.ndarray] = []

    def spy(labels: jax.Array, state: Any) -> tuple[Any, Any]:
        if not isinstance(labels, jax.core.Tracer):
            seen.append(np.asarray(labels))
        return predict(jnp.asarray(model.predictions), labels, state)

    with jax.disable_jit():
        found = greedy_decode(
            joint,
            spy,
            jnp.asarray(model.encoded),
            initial_state=initial_state(4),
            big_blank_durations=model.durations,
            start_label=0,
        )
    assert_equal(found, decode(model, start_label=0))
    assert len(seen) == 1 + max(found.joint_evaluations)
    assert np.max(seen) < LABELS


@pytest.mark.parametrize(("blank_id", "durations"), [(0, ()), (3, ()), (2, (2, 5)), (-3, (3,))])
def test_blank_may_be_any_class(blank_id: int, durations: tuple[int, ...]) -> None:
    """Reordering the classes reorders the labels and changes nothing else."""
    model = make_model(5, batch=4, frames=18, durations=durations)
    classes = model.blank + 1
    blank = blank_id % classes
    blanks = [blank - 1 - i for i in reversed(range(len(durations)))] + [blank]
    order = np.empty(classes, int)  # The new class of each class.
    order[LABELS:] = blanks
    order[:LABELS] = [c for c in range(classes) if c not in blanks]
    back = jnp.asarray(np.argsort(order), jnp.int32)
    plain = decode(model)
    moved = greedy_decode(
        lambda frame, prediction: joint(frame, prediction)[:, back],
        lambda labels, state: predict(jnp.asarray(model.predictions), back[labels], state),
        jnp.asarray(model.encoded),
        initial_state=initial_state(4),
        blank_id=blank_id,
        big_blank_durations=durations,
    )
    np.testing.assert_array_equal(
        moved.labels, np.where(plain.labels < 0, -1, order[np.asarray(plain.labels)])
    )
    np.testing.assert_array_equal(moved.frames, plain.frames)
    np.testing.assert_array_equal(moved.joint_evaluations, plain.joint_evaluations)
    np.testing.assert_allclose(moved.log_probs, plain.log_probs, rtol=1e-6)


def test_batch_is_the_same_as_one_by_one_and_vmap() -> None:
    model = make_model(6, batch=6, frames=17, durations=(2, 4))
    lengths = np.array([17, 3, 9, 0, 16, 12])
    batch = decode(model, lengths)
    for b in range(6):
        one = decode(model, lengths[b : b + 1], model.encoded[b : b + 1])
        assert_equal(one, GreedyDecoding(*(x[b : b + 1] for x in batch)))
    mapped = jax.vmap(lambda lengths, encoded: decode(model, lengths, encoded))(
        lengths.reshape(3, 2), model.encoded.reshape(3, 2, 17, -1)
    )
    assert_equal(GreedyDecoding(*(x.reshape(6, *x.shape[2:]) for x in mapped)), batch)


def test_jit_over_parameters_and_lengths() -> None:
    model = make_model(7, batch=4, frames=13, durations=(2, 4))
    traces: list[int] = []

    @jax.jit
    def jitted(encoded: jax.Array, table: jax.Array, lengths: jax.Array) -> GreedyDecoding:
        traces.append(1)
        return greedy_decode(
            joint,
            partial(predict, table),
            encoded,
            lengths,
            initial_state=initial_state(4),
            big_blank_durations=(2, 4),
        )

    for lengths in [[13, 2, 8, 5], [1, 13, 13, 0]]:
        found = jitted(model.encoded, model.predictions, jnp.array(lengths))
        assert_equal(found, decode(model, lengths))
    assert len(traces) == 1


def test_frames_of_any_rank_and_no_state() -> None:
    model = make_model(8, batch=3, frames=10)
    found = greedy_decode(
        lambda frame, prediction: jnp.sum(frame, axis=1) + prediction,
        lambda labels, state: (jnp.asarray(model.predictions)[labels], state),
        jnp.stack([0.25 * model.encoded, 0.75 * model.encoded], axis=2),
        initial_state=(),
    )
    flat = greedy_decode(
        lambda frame, prediction: frame + prediction,
        lambda labels, state: (jnp.asarray(model.predictions)[labels], state),
        jnp.asarray(model.encoded),
        initial_state=None,
    )
    np.testing.assert_array_equal(found.labels, flat.labels)
    np.testing.assert_array_equal(found.joint_evaluations, flat.joint_evaluations)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_logits_are_summed_in_float32(dtype: Any) -> None:
    model = make_model(9, batch=3, frames=40, durations=(2,))
    rounded = model._replace(
        encoded=np.asarray(jnp.asarray(model.encoded, dtype), np.float32),
        predictions=np.zeros_like(model.predictions),
    )
    found = greedy_decode(
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        jnp.asarray(model.encoded, dtype),
        initial_state=(),
        big_blank_durations=(2,),
    )
    assert_matches(found, [decode_one(rounded, b) for b in range(3)])


def test_log_prob_of_a_row_of_log_probabilities_is_the_largest() -> None:
    logits = np.log(np.array([[[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]], np.float32))
    found = greedy_decode(
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        logits,
        initial_state=(),
        max_symbols_per_frame=1,
    )
    np.testing.assert_array_equal(found.labels, [[1, -1]])
    np.testing.assert_allclose(found.log_probs, [np.log(0.5 * 0.7)], rtol=1e-6)
    np.testing.assert_array_equal(found.joint_evaluations, [2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_end_in_nan_for_their_utterance_alone(bad: float) -> None:
    model = make_model(10, batch=4, frames=12, durations=(2, 4))
    clean = decode(model)
    model.encoded[1, 0, 2] = bad
    found = decode(model)
    assert np.isnan(found.log_probs[1])
    assert found.joint_evaluations[1] <= 12 * 10
    others = np.array([0, 2, 3])
    assert_equal(
        GreedyDecoding(*(x[others] for x in found)),
        GreedyDecoding(*(x[others] for x in clean)),
    )


def test_all_nan_ends() -> None:
    model = make_model(10, batch=2, frames=12, durations=(2, 4))
    model.encoded[:] = np.nan
    found = decode(model, max_symbols_per_frame=2)
    assert np.all(np.isnan(found.log_probs))
    assert np.all(np.asarray(found.joint_evaluations) <= 24)


def test_masked_classes_are_not_taken() -> None:
    model = make_model(11, batch=3, frames=12, durations=(2, 4))
    model.encoded[..., 1:3] = -np.inf
    found = decode(model)
    assert not np.isin(found.labels, [1, 2]).any()
    assert_matches(found, [decode_one(model, b) for b in range(3)])


def test_a_row_without_exits_has_probability_zero() -> None:
    model = make_model(11, batch=2, frames=4)
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


@pytest.mark.parametrize("length", [-1, 8])
def test_length_out_of_range(length: int) -> None:
    """Traced it is NaN for its utterance alone, concrete an error."""
    model = make_model(13, batch=3, frames=7, durations=(2,))
    found = decode(model, [7, length, 5])
    assert np.isnan(found.log_probs[1])
    assert found.label_lengths[1] == found.joint_evaluations[1] == 0
    expected = [decode_one(model, 0, 7), decode_one(model, 2, 5)]
    assert_matches(GreedyDecoding(*(x[np.array([0, 2])] for x in found)), expected)
    with pytest.raises(ValueError, match=rf"logit_lengths\[1\]: .*\[0, 8\).*, got {length}"):
        greedy_decode(
            lambda frame, _: frame,
            lambda labels, state: ((), state),
            model.encoded,
            np.array([7, length, 5]),
            initial_state=(),
        )


def test_sharded_batch() -> None:
    """The batch stays on its devices; only the question whether anybody is left is collective."""
    model = make_model(15, batch=16, frames=12, durations=(2, 4))
    lengths = np.random.default_rng(15).integers(0, 13, 16)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spec, replicated = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    sharding = jax.sharding.NamedSharding(mesh, spec)
    run = partial(decode_arrays, durations=model.durations)
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


def test_errors() -> None:
    model = make_model(14, batch=2, frames=5, durations=(2,))
    with pytest.raises(ValueError, match=r"logit_lengths: expected shape \(2,\), got \(3,\)"):
        decode(model, [1, 2, 3])
    with pytest.raises(TypeError, match="logit_lengths: expected an integer dtype, got float32"):
        decode(model, np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"encoded: expected shape \[B, T, H...\], got \(2,\)"):
        decode(model, encoded=np.ones(2, np.float32))
    with pytest.raises(ValueError, match="max_symbols_per_frame: expected at least 1, got 0"):
        decode(model, max_symbols_per_frame=0)
    with pytest.raises(ValueError, match="max_labels: expected at least 0, got -1"):
        decode(model, max_labels=-1)
    with pytest.raises(ValueError, match=r"blank_id: expected a class in \[-6, 6\).*got 6"):
        decode(model, blank_id=6)
    with pytest.raises(ValueError, match="blank_id: expected at least 1 classes below the blank"):
        decode(model, blank_id=0)
    with pytest.raises(
        ValueError, match=r"big_blank_durations\[0\]: expected .* at least 2, got 1"
    ):
        decode(model._replace(durations=(1,)))


def test_errors_in_the_functions() -> None:
    encoded = jnp.zeros((2, 5, 3))

    def run(logits: jax.Array, prediction: jax.Array) -> GreedyDecoding:
        return greedy_decode(
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


def test_one_utterance_without_a_batch() -> None:
    with pytest.raises(
        ValueError, match=r"encoded: expected shape \[B, T, H...\], got \(5, 6\); a "
    ):
        decode(make_model(14, batch=2, frames=5), encoded=np.ones((5, 6), np.float32))


WRONG_OPTIONS: dict[str, tuple[Any, type, str]] = {
    "max_symbols_per_frame": (2.5, TypeError, "expected an integer, got 2.5"),
    "max_labels": (2.5, TypeError, "expected an integer, got 2.5"),
    "start_label": (2.5, TypeError, "expected an integer, got 2.5"),
    "blank_id": (2.5, TypeError, "expected an integer, got 2.5"),
}


def decode_concretely(**options: Any) -> GreedyDecoding:
    return greedy_decode(
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        jnp.zeros((2, 5, 6), jnp.float32),
        **{"initial_state": (), **options},
    )


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_options_of_another_type(name: str) -> None:
    value, error, message = WRONG_OPTIONS[name]
    with pytest.raises(error, match=f"{name}: {message}"):
        decode_concretely(**{name: value})


@pytest.mark.parametrize("start_label", [-1, 6, 2**40])
def test_start_label_out_of_range(start_label: int) -> None:
    with pytest.raises(ValueError, match=rf"start_label: .*\[0, 6\) .*, got {start_label}"):
        decode_concretely(start_label=start_label)


def test_buffers_of_more_labels_than_can_be_counted() -> None:
    with pytest.raises(ValueError, match=r"max_labels: expected at most 2147483647, got 5\d+"):
        decode_concretely(max_symbols_per_frame=10**9)
    found = decode_concretely(max_symbols_per_frame=2**40, max_labels=3, blank_id=5)
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
            lambda frame, _: frame,
            lambda labels, state: ((), state),
            logits,
            initial_state=(),
            big_blank_durations=durations,
        )
        duration = durations[classes - 2 - big]
        assert found.joint_evaluations.tolist() == [1 + -(-(frames - 1) // duration)]
        assert found.label_lengths.tolist() == [0]


@pytest.mark.parametrize("offset", [-1e6, 1e6])
def test_log_probs_of_any_offset(offset: float) -> None:
    found = decode_concretely()
    shifted = greedy_decode(
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
            lambda frame, _: frame,
            lambda labels, state: change(state),
            jnp.zeros((2, 5, 6), jnp.float32),
            initial_state={"x": jnp.zeros((2, 3), jnp.float32)},
        )


def test_a_state_may_settle_at_the_first_call() -> None:
    """Zeros in float32 for a network in bfloat16, say."""

    def predict(labels: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        prediction = jnp.sum(state, axis=1, keepdims=True).astype(jnp.float32)
        return prediction, state.astype(jnp.bfloat16)

    found = greedy_decode(
        lambda frame, prediction: frame + prediction,
        predict,
        jnp.zeros((2, 5, 6), jnp.float32),
        initial_state=jnp.zeros((2, 3), jnp.float32),
    )
    assert found.label_lengths.tolist() == [50, 50]
