"""How far are float32 gradients of a long utterance from those of float64?"""

from typing import Any

import numpy as np
import pytest

from cases import Array, losses_and_gradients, random_case

TRANSDUCERS: dict[str, dict[str, Any]] = {
    "multiblank": {"big_blank_durations": (2, 4, 8), "sigma": 0.05},
    "TDT": {"durations": (0, 1, 2, 3, 4), "sigma": 0.05},
}
CASE = random_case(70, (1,), 1000, 100, 64, ragged=False, scale=1.0, blanks=range(58, 64))


@pytest.fixture(scope="module", params=TRANSDUCERS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return TRANSDUCERS[request.param]


@pytest.fixture(scope="module")
def exact(options: dict[str, Any]) -> tuple[Array, Array]:
    return losses_and_gradients(CASE, **options, implementation="xla")


def test_float32_gradients_of_1000_frames(
    options: dict[str, Any], exact: tuple[Array, Array], record_property: Any
) -> None:
    narrow = CASE._replace(logits=CASE.logits.astype(np.float32))
    losses, gradients = losses_and_gradients(narrow, **options, implementation="ffi")
    error = float(np.max(np.abs(gradients - exact[1])))
    record_property("max_abs_error", error)
    assert error <= 1e-4
    np.testing.assert_allclose(losses, exact[0], rtol=1e-6)


def test_float64_gradients_of_1000_frames(
    options: dict[str, Any], exact: tuple[Array, Array]
) -> None:
    losses, gradients = losses_and_gradients(CASE, **options, implementation="ffi")
    np.testing.assert_allclose(losses, exact[0], rtol=1e-13)
    np.testing.assert_allclose(gradients, exact[1], rtol=0, atol=1e-10)
