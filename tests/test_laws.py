"""Do losses, posteriors and gradients obey the laws of the lattice?"""

import math
from typing import Any

import jax
import numpy as np
import pytest

from cases import (
    Array,
    Case,
    Implementation,
    assert_close,
    compiled,
    criterion,
    losses_and_gradients,
    losses_and_gradients_of,
    random_case,
)
from jax_mbrnnt import rnnt_loss, tdt_loss

TRANSDUCERS: dict[str, dict[str, Any]] = {
    "multiblank": {"big_blank_durations": (2, 3), "sigma": 0.05},
    "TDT": {"durations": (0, 2, 1), "sigma": 0.05},
}
OPTIONS: dict[str, Any] = {}
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)], ids=["float32", "float64"]
)


@pytest.fixture(autouse=True, params=TRANSDUCERS)
def of_each_transducer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "OPTIONS", TRANSDUCERS[request.param])


def of_arcs(attribute: str) -> Array:
    """The durations of the arcs, or which of them emit."""
    return np.asarray([getattr(arc, attribute) for arc in criterion(**OPTIONS).arcs])


def posteriors(case: Case, implementation: Implementation) -> Array:
    return np.asarray(compiled("posteriors", **OPTIONS, implementation=implementation)(*case))


def evaluate(case: Case, implementation: Implementation, **options: Any) -> tuple[Array, Array]:
    return losses_and_gradients(case, **{**OPTIONS, **options}, implementation=implementation)


def test_golden(implementation: Implementation) -> None:
    """The number that the field's RNN-T losses share for their smallest test."""
    logits = np.array(
        [
            [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
            [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
        ],
        np.float32,
    )
    loss = rnnt_loss(logits, np.array([1, 2]), blank_id=0, implementation=implementation)
    np.testing.assert_allclose(loss, 4.495666, rtol=0, atol=1e-6)


def test_golden_of_tdt(implementation: Implementation) -> None:
    """The number that NeMo's tests have for uniform scores of 4 tokens and 3 durations."""
    logits, labels = np.zeros((3, 2, 4 + 3), np.float32), np.zeros(1, np.int32)
    loss = tdt_loss(logits, labels, durations=(0, 1, 2), sigma=0.05, implementation=implementation)
    np.testing.assert_allclose(loss, 4.155739, rtol=1e-6)


def test_uniform_logits_count_the_paths(implementation: Implementation) -> None:
    """RNN-T has C(T-1+U, U) paths, each of T + U arcs, each arc of probability 1/V."""
    T, U, V = 6, 4, 5
    loss = rnnt_loss(np.zeros((T, U + 1, V)), np.zeros(U, np.int32), implementation=implementation)
    expected = (T + U) * math.log(V) - math.log(math.comb(T - 1 + U, U))
    np.testing.assert_allclose(loss, expected, rtol=1e-14)


@DTYPES
def test_paths_leave_the_first_node(
    dtype: str, tolerance: float, implementation: Implementation
) -> None:
    """-loss = beta(0, 0): the posteriors at (0, 0) are exp(arc + beta(head) + loss)."""
    case = random_case(10, dtype=dtype)
    assert_close(posteriors(case, implementation)[:, 0, 0].sum(-1), np.ones(3), tolerance)


@DTYPES
def test_every_label_is_emitted_once(
    dtype: str, tolerance: float, implementation: Implementation
) -> None:
    case = random_case(11, dtype=dtype)
    emitted = posteriors(case, implementation)[..., of_arcs("emits")].sum((-3, -1))
    expected = np.arange(4) < case.label_lengths[:, None]
    assert_close(emitted, expected, tolerance)


@DTYPES
def test_arcs_take_every_frame(
    dtype: str, tolerance: float, implementation: Implementation
) -> None:
    case = random_case(12, dtype=dtype)
    frames = posteriors(case, implementation) @ of_arcs("duration").astype(dtype)
    assert_close(frames.sum((-1, -2)), case.logit_lengths, tolerance)


@DTYPES
def test_what_enters_a_node_leaves_it(
    dtype: str, tolerance: float, implementation: Implementation
) -> None:
    case = random_case(13, dtype=dtype)
    T, U1 = case.logits.shape[1:3]
    for b, flow in enumerate(posteriors(case, implementation)):
        entering = np.zeros((T + max(of_arcs("duration")), U1 + 1))
        entering[0, 0] = 1
        for arc, (duration, emits) in enumerate(criterion(**OPTIONS).arcs):
            entering[duration : duration + T, emits : emits + U1] += flow[..., arc]
        leaving = np.zeros_like(entering)
        leaving[:T, :U1] = flow.sum(-1)
        leaving[case.logit_lengths[b], case.label_lengths[b]] = 1  # the final node
        assert_close(entering, leaving, tolerance)


@DTYPES
def test_gradient_rows_sum_to_zero(
    dtype: str, tolerance: float, implementation: Implementation
) -> None:
    _, gradients = evaluate(random_case(14, dtype=dtype), implementation)
    assert np.any(gradients != 0)
    assert_close(gradients.sum(-1), np.zeros(gradients.shape[:-1]), tolerance)


def test_gradient_is_the_derivative(implementation: Implementation) -> None:
    case = random_case(15)
    gradients = evaluate(case, implementation)[1]
    direction = np.random.default_rng(16).normal(size=case.logits.shape)
    step = 1e-5
    ahead, behind = (
        evaluate(case._replace(logits=case.logits + move * direction), implementation)[0]
        for move in (step, -step)
    )
    assert_close(np.sum(gradients * direction, (-1, -2, -3)), (ahead - behind) / (2 * step), 1e-8)


def test_sigma_taxes_every_arc(implementation: Implementation) -> None:
    """Every path of RNN-T has T + U arcs."""
    case = random_case(17)
    losses, gradients = losses_and_gradients(case, implementation=implementation)
    taxed_losses, taxed = losses_and_gradients(case, sigma=0.3, implementation=implementation)
    assert_close(taxed_losses - losses, 0.3 * (case.logit_lengths + case.label_lengths), 1e-12)
    assert_close(taxed, gradients, 1e-12)


def test_fastemit_scales_the_loss_and_weighs_the_labels(implementation: Implementation) -> None:
    case = random_case(18)
    losses, gradients = evaluate(case, implementation)
    _, doubled = evaluate(case, implementation, fastemit_lambda=1.0)
    scaled_losses, weighed = evaluate(case, implementation, fastemit_lambda=0.25)
    assert_close(scaled_losses, 1.25 * losses, 1e-13)
    assert_close(weighed, gradients + 0.25 * (doubled - gradients), 1e-13)
    assert np.max(np.abs(doubled - gradients)) > 0.1


def test_clamp_bounds_the_gradient(implementation: Implementation) -> None:
    case = random_case(19)
    losses, gradients = evaluate(case, implementation)
    clamped_losses, clamped = evaluate(case, implementation, clamp=0.1)
    assert np.max(np.abs(gradients)) > 0.1
    tokens = criterion(**OPTIONS).emission(gradients.shape[-1]).heads[0]
    expected = np.concatenate(
        [np.clip(gradients[..., :tokens], -0.1, 0.1), gradients[..., tokens:]], axis=-1
    )
    assert_close(clamped, expected, 1e-15)
    assert_close(clamped_losses, losses, 1e-15)


def test_logits_are_defined_up_to_a_constant(implementation: Implementation) -> None:
    case = random_case(20)
    losses, gradients = evaluate(case, implementation)
    constants = np.random.default_rng(21).normal(scale=10, size=(3, 5, 4, 1))
    shifted = case._replace(logits=case.logits + constants)
    shifted_losses, shifted_gradients = evaluate(shifted, implementation)
    assert_close(shifted_losses, losses, 1e-12)
    assert_close(shifted_gradients, gradients, 1e-12)


def test_masked_big_blanks_leave_rnnt(implementation: Implementation) -> None:
    case = random_case(22)
    case.logits[..., -3:-1] = -np.inf
    np.minimum(case.labels, 4, out=case.labels)
    losses, gradients = losses_and_gradients(case, implementation=implementation)
    big_losses, big_gradients = losses_and_gradients(
        case, **{**TRANSDUCERS["multiblank"], "sigma": 0.0}, implementation=implementation
    )
    assert_close(big_losses, losses, 1e-13)
    assert_close(big_gradients, gradients, 1e-13)


def test_vmap_is_batch() -> None:
    case = random_case(23)

    losses, gradients = evaluate(case, "ffi")
    mapped = jax.vmap(criterion(**OPTIONS, implementation="ffi"))
    mapped_losses, mapped_gradients = losses_and_gradients_of(mapped, case)
    np.testing.assert_array_equal(mapped_losses, losses)
    np.testing.assert_array_equal(mapped_gradients, gradients)


def test_padding_changes_nothing(implementation: Implementation) -> None:
    """No length reaches the padded size."""
    case = random_case(24)
    losses, gradients = evaluate(case, implementation)
    padded = Case(
        np.pad(case.logits, ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=7.0),
        np.pad(case.labels, ((0, 0), (0, 2)), constant_values=1),
        *case[2:],
    )
    padded_losses, padded_gradients = evaluate(padded, implementation)
    assert_close(padded_losses, losses, 1e-14)
    assert_close(padded_gradients[:, :5, :4], gradients, 1e-14)
    assert np.all(padded_gradients[:, 5:] == 0)
    assert np.all(padded_gradients[:, :, 4:] == 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_are_deterministic_to_the_bit(dtype: str) -> None:
    """Enough utterances and frames for several threads to take part."""
    case = random_case(25, (16,), 40, 10, 65, dtype=dtype)
    losses, gradients = evaluate(case, "ffi")
    for _ in range(10):
        again_losses, again = evaluate(case, "ffi")
        np.testing.assert_array_equal(again_losses, losses)
        np.testing.assert_array_equal(again.astype(np.float32), gradients.astype(np.float32))


def test_omitted_lengths_are_full(implementation: Implementation) -> None:
    case = random_case(26, ragged=False)
    model = criterion(**OPTIONS, implementation=implementation)
    full, omitted = model(*case), model(*case[:2])
    np.testing.assert_array_equal(omitted, full)
