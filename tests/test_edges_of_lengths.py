"""Padding, utterances of nothing, labels and lengths out of range: is the contract kept by both?"""

import jax
import numpy as np
import pytest
from jax.experimental import checkify

from cases import (
    Case,
    Implementation,
    compiled,
    criterion,
    random_case,
    valid_cells,
)
from edges import (
    HEALTHY,
    INT32_MAX,
    INT32_MIN,
    OPTIONS,
    SCORES,
    SICK,
    T,
    U,
    V,
    a_case,
    assert_as_enumerated,
    assert_impossible,
    assert_poisoned,
    evaluate,
    options_of,
    posteriors_of,
)
from jax_mbrnnt import (
    MultiblankRNNT,
    rnnt_loss,
)


@pytest.fixture(params=SCORES)
def case(request: pytest.FixtureRequest) -> Case:
    return a_case(request.param)


# Padding.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_is_never_looked_at(
    case: Case, value: float, implementation: Implementation
) -> None:
    padded = ~valid_cells(case)
    littered = case._replace(logits=case.logits.copy(), labels=case.labels.copy())
    littered.logits[padded] = value
    littered.labels[np.arange(U) >= case.label_lengths[:, None]] = -100
    losses, gradients = evaluate(case, implementation)
    littered_losses, littered_gradients = evaluate(littered, implementation)
    np.testing.assert_array_equal(littered_losses, losses)
    np.testing.assert_array_equal(littered_gradients, gradients)
    np.testing.assert_array_equal(
        posteriors_of(littered, implementation), posteriors_of(case, implementation)
    )


def test_padded_cells_have_gradients_of_exactly_zero(
    case: Case, implementation: Implementation
) -> None:
    _, gradients = evaluate(case, implementation)
    posteriors = posteriors_of(case, implementation)
    padded = ~valid_cells(case)
    assert np.all(gradients[padded] == 0)
    assert np.all(posteriors[padded] == 0)
    assert np.all(gradients[~padded].any(-1))


def test_no_length_has_to_reach_the_padded_size(case: Case, implementation: Implementation) -> None:
    shorter = case._replace(
        logit_lengths=np.array([2, 1, 3], np.int32), label_lengths=np.array([1, 0, 1], np.int32)
    )
    assert_as_enumerated(shorter, implementation)


def test_arcs_that_are_not_there_have_no_posterior(
    case: Case, implementation: Implementation
) -> None:
    arcs = criterion(**options_of(case)).arcs
    posteriors = posteriors_of(case, implementation)
    for b, (frames, said) in enumerate(zip(case.logit_lengths, case.label_lengths, strict=True)):
        for a, arc in enumerate(arcs):
            of_arc = posteriors[b, ..., a]
            if arc.emits:
                assert np.all(of_arc[:, said:] == 0)
                assert np.all(of_arc[frames - arc.duration :] == 0)
            else:
                assert np.all(of_arc[frames - arc.duration :, :said] == 0)
                assert np.all(of_arc[frames - arc.duration + 1 :] == 0)
                assert of_arc[frames - arc.duration, said] > 0


# Empty utterances.


def test_utterance_of_nothing_costs_nothing(case: Case, implementation: Implementation) -> None:
    case.logit_lengths[SICK] = case.label_lengths[SICK] = 0
    losses, gradients = evaluate(case, implementation)
    assert losses[SICK] == 0
    assert np.all(gradients[SICK] == 0)
    assert np.all(posteriors_of(case, implementation)[SICK] == 0)
    assert np.all(losses[HEALTHY] > 0)


def test_utterance_of_nothing_but_padding_is_never_looked_at(
    case: Case, implementation: Implementation
) -> None:
    case.logit_lengths[SICK] = case.label_lengths[SICK] = 0
    case.logits[SICK] = np.nan
    case.labels[SICK] = 99
    losses, gradients = evaluate(case, implementation)
    assert losses[SICK] == 0
    assert np.all(gradients[SICK] == 0)


def test_labels_without_frames_are_impossible(case: Case, implementation: Implementation) -> None:
    case.logit_lengths[SICK] = 0
    assert_impossible(case, implementation)


def test_labels_out_of_range_without_frames_are_impossible(
    case: Case, implementation: Implementation
) -> None:
    """No arc reads them, since there is no node: as impossible as any labels."""
    case.logit_lengths[SICK] = 0
    case.labels[SICK, 0] = V + 1
    assert_impossible(case, implementation)


@pytest.mark.parametrize(("U", "expected"), [(0, 0.0), (2, np.inf)])
def test_no_frames_at_all(U: int, expected: float, implementation: Implementation) -> None:
    case = random_case(32, (2,), 0, U, V, ragged=False)
    losses, gradients = evaluate(case, implementation)
    np.testing.assert_array_equal(losses, [expected] * 2)
    assert gradients.shape == (2, 0, U + 1, V)
    assert posteriors_of(case, implementation).shape == (2, 0, U + 1, 3)


# Labels and lengths out of range. Traced: poison. Concrete: see test_errors.py.


@pytest.mark.parametrize("label", [-1, V, 1000, INT32_MIN, INT32_MAX])
def test_label_out_of_range(case: Case, label: int, implementation: Implementation) -> None:
    sick = case._replace(labels=case.labels.copy())
    sick.labels[SICK, 0] = label
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])


@pytest.mark.parametrize("length", [-1, T + 1, INT32_MIN, INT32_MAX])
def test_logit_length_out_of_range(case: Case, length: int, implementation: Implementation) -> None:
    sick = case._replace(logit_lengths=case.logit_lengths.copy())
    sick.logit_lengths[SICK] = length
    assert_poisoned(sick, case, implementation, np.ones((T, U + 1), bool))


@pytest.mark.parametrize("length", [-1, U + 1, INT32_MIN, INT32_MAX])
def test_label_length_out_of_range(case: Case, length: int, implementation: Implementation) -> None:
    sick = case._replace(label_lengths=case.label_lengths.copy())
    sick.label_lengths[SICK] = length
    assert_poisoned(sick, case, implementation, np.ones((T, U + 1), bool))


def test_64_bit_labels_and_lengths_do_not_wrap(case: Case, implementation: Implementation) -> None:
    wide = Case(case.logits, *(operand.astype(np.int64) for operand in case[1:]))
    np.testing.assert_array_equal(
        evaluate(wide, implementation)[1], evaluate(case, implementation)[1]
    )
    for operand, region in zip(
        ["labels", "logit_lengths", "label_lengths"],
        [valid_cells(case)[SICK], np.ones((T, U + 1), bool), np.ones((T, U + 1), bool)],
        strict=True,
    ):
        wrapped = getattr(wide, operand).copy()
        wrapped[SICK] += 2**32
        assert_poisoned(wide._replace(**{operand: wrapped}), case, implementation, region)


def test_unsigned_labels_out_of_range(case: Case, implementation: Implementation) -> None:
    sick = case._replace(labels=case.labels.astype(np.uint32))
    sick.labels[SICK, 0] = 2**32 - 1
    losses = compiled("score_forward", **OPTIONS, implementation=implementation)(*sick)
    np.testing.assert_array_equal(np.isnan(losses), ~HEALTHY)


# Classes.


@pytest.mark.parametrize("which", [0, -1])
def test_label_that_is_a_blank(case: Case, which: int, implementation: Implementation) -> None:
    """The standard blank or a big one: as good as a label out of range, in padding as well."""
    label = criterion(**options_of(case)).emission(case.logits.shape[-1]).blanks[which]
    sick = case._replace(labels=case.labels.copy())
    sick.labels[SICK, 0] = label
    assert_poisoned(sick, case, implementation, valid_cells(case)[SICK])
    behind = case._replace(labels=case.labels.copy())
    behind.labels[np.arange(U) >= case.label_lengths[:, None]] = label
    for a, b in zip(evaluate(behind, implementation), evaluate(case, implementation), strict=True):
        np.testing.assert_array_equal(a, b)


def test_vocabulary_with_the_blank_first(implementation: Implementation) -> None:
    """With the default `blank_id` its last label is a blank: no finite loss for days."""
    logits, labels = np.zeros((1, 4, 3, 6)), np.array([[1, 5]])
    with pytest.raises(ValueError, match=r"labels\[0, 1\]: expected none of .* \(5,\), got 5"):
        rnnt_loss(logits, labels, implementation=implementation)
    assert np.isnan(compiled("score_forward", implementation=implementation)(logits, labels))
    assert np.all(np.isfinite(rnnt_loss(logits, labels, blank_id=0, implementation=implementation)))
    loss = jax.jit(checkify.checkify(MultiblankRNNT().checked))
    error, _ = loss(logits, labels)
    assert "labels[0, 1]: expected none of the blanks' classes (5,), got 5" in error.get()


# Sizes and magnitudes.
