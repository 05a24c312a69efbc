"""Does the loss behave like any JAX function under JAX's transformations?"""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import (
    Case,
    Implementation,
    assert_close,
    criterion,
    losses_and_gradients,
    random_case,
)

TRANSDUCERS: dict[str, dict[str, Any]] = {
    "multiblank": {"big_blank_durations": (2, 3), "sigma": 0.05, "fastemit_lambda": 0.1},
    "TDT": {"durations": (0, 1, 3), "sigma": 0.05, "fastemit_lambda": 0.1},
}
OPTIONS: dict[str, Any] = {}
# What JAX does to a function of JAX's own, the twin, is tried less often.
KERNELS = pytest.mark.parametrize("implementation", ["ffi"])


@pytest.fixture(autouse=True, params=TRANSDUCERS)
def of_each_transducer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "OPTIONS", TRANSDUCERS[request.param])


@pytest.fixture
def case() -> Case:
    return jax.tree.map(jnp.asarray, random_case(60, (2, 3)))


def loss(*operands: Any, implementation: Implementation) -> jax.Array:
    return criterion(**OPTIONS, implementation=implementation)(*operands)


def expected(case: Case, implementation: Implementation, cotangents: Any = None) -> tuple[Any, Any]:
    return losses_and_gradients(case, cotangents, **OPTIONS, implementation=implementation)


# vmap.


@KERNELS
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vmap_over_any_axis(case: Case, axis: int, implementation: Implementation) -> None:
    def one(*operands: jax.Array) -> jax.Array:
        return loss(*operands, implementation=implementation)

    moved = jax.tree.map(lambda operand: jnp.moveaxis(operand, 0, axis), case)
    losses = jax.jit(jax.vmap(one, in_axes=axis, out_axes=axis))(*moved)
    assert_close(jnp.moveaxis(losses, axis, 0), expected(case, implementation)[0], 1e-14)


@KERNELS
def test_nested_vmap(case: Case, implementation: Implementation) -> None:
    def one(*operands: jax.Array) -> jax.Array:
        return loss(*operands, implementation=implementation)

    losses = jax.vmap(jax.vmap(one))(*case)
    assert_close(losses, expected(case, implementation)[0], 1e-14)


@KERNELS
@pytest.mark.parametrize(
    "in_axes",
    [(0, None, None, None), (None, 0, None, None), (None, None, 0, 0), (0, 0, None, 0)],
    ids=str,
)
def test_vmap_of_some_operands(case: Case, in_axes: Any, implementation: Implementation) -> None:
    """And its gradient: that of an operand all utterances share is summed over them."""

    def total(*operands: jax.Array) -> jax.Array:
        mapped = jax.vmap(lambda *one: loss(*one, implementation=implementation), in_axes)
        return mapped(*operands).sum()

    shared = Case(*(x if axis == 0 else x[0] for x, axis in zip(case, in_axes, strict=True)))
    whole = Case(
        *(
            x if axis == 0 else jnp.broadcast_to(x, (2, *x.shape))
            for x, axis in zip(shared, in_axes, strict=True)
        )
    )
    losses, gradients = expected(whole, implementation)
    value, gradient = jax.jit(jax.value_and_grad(total))(*shared)
    assert_close(value, losses.sum(), 1e-13)
    assert_close(gradient, gradients if in_axes[0] == 0 else gradients.sum(0), 1e-13)


@pytest.mark.parametrize(
    ("transform", "implementation"),
    [("grad of vmap", "ffi"), ("vmap of grad", "ffi"), ("vmap of grad", "xla")],
)
def test_vmap_and_grad(case: Case, transform: str, implementation: Implementation) -> None:
    def one(*operands: jax.Array) -> jax.Array:
        return loss(*operands, implementation=implementation).sum()

    if transform == "vmap of grad":
        gradients = jax.jit(jax.vmap(jax.grad(one)))(*case)
    else:
        gradients = jax.jit(jax.grad(lambda *all: jax.vmap(one)(*all).sum()))(*case)
    assert_close(gradients, expected(case, implementation)[1], 1e-14)


def test_vmap_makes_no_further_kernel_calls(case: Case) -> None:
    def calls(function: Any) -> int:
        gradient = jax.grad(lambda *operands: function(*operands).sum())
        return jax.jit(gradient).lower(*case).as_text().count("stablehlo.custom_call")

    def one(*operands: jax.Array) -> jax.Array:
        return loss(*operands, implementation="ffi")

    assert calls(one) == calls(jax.vmap(jax.vmap(one))) > 0


# Cotangents.


@KERNELS
def test_cotangents_scale_the_gradient(case: Case, implementation: Implementation) -> None:
    cotangents = np.random.default_rng(61).normal(size=(2, 3))
    assert np.any(cotangents < 0)
    _, gradients = expected(case, implementation)
    _, scaled = expected(case, implementation, cotangents)
    assert_close(scaled, cotangents[..., None, None, None] * gradients, 1e-14)


@KERNELS
def test_cotangents_come_after_the_clamp(case: Case, implementation: Implementation) -> None:
    options: dict[str, Any] = {**OPTIONS, "clamp": 0.1, "implementation": implementation}
    _, gradients = losses_and_gradients(case, **options)
    _, scaled = losses_and_gradients(case, np.full((2, 3), -5.0), **options)
    assert_close(scaled, -5 * gradients, 1e-14)
    tokens = criterion(**OPTIONS).emission(8).heads[0]
    assert np.max(np.abs(scaled[..., :tokens])) == 0.5


@KERNELS
def test_no_cotangent_no_gradient(case: Case, implementation: Implementation) -> None:
    assert np.all(expected(case, implementation, np.zeros((2, 3)))[1] == 0)


# jit, checkpoint, scan, donation.


def test_without_jit(case: Case, implementation: Implementation) -> None:
    def total(logits: jax.Array) -> jax.Array:
        return loss(logits, *case[1:], implementation=implementation).sum()

    value, gradients = jax.value_and_grad(total)(case.logits)
    losses, expected_gradients = expected(case, implementation)
    assert_close(value, losses.sum(), 1e-14)
    assert_close(gradients, expected_gradients, 1e-14)


@KERNELS
def test_disable_jit(implementation: Implementation) -> None:
    case = random_case(62, (2,), 3, 2)

    def total(logits: jax.Array) -> jax.Array:
        return loss(logits, *case[1:], implementation=implementation).sum()

    with jax.disable_jit():
        value, gradients = jax.value_and_grad(total)(jnp.asarray(case.logits))
    losses, expected_gradients = expected(case, implementation)
    assert_close(value, losses.sum(), 1e-13)
    assert_close(gradients, expected_gradients, 1e-13)


@KERNELS
def test_repeated_calls_compile_nothing(
    case: Case, implementation: Implementation, caplog: pytest.LogCaptureFixture
) -> None:
    def step() -> Any:
        return jax.value_and_grad(
            lambda logits: loss(logits, *case[1:], implementation=implementation).sum()
        )(case.logits)

    step()
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        step()
    compiled = [r.getMessage() for r in caplog.records if "ompiling" in r.getMessage()]
    assert compiled == []


def test_checkpoint(case: Case, implementation: Implementation) -> None:
    @jax.checkpoint
    def total(weights: jax.Array) -> jax.Array:
        logits = case.logits @ weights
        return loss(logits, *case[1:], implementation=implementation).sum()

    _, gradients = expected(case, implementation)
    actual = jax.jit(jax.grad(total))(jnp.eye(8))
    assert_close(actual, jnp.einsum("...v,...w->vw", case.logits, gradients), 1e-12)


def test_scan(case: Case, implementation: Implementation) -> None:
    def total(logits: jax.Array) -> jax.Array:
        def step(carry: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            losses = loss(*one, implementation=implementation)
            return carry + losses.sum(), losses

        return jax.lax.scan(step, jnp.zeros(()), (logits, *case[1:]))[0]

    value, gradients = jax.jit(jax.value_and_grad(total))(case.logits)
    losses, expected_gradients = expected(case, implementation)
    assert_close(value, losses.sum(), 1e-13)
    assert_close(gradients, expected_gradients, 1e-14)


@KERNELS
def test_gradients_in_place_of_donated_logits(case: Case, implementation: Implementation) -> None:
    model = criterion(**OPTIONS, implementation=implementation)
    losses, gradients = expected(case, implementation)
    donated = jax.jit(model.cost_and_grad, donate_argnums=0)(jnp.array(case.logits), *case[1:])
    assert_close(donated[0], losses, 1e-14)
    assert_close(donated[1], gradients, 1e-14)


@KERNELS
def test_logits_that_are_used_again_stay_as_they_were(
    case: Case, implementation: Implementation
) -> None:
    @jax.jit
    def step(logits: jax.Array) -> Any:
        logits = 2 * logits
        losses, pullback = jax.vjp(
            lambda x: loss(x, *case[1:], implementation=implementation), logits
        )
        return pullback(jnp.ones_like(losses))[0], logits

    before = np.array(case.logits)
    gradients, doubled = step(case.logits)
    np.testing.assert_array_equal(case.logits, before)
    np.testing.assert_array_equal(doubled, 2 * before)
    assert_close(gradients, expected(case._replace(logits=2 * before), implementation)[1], 1e-14)
