"""Greedy search by chunks: what is found is what the whole has, however it is cut."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import GreedyDecoding, GreedyStream, StreamCarry, Transducer
from plain_search import (
    EACH,
    HAT,
    Model,
    assert_matches,
    decode_one,
    initial_state,
    joint,
    make_model,
    multiblank,
    name,
    predict,
    tdt,
)

CHUNK = 7
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (multiblank(), {}),
    (multiblank(2, 4, 20), {"window": 3, "quorum": 0.0}),
    (tdt(0, 1, 2, 3, 4), {"lanes": 2}),
    (tdt(0, 9), {}),
    (HAT(), {"start_label": 0}),
]
Step = Callable[..., tuple[GreedyDecoding, StreamCarry]]


def stream_of(transducer: Transducer, table: Any, batch: int, **options: Any) -> GreedyStream:
    functions = joint, functools.partial(predict, jnp.asarray(table))
    return GreedyStream(transducer, *functions, initial_state=initial_state(batch), **options)


@functools.cache
def compiled(transducer: Transducer, batch: int, **options: Any) -> Step:
    """`(table, carry, chunk, lengths)`, one program for every model of a transducer."""

    @functools.partial(jax.jit, donate_argnums=1)
    def step(table: jax.Array, *rest: Any) -> tuple[GreedyDecoding, StreamCarry]:
        return stream_of(transducer, table, batch, **options).step(*rest)

    return step


class Listener:
    """A batch of streams, and all that was heard of each since it began."""

    def __init__(self, model: Model, batch: int, **options: Any) -> None:
        self.model = model
        self.table = jnp.asarray(model.predictions)
        self.stream = stream_of(model.transducer, self.table, batch, **options)
        self.run = compiled(model.transducer, batch, **options)
        self.carry = self.stream.init(batch)
        self.heard: list[list[Any]] = [[] for _ in range(batch)]
        self.last: Any = None

    def step(self, pieces: Iterable[np.ndarray], size: int = CHUNK) -> None:
        """Each slot's next frames `[C, V]`; padding is NaN."""
        pieces = list(pieces)
        chunk = np.full((len(pieces), size, self.model.encoded.shape[-1]), np.nan, np.float32)
        for row, piece in zip(chunk, pieces, strict=True):
            row[: len(piece)] = piece
        lengths = jnp.array([len(piece) for piece in pieces], jnp.int32)
        self.take(chunk, lengths)

    def take(self, chunk: Any, lengths: Any) -> None:
        found, self.carry = self.run(self.table, self.carry, jnp.asarray(chunk), lengths)
        self.last = jax.device_get(found)
        for b, heard in enumerate(self.heard):
            heard.append(jax.tree.map(lambda x, b=b: x[b], self.last))

    def reset(self, mask: Any) -> None:
        self.carry = self.stream.reset(self.carry, np.asarray(mask))
        for b in np.flatnonzero(mask):
            self.heard[b] = []

    def whole(self, slot: int) -> GreedyDecoding:
        """What the chunks of a slot come to, `[1, ...]`."""
        heard = self.heard[slot]

        def joined(field: str) -> np.ndarray:
            return np.concatenate([getattr(x, field)[: x.label_lengths] for x in heard])[None]

        joined_fields = ("labels", "frames", "durations", "label_log_probs")
        return heard[-1]._replace(
            **{field: joined(field) for field in joined_fields},
            label_lengths=np.array([sum(x.label_lengths for x in heard)]),
            log_probs=heard[-1].log_probs[None],
            joint_evaluations=heard[-1].joint_evaluations[None],
        )


@pytest.mark.parametrize(("transducer", "options"), KINDS, ids=lambda x: name(x))
def test_any_chunks_are_the_whole(transducer: Transducer, options: dict[str, Any]) -> None:
    """Each slot by chunks of its own lengths, some of none."""
    start = {"start_label": 0} if isinstance(transducer, HAT) else {}
    for seed in range(3):
        model = make_model(seed, batch=3, frames=41, transducer=transducer)
        rng = np.random.default_rng(seed)
        listener = Listener(model, 3, max_symbols_per_frame=4, **options)
        at = np.zeros(3, int)
        while (at < 41).any():
            to = np.minimum(at + rng.integers(0, CHUNK + 1, 3), 41)
            listener.step(
                model.encoded[b, i:j] for b, (i, j) in enumerate(zip(at, to, strict=True))
            )
            at = to
        for b in range(3):
            expected = decode_one(model, b, max_symbols_per_frame=4, **start)
            assert_matches(listener.whole(b), [expected])
        np.testing.assert_array_equal(listener.carry.frames, 41)


@pytest.mark.parametrize("transducer", [multiblank(2, 4, 8), tdt(0, 1, 2, 3, 4)], ids=name)
def test_a_long_stream(transducer: Transducer) -> None:
    model = make_model(7, batch=1, frames=10_000, transducer=transducer)
    listener = Listener(model, 1)
    rng, at = np.random.default_rng(7), 0
    while at < 10_000:
        size = int(rng.choice([5, 64]))  # a program each
        to = min(at + int(rng.integers(0, size + 1)), 10_000)
        listener.step([model.encoded[0, at:to]], size)
        at = to
    expected = decode_one(model, 0)
    assert len(expected.labels) > 1000
    assert_matches(listener.whole(0), [expected])


def test_a_jump_over_whole_chunks() -> None:
    model = make_model(0, batch=1, frames=40, transducer=multiblank(20))
    model.encoded[..., model.blank - 1] += 50.0
    listener = Listener(model, 1)
    evaluations, ahead = [], []
    for i in range(0, 40, 4):
        listener.step(model.encoded[:, i : i + 4])
        evaluations.append(int(listener.last.joint_evaluations[0]))
        ahead.append(int(listener.carry.ahead[0]))
    assert evaluations == [1] * 5 + [2] * 5
    assert ahead == [16, 12, 8, 4, 0] * 2


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_slots_are_reset_by_a_mask(transducer: Transducer) -> None:
    """Utterances begin and end at different times; one that begins knows nothing of the last."""
    model = make_model(1, batch=9, frames=30, transducer=transducer)
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 31, 9)
    listener, waiting, done = Listener(model, 3), list(range(9)), 0
    slots, at = [waiting.pop(0) for _ in range(3)], [0, 0, 0]
    while done < 9:
        to = [at[i] if b is None else min(at[i] + CHUNK, lengths[b]) for i, b in enumerate(slots)]
        listener.step(
            model.encoded[0, :0] if b is None else model.encoded[b, at[i] : to[i]]
            for i, b in enumerate(slots)
        )
        at, over = to, [b is not None and to[i] == lengths[b] for i, b in enumerate(slots)]
        for i in np.flatnonzero(over):
            assert_matches(listener.whole(i), [decode_one(model, slots[i], lengths[slots[i]])])
            slots[i], at[i] = waiting.pop(0) if waiting else None, 0
            done += 1
        listener.reset(over)


@pytest.mark.parametrize("transducer", EACH, ids=name)
@pytest.mark.parametrize("fault", [np.nan, np.inf, -1, CHUNK + 1])
def test_a_fault_stays_in_its_slot(fault: float, transducer: Transducer) -> None:
    """A logit that is no number, or a length out of range: until the slot is reset."""
    model = make_model(2, batch=3, frames=4 * CHUNK, transducer=transducer)
    chunks = np.split(model.encoded, 4, axis=1)
    listener = Listener(model, 3)
    listener.step(chunks[0])
    bad, lengths = chunks[1].copy(), np.full(3, CHUNK)
    if isinstance(fault, float):
        bad[1] = fault
    else:
        lengths[1] = fault
    listener.take(bad, jnp.asarray(lengths))
    if not isinstance(fault, float):
        assert listener.last.label_lengths[1] == 0
    listener.step(chunks[2])
    assert np.isnan(listener.last.log_probs[1])
    listener.step(chunks[3])
    for b in (0, 2):
        assert_matches(listener.whole(b), [decode_one(model, b)])
    listener.reset([False, True, False])
    for chunk in chunks:
        listener.step(chunk)
    assert_matches(listener.whole(1), [decode_one(model, 1)])


def test_no_room_for_the_labels_of_a_chunk() -> None:
    model = make_model(3, batch=2, frames=CHUNK)
    model.encoded[0, :, 0] += 50.0  # labels alone
    model.encoded[1, :, model.blank] += 50.0  # none
    listener = Listener(model, 2, max_labels=3)
    listener.step(model.encoded)
    assert listener.last.labels.shape == (2, 3)
    assert listener.last.label_lengths.tolist() == [3, 0]
    assert np.isnan(listener.last.log_probs).tolist() == [True, False]


def test_slots_without_new_frames_stay_as_they_are() -> None:
    model = make_model(4, batch=2, frames=CHUNK, transducer=tdt(0, 9))
    listener = Listener(model, 2)
    listener.step(model.encoded)
    before = jax.device_get(listener.carry)
    listener.step(model.encoded[:, :0])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(listener.carry), before)
    assert listener.last.label_lengths.tolist() == [0, 0]


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_vmap_and_scan(transducer: Transducer) -> None:
    """Chunks in a `lax.scan`, batches of streams in a `vmap`."""
    model = make_model(5, batch=4, frames=4 * CHUNK, transducer=transducer)
    stream = stream_of(transducer, model.predictions, 2)

    @jax.jit
    @jax.vmap
    def run(encoded: jax.Array) -> GreedyDecoding:
        def step(carry: StreamCarry, chunk: jax.Array) -> tuple[StreamCarry, GreedyDecoding]:
            return stream.step(carry, chunk)[::-1]

        return jax.lax.scan(step, stream.init(2), jnp.stack(jnp.split(encoded, 4, axis=1)))[1]

    found = jax.device_get(run(jnp.asarray(model.encoded.reshape(2, 2, 4 * CHUNK, -1))))
    for b in range(4):
        expected = decode_one(model, b)
        of = jax.tree.map(lambda x, b=b: x[b // 2, :, b % 2], found)
        rows = [x[:n] for x, n in zip(of.labels, of.label_lengths, strict=True)]
        np.testing.assert_array_equal(np.concatenate(rows), expected.labels)
        np.testing.assert_allclose(of.log_probs[-1], expected.log_prob, rtol=1e-5)


def test_sharded_streams() -> None:
    """The slots stay on their devices; that nobody is left is all that they tell each other."""
    model = make_model(6, batch=8, frames=2 * CHUNK, transducer=multiblank(2, 4))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    split = functools.partial(jax.device_put, device=jax.sharding.NamedSharding(mesh, spec))
    stream = stream_of(model.transducer, model.predictions, 8)
    first, second = np.split(model.encoded, 2, axis=1)
    lengths = jnp.full(8, CHUNK, jnp.int32)
    operands = split((stream.init(8), jnp.asarray(first), lengths))
    step = jax.jit(stream.step).lower(*operands).compile()
    assert "all-gather" not in (step.as_text() or "")
    _, carry = step(*operands)

    def local(carry: StreamCarry, chunk: jax.Array) -> Any:
        return stream_of(model.transducer, model.predictions, 2).step(carry, chunk)

    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))
    last, _ = mapped(carry, split(jnp.asarray(second)))
    expected = [decode_one(model, b) for b in range(8)]
    np.testing.assert_allclose(last.log_probs, [e.log_prob for e in expected], rtol=1e-5)
    np.testing.assert_array_equal(last.joint_evaluations, [e.joint_evaluations for e in expected])


def test_errors() -> None:
    model = make_model(8, batch=2, frames=CHUNK)
    stream = stream_of(model.transducer, model.predictions, 2)
    carry = stream.init(2)
    with pytest.raises(ValueError, match=r"encoded_chunk: expected shape \[B, C, H...\], got \(7"):
        stream.step(carry, model.encoded[0])
    with pytest.raises(ValueError, match=r"carry: expected one of 1 streams .* got .*\(2,\)"):
        stream.step(carry, model.encoded[:1])
    with pytest.raises(ValueError, match=r"chunk_lengths\[1\]: .*\[0, 8\).*, got 9"):
        stream.step(carry, model.encoded, np.array([1, 9]))
    with pytest.raises(ValueError, match=r"mask: expected booleans of shape \(2,\), got int"):
        stream.reset(carry, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"initial_state: expected .*batch dimension 3, got .*\(2"):
        stream.init(3)
    with pytest.raises(TypeError, match="transducer: expected a Transducer, as"):
        GreedyStream(MODEL_NAME, joint, predict, initial_state=()).step(carry, model.encoded)


MODEL_NAME: Any = "RNN-T"
