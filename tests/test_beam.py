"""Beam search against the loss of every sequence of labels, and against one in plain Python."""

import functools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import BeamDecoding, Transducer, beam_decode
from jax_mbrnnt.decoding import turns
from plain_beam import Hypothesis, Labels, context_of, every_sequence, search
from plain_search import (
    HAT,
    LABELS,
    Model,
    decode,
    initial_state,
    joint,
    make_model,
    multiblank,
    name,
    predict,
    tdt,
)

SEVERAL = [multiblank(), multiblank(2, 4, blank_id=0, big_blank_ids=(-2, -1)), tdt(0, 1, 3), HAT()]
EACH = [multiblank(2, 3), tdt(0, 1, 2)]


def program(transducer: Transducer, **options: Any) -> Any:
    """Of `(encoded, lengths, table, traced options)`."""

    def run(encoded: Any, lengths: Any, table: Any, traced: dict[str, Any]) -> BeamDecoding:
        return beam_decode(
            transducer,
            joint,
            partial(predict, table),
            encoded,
            lengths,
            initial_state=initial_state(len(encoded)),
            **options,
            **traced,
        )

    return run


@functools.cache
def compiled(transducer: Transducer, **options: Any) -> Any:
    return jax.jit(program(transducer, **options))


def beam_search(
    model: Model, lengths: Any = None, encoded: Any = None, traced: Any = None, **options: Any
) -> BeamDecoding:
    encoded = model.encoded if encoded is None else encoded
    options = {"start_label": model.blank, **options}
    lengths = np.full(len(encoded), encoded.shape[1]) if lengths is None else np.asarray(lengths)
    run = compiled(model.transducer, **options)
    found: BeamDecoding = run(
        jnp.asarray(encoded), lengths, jnp.asarray(model.predictions), traced or {}
    )
    return found


def assert_same(found: BeamDecoding, b: int, expected: list[Hypothesis]) -> None:
    """All of utterance b, and nothing more."""
    count = len(expected)
    assert found.tolist()[b] == [list(hypothesis.labels) for hypothesis in expected]
    np.testing.assert_allclose(
        found.scores[b, :count], [h.score for h in expected], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        found.log_probs[b, :count], [h.piece.total for h in expected], rtol=1e-5, atol=1e-5
    )
    assert np.all(np.isneginf(found.scores[b, count:]))
    assert np.all(np.isneginf(found.log_probs[b, count:]))
    assert np.all(np.asarray(found.label_lengths[b, count:]) == 0)
    for k in range(found.scores.shape[1]):
        steps = expected[k].piece.steps if k < count else ()
        for i, row in enumerate((found.labels, found.frames, found.durations)):
            np.testing.assert_array_equal(row[b, k, : len(steps)], [step[i] for step in steps])
            assert np.all(np.asarray(row[b, k, len(steps) :]) == -1)
        of_labels = found.label_log_probs[b, k]
        np.testing.assert_allclose(of_labels[: len(steps)], [s[3] for s in steps], atol=1e-5)
        assert np.all(np.asarray(of_labels[len(steps) :]) == 0)


def assert_equal(one: BeamDecoding, other: BeamDecoding) -> None:
    """What is found, whatever it cost."""
    for field in BeamDecoding._fields[:-2]:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def log_likelihoods(model: Model, b: int, length: int, most: int) -> dict[Labels, float]:
    """Of every sequence, by the loss."""
    found = {}
    for count in range(most + 1):
        sequences = [y for y in every_sequence(most) if len(y) == count]
        contexts = np.array(
            [[context_of(model, y[:u]) for u in range(count + 1)] for y in sequences]
        )
        logits = model.encoded[b, :length, None] + model.predictions[contexts][:, None]
        logits = logits.astype(np.float64)
        labels = np.array(sequences, np.int32).reshape(len(sequences), count)
        losses = model.transducer(logits, labels)
        found |= dict(zip(sequences, -np.asarray(losses, np.float64), strict=True))
    return found


@pytest.mark.parametrize("transducer", [multiblank(), *EACH, tdt(2), HAT()], ids=name)
def test_the_plain_one_without_pruning_is_the_likelihood_of_every_sequence(
    transducer: Transducer,
) -> None:
    """Of at most two labels; a TDT of durations 2 alone reaches the end of no odd length."""
    model = make_model(0, batch=2, frames=4, transducer=transducer)
    for b, length in enumerate((4, 3)):
        expected = log_likelihoods(model, b, length, 2)
        found = search(model, b, length, beam=len(expected), max_labels=2)
        possible = [y for y in expected if expected[y] > -math.inf]
        assert [h.labels for h in found] == sorted(possible, key=lambda y: -expected[y])
        scores = [expected[h.labels] for h in found]
        np.testing.assert_allclose([h.score for h in found], scores, rtol=1e-9)


@pytest.mark.parametrize("transducer", EACH, ids=name)
def test_without_pruning_it_is_the_likelihood_of_every_sequence(transducer: Transducer) -> None:
    model = make_model(0, batch=2, frames=4, transducer=transducer)
    count = len(every_sequence(2))
    found = beam_search(
        model, [4, 3], beam=count, candidates=LABELS, threshold=math.inf, max_labels=2
    )
    np.testing.assert_array_equal(found.scores, found.log_probs)
    for b, length in enumerate((4, 3)):
        expected = log_likelihoods(model, b, length, 2)
        assert len(found.tolist()[b]) == count
        for labels, log_prob in zip(found.tolist()[b], found.log_probs[b], strict=True):
            assert log_prob == pytest.approx(expected[tuple(labels)], rel=2e-6, abs=2e-6)
        assert_same(found, b, search(model, b, length, beam=count, max_labels=2))


@pytest.mark.parametrize("transducer", SEVERAL, ids=name)
def test_pruned(transducer: Transducer) -> None:
    """By beam and threshold, utterances of all lengths; the batch is searched out of step."""
    lengths = [14, 6, 0, 13, 1]
    for seed, threshold in ((1, 6.0), (2, 3.0), (3, math.inf), (4, 0.3), (5, 0.0)):
        model = make_model(seed, batch=5, frames=14, transducer=transducer)
        found = beam_search(model, lengths, traced={"threshold": threshold}, beam=4)
        for b, length in enumerate(lengths):
            assert_same(found, b, search(model, b, length, beam=4, threshold=threshold))
        # The rarer its alignments, the sooner is one dropped.
        everything = beam_search(model, lengths, traced={"threshold": math.inf}, beam=4)
        assert np.all(found.joint_evaluations <= everything.joint_evaluations)
        assert threshold > 3 or np.sum(found.joint_evaluations) < np.sum(
            everything.joint_evaluations
        )


def test_wider_beams_find_more() -> None:
    model = make_model(4, batch=16, frames=8, transducer=tdt(1, 2))
    options: dict[str, Any] = {"traced": {"threshold": math.inf}}
    one, many = (beam_search(model, beam=beam, **options).scores[:, 0] for beam in (1, 16))
    assert np.all(one <= many + 1e-5)
    assert np.any(one < many - 0.1)


def test_a_beam_of_one_beside_greedy() -> None:
    """Where the model is sure, both find the same, at the same frames."""
    model = make_model(5, batch=16, frames=8, transducer=tdt(1, 2))
    model.encoded[:] *= 100
    greedy = decode(model)
    found = beam_search(model, beam=1, traced={"threshold": math.inf})
    sure = np.flatnonzero(found.log_probs[:, 0] > math.log(0.5))
    assert len(sure) >= 2
    for b in sure:
        count = int(greedy.label_lengths[b])
        assert found.label_lengths[b, 0] == count
        np.testing.assert_array_equal(found.labels[b, 0, :count], greedy.labels[b, :count])
        np.testing.assert_array_equal(found.frames[b, 0, :count], greedy.frames[b, :count])


def test_who_waits_for_whom_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One hypothesis or all at a time, predictions at once or when all want one."""
    model = make_model(6, batch=4, frames=9, transducer=EACH[1])
    lengths = np.array([9, 4, 0, 8])
    plain = turns.Turns.of
    found = [beam_search(model, lengths)]  # one or two at a time, half of the utterances
    for widths, quorum in (((1,), 0.0), ((3, 4), 1.0)):

        def of(*arguments: Any, widths: Any = widths, quorum: float = quorum) -> turns.Turns:
            return plain(*arguments)._replace(widths=widths, quorum=quorum)

        monkeypatch.setattr(turns.Turns, "of", of)
        run = program(model.transducer, start_label=model.blank)
        operands = jnp.asarray(model.encoded), lengths, jnp.asarray(model.predictions), {}
        found.append(jax.jit(run)(*operands))
    assert_equal(found[0], found[1])
    assert_equal(found[0], found[2])
    assert len({int(decoding.joint_rows[0]) for decoding in found}) == 3


def test_batch_is_the_same_as_one_by_one_and_vmap() -> None:
    model = make_model(7, batch=4, frames=9, transducer=EACH[1])
    lengths = np.array([9, 3, 0, 7])
    batch = beam_search(model, lengths)
    for b in range(4):
        one = beam_search(model, lengths[b : b + 1], model.encoded[b : b + 1])
        assert_equal(one, BeamDecoding(*(x[b : b + 1] for x in batch)))
    run = program(model.transducer, start_label=model.blank)
    mapped = jax.jit(jax.vmap(run, in_axes=(0, 0, None, None)))(
        model.encoded.reshape(2, 2, 9, -1), lengths.reshape(2, 2), model.predictions, {}
    )
    assert_equal(BeamDecoding(*(x.reshape(4, *x.shape[2:]) for x in mapped)), batch)


def test_sharded_batch() -> None:
    """The batch stays on its devices; under `jit` only questions of all of it are collective."""
    model = make_model(8, batch=4, frames=9, transducer=EACH[1])
    lengths = np.array([9, 3, 0, 7])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spec, replicated = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    sharding = jax.sharding.NamedSharding(mesh, spec)
    arguments = (
        jax.device_put(model.encoded, sharding),
        jax.device_put(lengths, sharding),
        jnp.asarray(model.predictions),
    )
    expected = beam_search(model, lengths)
    run = program(model.transducer, start_label=model.blank)
    in_one = jax.jit(run).lower(*arguments, {}).compile()
    assert_equal(in_one(*arguments, {}), expected)
    of_each = jax.jit(
        jax.shard_map(
            lambda *arguments: run(*arguments, {}),
            mesh=mesh,
            in_specs=(spec, spec, replicated),
            out_specs=spec,
        )
    )
    alone = of_each.lower(*arguments).compile()
    assert_equal(alone(*arguments), expected)
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in (in_one.as_text() or "")
    assert "all-" not in (alone.as_text() or "")
