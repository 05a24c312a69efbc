"""Do numbers keep their digits, their sign and their size?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Implementation, assert_close, compiled, losses_and_gradients, random_case
from jax_mbrnnt import lattice_loss, multiblank_rnnt_loss, rnnt_arcs, rnnt_loss


def test_losses_are_never_below_zero(implementation: Implementation) -> None:
    """Where the likelihood is 1 but for roundings: their logarithms and roots are wanted, too."""
    logits = np.array([[[18, 4], [0, 16]], [[18, 7], [0, 39]]], np.float32)
    loss = rnnt_loss(logits, [0], implementation=implementation)
    assert_close(loss, 1.1e-7, 1e-6)
    rng = np.random.default_rng(37)
    sure = 15.0 * rng.normal(size=(400, 3, 2, 4)).astype(np.float32)
    sure[..., 3] += 12
    labels = np.zeros((400, 1), np.int32)
    for options in ({}, {"fastemit_lambda": 0.5}, {"big_blank_durations": (2,)}):
        losses = multiblank_rnnt_loss(sure, labels, implementation=implementation, **options)
        assert not np.any(np.signbit(losses))
    certain = np.where(np.arange(3) == 2, 0, -np.inf).astype(np.float32)
    for shape in ((0, 1, 3), (5, 1, 3)):  # a dummy utterance, and one that has no other way
        for method in ("__call__", "score_forward"):
            loss = compiled(method, implementation=implementation)(
                np.broadcast_to(certain, shape), np.zeros(0, np.int32)
            )
            assert loss == 0
            assert not np.signbit(loss)
    lattice = lattice_loss(np.zeros((3, 1, 2)), arcs=rnnt_arcs(), implementation=implementation)
    assert lattice == 0
    assert not np.signbit(lattice)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_masks_of_the_largest_size(dtype: str, implementation: Implementation) -> None:
    """The loss has a mask's size to 2.3e38 (1.2e308); beyond, at `finfo.min`, say, it is +inf."""
    largest = float(jnp.finfo("float64" if dtype == "float64" else "float32").max)
    for mask, expected in [
        *((-1e30, 1e30), (-0.6 * largest, 0.6 * largest), (-0.8 * largest, np.inf)),
        (float(jnp.finfo(dtype).min), np.inf),
    ]:
        logits = np.array([[[0.0, mask]]]).astype(dtype)
        found = jax.value_and_grad(rnnt_loss)(
            jnp.asarray(logits), np.zeros(0, np.int32), implementation=implementation
        )
        np.testing.assert_allclose(float(found[0]), expected, rtol=0.01)
        known = [1, -1] if np.isfinite(expected) else [0, 0]
        np.testing.assert_array_equal(np.asarray(found[1], np.float64), [[known]])
    # What a path has to cross adds up.
    logits = np.array([[[0.0, -0.4 * largest]]] * 2).astype(dtype)
    found = jax.value_and_grad(rnnt_loss)(
        jnp.asarray(logits), np.zeros(0, np.int32), implementation=implementation
    )
    assert found[0] == np.inf
    assert np.all(found[1] == 0)


OFFSETS = [0.0, 1.0, 100.0, 1e3, 1e4, 1e5]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_common_offset_costs_no_digits(
    offset: float, dtype: str, implementation: Implementation
) -> None:
    """Against float64 of the same rounded logits."""
    if dtype == "float16" and offset > 6e4:
        pytest.skip("more than float16 holds")
    case = random_case(38, (1,), 200, 20, 16, ragged=False, scale=1.0)
    rounded = case._replace(logits=(case.logits + offset).astype(dtype))
    exact = case._replace(logits=rounded.logits.astype(np.float64))
    losses, gradients = losses_and_gradients(rounded, implementation=implementation)
    expected_losses, expected = losses_and_gradients(exact, implementation="ffi")
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    rounding = 0 if dtype == "float32" else np.abs(expected) * float(jnp.finfo(dtype).eps) / 2
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    errors = np.abs(gradients.astype(np.float64) - expected)
    assert np.all(errors <= 2e-6 + rounding + smallest)


@pytest.mark.parametrize("offset", [1e6, -1e6, 1e30])
def test_two_equal_logits_of_any_size(offset: float, implementation: Implementation) -> None:
    loss, gradient = jax.value_and_grad(rnnt_loss)(
        jnp.full((1, 1, 2), offset, jnp.float32),
        np.zeros(0, np.int32),
        implementation=implementation,
    )
    assert_close(loss, np.log(2), 1e-7)
    np.testing.assert_array_equal(gradient, [[[0.5, -0.5]]])
