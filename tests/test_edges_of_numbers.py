"""Many labels and frames, finite masks, huge logits: is the contract kept by both?"""

import jax
import numpy as np
import pytest

from cases import (
    Case,
    Implementation,
    assert_close,
    losses_and_gradients,
    random_case,
)
from edges import SCORES, SICK, V, a_case, assert_as_enumerated, evaluate, options_of, posteriors_of
from enumeration import transducers


@pytest.fixture(params=SCORES)
def case(request: pytest.FixtureRequest) -> Case:
    return a_case(request.param)


def test_more_than_1024_labels(implementation: Implementation) -> None:
    """One frame: every label in a row, and the blank."""
    case = random_case(33, (), 1, 1100, 4, ragged=False)
    losses, gradients = losses_and_gradients(case, implementation=implementation)
    log_probs = jax.nn.log_softmax(case.logits)[0]
    classes = np.append(case.labels, 3)
    path = log_probs[np.arange(1101), classes]
    assert_close(losses, -path.sum(), 1e-13)
    expected = np.exp(log_probs)
    expected[np.arange(1101), classes] -= 1
    assert_close(gradients[0], expected, 1e-12)


def test_many_labels_and_frames(implementation: Implementation) -> None:
    """Rows of more nodes than a block has threads, in float32 against float64."""
    case = random_case(34, (2,), 6, 1500, 3)
    expected = losses_and_gradients(case, implementation="xla")
    narrow = case._replace(logits=case.logits.astype(np.float32))
    losses, gradients = losses_and_gradients(narrow, implementation=implementation)
    assert_close(losses, expected[0], 1e-5)
    assert_close(gradients, expected[1], 1e-4)


@pytest.mark.parametrize("mask", [-1e9, -1e30, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_finite_mask_is_as_good_as_infinity(
    case: Case, mask: float, dtype: str, tolerance: float, implementation: Implementation
) -> None:
    case.logits[..., 0] = -np.inf
    case.logits[:, 1, :, V - 1] = -np.inf
    case.labels[0] = 1
    expected_losses, expected_gradients = transducers(*case, **options_of(case))
    finite = case._replace(logits=np.maximum(case.logits, mask).astype(dtype))
    losses, gradients = evaluate(finite, implementation)
    assert_close(losses, expected_losses, tolerance)
    assert_close(gradients, expected_gradients, tolerance)


@pytest.mark.parametrize("mask", [-50.0, -1e4, -1e9, -1e30, float(np.finfo(np.float32).min)])
def test_big_blank_leads_around_a_finite_mask(mask: float, implementation: Implementation) -> None:
    """The frame between is all but out of reach; what passes it by keeps its digits."""
    logits = np.zeros((2, 1, 3), np.float32)
    logits[0, 0, 2] = mask
    losses, _ = evaluate(
        Case(logits, np.zeros(0, np.int32), np.int32(2), np.int32(0)), implementation
    )
    assert_close(losses, 1.01 * (np.log(2) + 0.05), 1e-6)


@pytest.mark.parametrize("mask", [-1e9, -1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_mask_that_every_path_has_to_cross(
    case: Case, mask: float, dtype: str, implementation: Implementation
) -> None:
    """The loss is of the mask's size, and nothing overflows."""
    case.logits[SICK, ..., case.labels[SICK, 0]] = mask
    narrow = case._replace(logits=case.logits.astype(dtype))
    losses, gradients = evaluate(narrow, implementation)
    posteriors = posteriors_of(narrow, implementation)
    np.testing.assert_allclose(losses[SICK], -1.01 * mask, rtol=1e-6)
    assert np.all((posteriors >= 0) & (posteriors <= 1 + 1e-6))
    assert np.all(np.isfinite(gradients))


def test_finite_mask_that_every_path_crosses_once(
    case: Case, implementation: Implementation
) -> None:
    """Its size is then a constant of the loss: -50 has the same gradient but for exp(-50)."""
    case.logits[SICK, ..., case.labels[SICK, 0]] = -50.0
    expected = transducers(*case, **options_of(case))[1]
    case.logits[SICK, ..., case.labels[SICK, 0]] = -1e9
    assert_close(evaluate(case, implementation)[1], expected, 1e-6)  # 1e9 has an ulp of 1e-7


@pytest.mark.parametrize("mask", [-1e4, -1e9, -1e30])
def test_finite_mask_in_a_long_utterance(mask: float, implementation: Implementation) -> None:
    """In float32 nothing is left of the other log-probabilities beside it; still no overflow."""
    case = random_case(35, (), 80, 20, 10, dtype=np.float32, ragged=False, scale=3.0)
    case.labels[:] = np.arange(20) % 7
    case.logits[:, 4, case.labels[4]] = mask
    losses, gradients = evaluate(case, implementation)
    posteriors = posteriors_of(case, implementation)
    np.testing.assert_allclose(losses, -1.01 * mask, rtol=0.05 if mask == -1e4 else 1e-6)
    assert np.all((posteriors >= 0) & (posteriors <= 1 + 1e-3))
    assert np.all(np.isfinite(gradients))


def test_huge_logits(case: Case, implementation: Implementation) -> None:
    huge = case._replace(logits=1e4 * case.logits)
    assert_as_enumerated(huge, implementation)


def test_lambda_of_minus_one(case: Case, implementation: Implementation) -> None:
    """Labels weigh nothing: every loss is 0, but those that are none stay."""
    case.logits[0] = -np.inf
    case.logits[SICK, 0, 0, 0] = np.nan
    losses, gradients = evaluate(case, implementation, fastemit_lambda=-1.0)
    np.testing.assert_array_equal(losses, [np.inf, np.nan, 0.0])
    assert np.all(gradients[0] == 0)
    assert np.all(np.isfinite(gradients[2]))
