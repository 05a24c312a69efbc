"""May sigma, FastEmit's lambda and the clamp be traced, and does a new value compile nothing?"""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Implementation, assert_close, criterion, random_case

TRANSDUCERS: list[dict[str, Any]] = [{"big_blank_durations": (2, 3)}, {"durations": (0, 1, 2)}]
NUMBERS = {"sigma": 0.05, "fastemit_lambda": 0.5, "clamp": 0.1}
CASE = random_case(80)
OF_EACH = pytest.mark.parametrize("transducer", TRANSDUCERS, ids=["multiblank", "TDT"])


def evaluated(numbers: dict[str, Any], **options: Any) -> Any:
    """Losses and gradients of their sum, by automatic differentiation."""

    def total(logits: jax.Array) -> Any:
        losses = criterion(**options, **numbers)(logits, *CASE[1:])
        return losses.sum(), losses

    gradients, losses = jax.grad(total, has_aux=True)(jnp.asarray(CASE.logits))
    return losses, gradients


def assert_same(actual: Any, expected: Any) -> None:
    jax.tree.map(lambda a, e: assert_close(a, e, 1e-13), actual, expected)


@OF_EACH
def test_traced_numbers_are_as_good_as_known_ones(
    transducer: dict[str, Any], implementation: Implementation
) -> None:
    options = {**transducer, "implementation": implementation}
    traced = jax.jit(lambda numbers: evaluated(numbers, **options))(NUMBERS)
    assert_same(traced, evaluated(NUMBERS, **options))


def test_numbers_in_any_dtype() -> None:
    expected = evaluated({"sigma": 1.0, "clamp": 0.5})
    for dtype in ("int32", "float16", "bfloat16", "float32", "float64"):
        numbers = {"sigma": np.asarray(1, dtype), "clamp": jnp.asarray(0.5)}
        assert_same(jax.jit(evaluated)(numbers), expected)
        assert_same(evaluated(numbers), expected)


@OF_EACH
@pytest.mark.parametrize("jit", [False, True])
def test_new_values_compile_nothing(
    jit: bool, transducer: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def step(numbers: dict[str, Any]) -> Any:
        return evaluated(numbers, **transducer, implementation="ffi")

    function: Callable[..., Any] = jax.jit(step) if jit else step
    first = function(NUMBERS)
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        for k in range(2, 4):
            function({name: value / k for name, value in NUMBERS.items()})
    assert [r.getMessage() for r in caplog.records if "ompiling" in r.getMessage()] == []
    assert_same(function(NUMBERS), first)


def test_sigma_may_differ_among_what_is_mapped(implementation: Implementation) -> None:
    sigmas = np.array([0.0, 0.1, 0.5])
    options: dict[str, Any] = {"durations": (0, 1, 2), "implementation": implementation}
    mapped = jax.jit(jax.vmap(lambda s: evaluated({"sigma": s}, **options)))(sigmas)
    for i, sigma in enumerate(sigmas):
        expected = evaluated({"sigma": float(sigma)}, **options)
        assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), expected)


def test_traced_clamp_of_zero_is_none(implementation: Implementation) -> None:
    traced = jax.jit(lambda clamp: evaluated({"clamp": clamp}, implementation=implementation))
    assert_same(traced(0.0), evaluated({}, implementation=implementation))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sigma", np.nan), ("sigma", np.inf)),
        *(("fastemit_lambda", -1.5), ("fastemit_lambda", np.nan), ("fastemit_lambda", np.inf)),
        *(("clamp", -0.1), ("clamp", np.nan), ("clamp", np.inf)),
    ],
)
def test_traced_number_out_of_range(name: str, value: float) -> None:
    losses, gradients = jax.jit(evaluated)({name: value})
    assert np.all(np.isnan(losses))
    inside = np.any(np.asarray(evaluated({})[1]) != 0, axis=-1)
    assert np.all(np.isnan(gradients[inside]))


@pytest.mark.parametrize("implementation", ["ffi", "xla"])
@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_numbers_have_no_derivative(mode: Any, implementation: Implementation) -> None:
    def total(sigma: jax.Array) -> jax.Array:
        return criterion(sigma=sigma, implementation=implementation)(*CASE).sum()

    with pytest.raises(NotImplementedError, match=r"sigma: .*stop_gradient\(sigma\)"):
        mode(total)(0.1)
    assert mode(lambda sigma: total(jax.lax.stop_gradient(sigma)))(0.1) == 0


def test_annealed_sigma_in_a_train_step() -> None:
    """A schedule of the step's number, which is carried along with what is differentiated."""

    @jax.jit
    def step(logits: jax.Array, number: jax.Array) -> Any:
        def mean(logits: jax.Array) -> jax.Array:
            sigma = 0.1 * jnp.exp(-number.astype(logits.dtype))
            return criterion(durations=(0, 1), sigma=sigma)(logits, *CASE[1:]).mean()

        value, gradient = jax.value_and_grad(mean)(logits)
        return value, logits - gradient, number + 1

    def advance(carry: Any, _: None) -> Any:
        value, *carry = step(*carry)
        return tuple(carry), value

    carry = jnp.asarray(CASE.logits), jnp.zeros((), jnp.int32)
    _, values = jax.lax.scan(advance, carry, None, length=4)
    assert np.all(np.diff(values) < 0)


@pytest.mark.parametrize("implementation", ["ffi", "xla"])
def test_traced_numbers_of_a_joint(implementation: Implementation) -> None:
    rng = np.random.default_rng(81)
    encoded, predicted = rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 4, 8))

    def joint(weights: jax.Array, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return (encoded[:, :, None] + predicted[:, None]) * weights.reshape(1, 1, 1, -1)

    def step(numbers: dict[str, Any]) -> Any:
        model = criterion(durations=(0, 1, 2), **numbers, implementation=implementation)

        def total(weights: jax.Array, encoded: jax.Array) -> jax.Array:
            operands = weights, encoded, jnp.asarray(predicted), *CASE[1:]
            return model.joint_loss(joint, *operands, chunk_frames=2).sum()

        return jax.value_and_grad(total, argnums=(0, 1))(jnp.ones(8), jnp.asarray(encoded))

    assert_same(jax.jit(step)(NUMBERS), step(NUMBERS))
