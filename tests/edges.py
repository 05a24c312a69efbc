"""For the tests of the contract's edges: a small case, and what faults may do to it."""

from typing import Any

import numpy as np

from cases import (
    Array,
    Case,
    Implementation,
    assert_close,
    compiled,
    losses_and_gradients,
    random_case,
)
from enumeration import transducers

B, T, U, V = 3, 4, 2, 6
OPTIONS: dict[str, Any] = {"big_blank_durations": (2,), "sigma": 0.05, "fastemit_lambda": 0.01}
TDT_OPTIONS: dict[str, Any] = {"durations": (0, 2, 1), "sigma": 0.05, "fastemit_lambda": 0.01}
SCORES = {"multiblank": V, "TDT": V + 3}  # V tokens
SICK = 1  # the utterance that something is wrong with
HEALTHY = np.arange(B) != SICK
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def options_of(case: Case) -> dict[str, Any]:
    """Those of the transducer whose scores these are."""
    return TDT_OPTIONS if case.logits.shape[-1] == SCORES["TDT"] else OPTIONS


def a_case(transducer: str) -> Case:
    """Three utterances with padding in every dimension; labels are no blanks."""
    case = random_case(30, (B,), T, U, SCORES[transducer])
    return case._replace(
        labels=np.array([[0, 1], [2, 3], [3, 3]], np.int32),
        logit_lengths=np.array([4, 3, 3], np.int32),
        label_lengths=np.array([2, 1, 0], np.int32),
    )


def evaluate(
    case: Case, implementation: Implementation, cotangents: Any = None, **options: Any
) -> tuple[Array, Array]:
    """Losses and gradients."""
    options = {**options_of(case), **options, "implementation": implementation}
    losses, gradients = losses_and_gradients(case, cotangents, **options)
    if implementation == "ffi":  # which has a kernel of its own for losses without gradients
        tolerance = 1e-13 if losses.dtype == "float64" else 1e-6
        assert_close(compiled("score_forward", **options)(*case), losses, tolerance)
    return losses, gradients


def posteriors_of(case: Case, implementation: Implementation) -> Array:
    posteriors = compiled("posteriors", **options_of(case), implementation=implementation)
    return np.asarray(posteriors(*case))


def assert_as_enumerated(case: Case, implementation: Implementation) -> tuple[Array, Array]:
    losses, gradients = evaluate(case, implementation)
    expected_losses, expected_gradients = transducers(*case, **options_of(case))
    assert_close(losses, expected_losses, 1e-12)
    assert_close(gradients, expected_gradients, 1e-12)
    return losses, gradients


def assert_poisoned(sick: Case, case: Case, implementation: Implementation, region: Array) -> None:
    """Only SICK is poisoned: NaN where `region` [T, U+1] says, 0 elsewhere."""
    losses, gradients = evaluate(sick, implementation)
    well_losses, well_gradients = evaluate(case, implementation)
    posteriors = posteriors_of(sick, implementation)
    well_posteriors = posteriors_of(case, implementation)
    assert np.isnan(losses[SICK])
    np.testing.assert_array_equal(
        gradients[SICK],
        np.broadcast_to(np.where(region, np.nan, 0)[..., None], gradients[SICK].shape),
    )
    np.testing.assert_array_equal(np.isnan(posteriors[SICK]).any(-1), region)
    assert np.all(posteriors[SICK][~region] == 0)
    np.testing.assert_array_equal(losses[HEALTHY], well_losses[HEALTHY])
    np.testing.assert_array_equal(gradients[HEALTHY], well_gradients[HEALTHY])
    np.testing.assert_array_equal(posteriors[HEALTHY], well_posteriors[HEALTHY])


def assert_impossible(case: Case, implementation: Implementation, utterances: Any = SICK) -> None:
    cotangents = np.array([2.0, -3.0, 0.5])
    losses, gradients = evaluate(case, implementation, cotangents, clamp=0.5)
    posteriors = posteriors_of(case, implementation)
    assert np.all(losses[utterances] == np.inf)
    assert np.all(gradients[utterances] == 0)
    assert np.all(posteriors[utterances] == 0)
    assert np.all(np.isfinite(losses[~np.isin(np.arange(B), utterances)]))
    assert np.all(np.isfinite(gradients))
