"""Windows, quorums, lanes: what is found depends on none of them; and what they cost."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import Transducer
from plain_search import (
    HAT,
    assert_equal,
    assert_matches,
    decode,
    decode_one,
    make_model,
    multiblank,
    name,
    tdt,
)

KINDS = [multiblank(), multiblank(2, 4, 8), tdt(0, 1, 2, 3, 4), HAT()]
WAYS: list[tuple[Transducer, dict[str, Any]]] = [
    (transducer, way)
    for transducer in KINDS
    for way in [
        *({"window": window, "quorum": 0.0} for window in (1, 2, 3, 8)),
        *({"window": window, "quorum": 1.0} for window in (1, 2, 3, 8)),
        {"window": 1, "lanes": 1},
        {"window": 3, "lanes": 3, "quorum": 0.3},
    ]
    # Two of the kinds in every way, the others in every other: each is a program.
    if transducer in KINDS[1:3] or "lanes" in way or (way["window"] % 2 == way["quorum"])
]
LENGTHS = [20, 11, 0, 19, 1]


def way_name(way: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in way.items())


@pytest.mark.parametrize(
    ("transducer", "way"), WAYS, ids=lambda x: way_name(x) if isinstance(x, dict) else name(x)
)
def test_every_way_visits_the_same_nodes(transducer: Transducer, way: dict[str, Any]) -> None:
    for seed in range(3):
        model = make_model(seed, batch=5, frames=20, transducer=transducer)
        model.encoded[:, :, :2] += seed  # more labels, several at a frame
        expected = [
            decode_one(model, b, length, max_symbols_per_frame=3)
            for b, length in enumerate(LENGTHS)
        ]
        found = decode(model, LENGTHS, max_symbols_per_frame=3, **way)
        assert_matches(found, expected)
        rows, needed = np.asarray(found.joint_rows), np.asarray(found.joint_evaluations)
        assert np.all(rows >= needed)
        assert np.all(rows % way["window"] == 0)
        assert np.all(found.prediction_steps > found.label_lengths)


def test_rows_and_steps_of_one_utterance_are_those_it_needs() -> None:
    model = make_model(0, batch=1, frames=30, transducer=multiblank(2, 4))
    found = decode(model, window=1)
    np.testing.assert_array_equal(found.joint_rows, found.joint_evaluations)
    np.testing.assert_array_equal(found.prediction_steps, found.label_lengths + 1)


def test_a_window_takes_fewer_turns() -> None:
    model = make_model(0, batch=1, frames=40)
    model.encoded[..., model.blank] += 100.0  # nothing but blanks
    assert decode(model, window=1).joint_rows.tolist() == [40]
    assert decode(model, window=8).joint_rows.tolist() == [40]
    model.encoded[:, ::8, 0] += 200.0  # and a label a window
    assert decode(model, window=1, max_symbols_per_frame=1).joint_rows.tolist() == [40]
    # A label ends its window, the next begins behind it: frames 0, 1 to 8, 9 to 16 and so on.
    assert decode(model, window=8, max_symbols_per_frame=1).joint_rows.tolist() == [8 * 6]


def test_a_quorum_of_all_predicts_as_often_as_the_most_labels() -> None:
    model = make_model(1, batch=6, frames=30, transducer=multiblank(2, 4))
    lazy, eager = (decode(model, window=1, quorum=quorum) for quorum in (1.0, 0.0))
    most = int(np.max(lazy.label_lengths))
    assert lazy.prediction_steps.tolist() == [1 + most] * 6
    assert np.all(eager.prediction_steps > lazy.prediction_steps)
    assert np.all(eager.joint_rows < lazy.joint_rows)


def test_utterances_that_are_over_cost_nothing_with_lanes() -> None:
    model = make_model(2, batch=8, frames=40, transducer=multiblank(2, 4))
    lengths = [40, 40, 2, 2, 2, 2, 2, 2]
    expected = [decode_one(model, b, length) for b, length in enumerate(lengths)]
    whole, half = decode(model, lengths, lanes=8), decode(model, lengths, lanes=2)
    assert_matches(whole, expected)
    assert_matches(half, expected)
    assert 2 * np.sum(half.joint_rows) < np.sum(whole.joint_rows)
    assert 2 * np.sum(half.prediction_steps) < np.sum(whole.prediction_steps)


def test_lanes_under_vmap_and_shard_map() -> None:
    model = make_model(3, batch=8, frames=12, transducer=tdt(0, 1, 2))
    expected = decode(model)
    mapped = jax.vmap(lambda encoded: decode(model, encoded=encoded, lanes=2))(
        model.encoded.reshape(2, 4, 12, -1)
    )
    assert_equal(jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), mapped), expected)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    sharded = jax.shard_map(
        lambda encoded: decode(model, encoded=encoded, lanes=2),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    assert_equal(jax.jit(sharded)(jnp.asarray(model.encoded)), expected)


# ---- shorter durations than those of the training -------------------------------------------


@pytest.mark.parametrize("max_duration", [1, 2, 4, 8])
@pytest.mark.parametrize("transducer", [multiblank(2, 4, 8), tdt(0, 2, 4)], ids=name)
def test_longer_durations_are_masked(transducer: Transducer, max_duration: int) -> None:
    model = make_model(4, batch=4, frames=30, transducer=transducer)
    expected = [decode_one(model, b, max_duration=max_duration) for b in range(4)]
    found = decode(model, max_duration=max_duration)
    assert_matches(found, expected)
    unmasked = decode(model)
    if max_duration == max(arc.duration for arc in transducer.arcs) or max_duration == 8:
        assert_equal(found, unmasked)
    else:
        assert np.sum(found.joint_evaluations) > np.sum(unmasked.joint_evaluations)


def test_a_masked_class_that_is_far_more_probable() -> None:
    """The log-probability is that of the model, tiny; its logarithm must not overflow."""
    model = make_model(5, batch=1, frames=4, transducer=multiblank(2))
    model.encoded[..., model.blank - 1] = 1e4
    found = decode(model, max_duration=1, max_symbols_per_frame=1)
    assert_matches(found, [decode_one_without_exponents(model)])


def decode_one_without_exponents(model: Any) -> Any:
    """As `decode_one`, whose sum of exponentials overflows: relative to the largest."""
    shifted = model._replace(encoded=model.encoded.astype(np.float64) - 1e4)
    return decode_one(shifted, 0, max_duration=1, max_symbols_per_frame=1)
