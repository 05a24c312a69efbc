"""Beam search at its edges: scores that are no numbers, lengths, options, language models."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import (
    NEXT_LABEL,
    Arc,
    BeamDecoding,
    Emission,
    LanguageModel,
    Transducer,
    beam_decode,
    read_arpa,
)
from plain_beam import every_sequence, search
from plain_search import HAT, LABELS, make_model, multiblank, tdt
from test_beam import (
    EACH,
    assert_equal,
    assert_same,
    beam_search,
    log_likelihoods,
    program,
)

OTHERS = np.array([0, 2, 3])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("score", [2, -1])
def test_nan_and_inf_end_in_nan_for_their_utterance_alone(bad: float, score: int) -> None:
    """Among the tokens' scores or the durations'."""
    model = make_model(10, batch=4, frames=9, transducer=EACH[1])
    clean = beam_search(model)
    model.encoded[1, 3, score] = bad
    found = beam_search(model)
    assert np.all(np.isnan(found.log_probs[1]))
    assert np.all(np.isnan(found.scores[1]))
    assert np.all(np.asarray(found.labels[1]) == -1)
    assert np.all(np.asarray(found.label_lengths[1]) == 0)
    assert_equal(
        BeamDecoding(*(x[OTHERS] for x in found)), BeamDecoding(*(x[OTHERS] for x in clean))
    )
    assert np.all(np.isfinite(clean.scores[:, 0]))


def test_nan_where_nobody_looks() -> None:
    model = make_model(10, batch=4, frames=9, transducer=EACH[1])
    lengths = [9, 5, 9, 9]
    clean = beam_search(model, lengths)
    model.encoded[1, 5:] = np.nan
    assert_equal(beam_search(model, lengths), clean)


def test_a_row_without_exits_ends_nowhere() -> None:
    model = make_model(11, batch=4, frames=9, transducer=EACH[1])
    model.encoded[1, :, : LABELS + 1] = -np.inf
    found = beam_search(model)
    assert np.all(np.isneginf(found.scores[1]))
    assert found.tolist()[1] == []
    assert np.all(np.isfinite(found.scores[OTHERS, 0]))


@pytest.mark.parametrize("length", [-1, 10])
def test_length_out_of_range(length: int) -> None:
    """Traced it is NaN for its utterance alone, concrete an error."""
    model = make_model(10, batch=4, frames=9, transducer=EACH[1])
    lengths = np.array([9, length, 5, 9])
    found = beam_search(model, lengths)
    assert np.all(np.isnan(found.scores[1]))
    assert found.joint_evaluations[1] == 0
    expected = beam_search(model, [9, 9, 5, 9])
    assert_equal(
        BeamDecoding(*(x[OTHERS] for x in found)), BeamDecoding(*(x[OTHERS] for x in expected))
    )
    with pytest.raises(ValueError, match=rf"logit_lengths\[1\]: .*\[0, 10\).*, got {length}"):
        decode_concretely(encoded=jnp.asarray(model.encoded), logit_lengths=lengths)


def test_no_frames_no_labels_nobody() -> None:
    nothing = decode_concretely(encoded=jnp.zeros((2, 0, 6)), max_labels=3)
    assert nothing.labels.shape == (2, 4, 3)
    assert nothing.tolist() == [[[]], [[]]]
    np.testing.assert_array_equal(nothing.scores[:, 0], 0.0)
    np.testing.assert_array_equal(nothing.joint_evaluations, 0)
    silent = decode_concretely(max_labels=0)
    assert silent.tolist() == [[[]], [[]]]
    np.testing.assert_allclose(silent.scores[:, 0], 5 * math.log(1 / 6), rtol=1e-6)
    assert decode_concretely(encoded=jnp.zeros((0, 5, 6))).labels.shape == (0, 4, 5)


def test_one_utterance_without_a_batch() -> None:
    encoded = jax.random.normal(jax.random.key(0), (5, 6))
    alone = decode_concretely(encoded=encoded, logit_lengths=4)
    batch = decode_concretely(encoded=encoded[None], logit_lengths=[4])
    assert_equal(alone, BeamDecoding(*(x[0] for x in batch)))
    assert alone.tolist() == batch.tolist()[0]


def test_shapes_and_dtypes() -> None:
    found = decode_concretely(max_labels=3, beam=2)
    of_labels = {field: getattr(found, field) for field in ("labels", "frames", "durations")}
    assert {x.shape for x in of_labels.values()} == {(2, 2, 3)}
    assert {x.dtype for x in of_labels.values()} == {jnp.dtype("int32")}
    assert found.label_log_probs.shape == (2, 2, 3)
    assert found.label_lengths.shape == found.scores.shape == found.log_probs.shape == (2, 2)
    assert {x.dtype for x in (found.scores, found.log_probs, found.label_log_probs)} == {
        jnp.dtype("float32")
    }
    counts = found[-3:]
    assert {x.shape for x in counts} == {(2,)}
    assert {x.dtype for x in (*counts, found.label_lengths)} == {jnp.dtype("int32")}


def test_longest_duration() -> None:
    """The arcs beyond it are not there, and the others' probabilities what they were."""
    model = make_model(12, batch=2, frames=8, transducer=tdt(0, 3, 1))
    found = beam_search(model, max_duration=1)
    for b in range(2):
        assert_same(found, b, search(model, b, 8, beam=4, threshold=5.0, max_duration=1))


# ---- language models ----------------------------------------------------------------------------


class Table(LanguageModel):
    """A bigram of all labels: what `score` looks up could be anything."""

    def __init__(self, table: Any, ends: Any):
        self.table, self.ends = jnp.asarray(table, jnp.float32), jnp.asarray(ends, jnp.float32)

    def initial_state(self, batch: int) -> Any:
        return {"last": jnp.full((batch,), LABELS, jnp.int32)}

    def score(self, labels: jax.Array, state: Any) -> jax.Array:
        return self.table[state["last"][:, None], labels]

    def advance(self, labels: jax.Array, state: Any) -> Any:
        return {"last": labels}

    def end(self, state: Any) -> jax.Array:
        return self.ends[state["last"]]


def make_table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return -3 * rng.random((LABELS + 1, LABELS + 1)), -3 * rng.random(LABELS + 1)


def of_sequence(table: np.ndarray, labels: tuple[int, ...]) -> float:
    return float(sum(table[pair] for pair in zip((LABELS, *labels), labels, strict=False)))


@pytest.mark.parametrize("transducer", [multiblank(2, 3), HAT()])
def test_fusion_is_a_sum(transducer: Transducer) -> None:
    """Of the likelihoods of all sequences, a language model's, and a bonus for every label."""
    model = make_model(13, batch=2, frames=4, transducer=transducer)
    table, ends = make_table(13)
    sequences = every_sequence(2)
    options: dict[str, Any] = {"beam": len(sequences), "candidates": LABELS, "max_labels": 2}
    language = Table(table, ends)
    found = beam_search(
        model,
        [4, 3],
        traced={"language_model_weight": 0.7, "label_bonus": 0.4, "threshold": math.inf},
        language_model=language,
        **options,
    )
    for b, length in enumerate((4, 3)):
        likelihoods = log_likelihoods(model, b, length, 2)
        scores = {
            y: likelihoods[y]
            + 0.7 * (of_sequence(table, y) + ends[(LABELS, *y)[-1]])
            + 0.4 * len(y)
            for y in sequences
        }
        order = sorted(scores, key=lambda y: -scores[y])
        assert order != sorted(likelihoods, key=lambda y: -likelihoods[y])
        assert [tuple(y) for y in found.tolist()[b]] == order
        np.testing.assert_allclose(found.scores[b], [scores[y] for y in order], rtol=1e-5)
        np.testing.assert_allclose(found.log_probs[b], [likelihoods[y] for y in order], rtol=1e-5)


def test_pruned_with_a_language_model() -> None:
    """All labels are candidates, and the threshold is of the scores with everything in."""
    model = make_model(14, batch=3, frames=10, transducer=tdt(0, 1, 2))
    table, ends = make_table(14)
    options: dict[str, Any] = {"beam": 3, "candidates": LABELS}
    found = beam_search(
        model,
        language_model=Table(table, ends),
        traced={"language_model_weight": 0.5, "threshold": math.inf},
        **options,
    )
    for b in range(3):
        expected = search(
            model,
            b,
            10,
            beam=3,
            bonus=lambda labels: 0.5 * of_sequence(table, labels),
            end=lambda labels: 0.5 * ends[(LABELS, *labels)[-1]],
        )
        assert_same(found, b, expected)


def test_an_n_gram() -> None:
    """It forbids nothing, and prefers what it knows."""
    lines = ["\\data\\", "\\1-grams:", "-1 <s> 0", "-1 </s>", "-2 a", "-2 b", "-2 c", "-0.1 d"]
    lines += ["\\2-grams:", "-0.05 d d", "\\end\\"]
    model = make_model(15, batch=4, frames=8, transducer=multiblank(2))
    language = read_arpa(lines, ["a", "b", "c", "d", None, None])
    plain = beam_search(model)

    def run(language: Any, weight: Any) -> BeamDecoding:
        run = program(model.transducer, start_label=model.blank, language_model=language)
        lengths, table = np.full(4, 8), jnp.asarray(model.predictions)
        return run(jnp.asarray(model.encoded), lengths, table, {"language_model_weight": weight})

    found = jax.jit(run)(language, 1.0)
    count = [int(np.sum(np.asarray(x.labels[:, 0]) == 3)) for x in (plain, found)]
    others = [int(np.sum(np.isin(x.labels[:, 0], [0, 1, 2]))) for x in (plain, found)]
    assert count[1] >= count[0]
    assert others[1] < others[0]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_a_language_model_forbids(value: float) -> None:
    """-inf is never taken, whatever the weight; NaN is an utterance's end."""
    model = make_model(16, batch=4, frames=8, transducer=multiblank(2))
    assert 1 in np.asarray(beam_search(model).labels)
    table, ends = make_table(16)
    table[:, 1] = value
    found = beam_search(
        model, language_model=Table(table, ends), traced={"language_model_weight": 0.0}
    )
    assert 1 not in np.asarray(found.labels)
    if np.isnan(value):
        assert np.any(np.isnan(found.scores))
    else:
        assert np.all(np.isfinite(found.scores[:, 0]))


# ---- what is wrong --------------------------------------------------------------------------


def decode_concretely(
    transducer: Any = None, encoded: Any = None, predict: Any = None, **options: Any
) -> BeamDecoding:
    def run(encoded: Any) -> BeamDecoding:
        return beam_decode(
            multiblank() if transducer is None else transducer,
            lambda frame, _: frame,
            (lambda labels, state: ((), state)) if predict is None else predict,
            encoded,
            **{"initial_state": (), **options},
        )

    encoded = jnp.zeros((2, 5, 6), jnp.float32) if encoded is None else encoded
    found: BeamDecoding = jax.jit(run)(encoded)
    return found


class Odd(Transducer):
    arcs = (Arc(0, True), Arc(1, False))

    def emission(self, num_scores: int) -> Emission:
        return Emission((num_scores,), ((NEXT_LABEL,), (NEXT_LABEL,)))


WRONG: dict[str, tuple[dict[str, Any], type, str]] = {
    "transducer": ({"transducer": "RNN-T"}, TypeError, "transducer: expected a Transducer"),
    "arcs": ({"transducer": Odd(), "start_label": 0}, ValueError, r"reads\[1\]: expected label"),
    "encoded": (
        {"encoded": jnp.zeros(5)},
        ValueError,
        r"encoded: expected shape \[B, T, H...\], or \[T, H\] of one utterance, got \(5,\)",
    ),
    "lengths": ({"logit_lengths": [1]}, ValueError, r"logit_lengths: expected shape \(2,\)"),
    "beam": ({"beam": 0}, ValueError, "beam: expected at least 1, got 0"),
    "half a beam": ({"beam": 2.5}, TypeError, "beam: expected an integer, got 2.5"),
    "candidates": ({"candidates": 0}, ValueError, "candidates: expected at least 1, got 0"),
    "max_labels": ({"max_labels": -1}, ValueError, "max_labels: expected at least 0, got -1"),
    "max_duration": (
        {"transducer": tdt(0, 2), "max_duration": 1},
        ValueError,
        "max_duration: expected at least the duration of a blank",
    ),
    "threshold": ({"threshold": -1.0}, ValueError, "threshold: expected at least 0, got -1.0"),
    "nan": ({"threshold": math.nan}, ValueError, "threshold: expected at least 0, got nan"),
    "weight": (
        {"language_model_weight": "much"},
        TypeError,
        "language_model_weight: expected a number",
    ),
    "bonus": ({"label_bonus": jnp.zeros(2)}, TypeError, "label_bonus: expected a number"),
    "language": ({"language_model": "GPT"}, TypeError, "language_model: expected a LanguageModel"),
    "start row": (
        {"predict": lambda labels, state: (jnp.zeros((5, 2))[labels], state)},
        ValueError,
        r"predict: expected a row for the start label, class 5, .* shape \(5, 2\)",
    ),
    "start_label": ({"start_label": 6}, ValueError, r"start_label: expected a class in \[0, 6\)"),
    "start of a HAT": ({"transducer": HAT()}, ValueError, "start_label: expected a class of the"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors(what: str) -> None:
    options, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        decode_concretely(**options)
