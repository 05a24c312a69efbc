"""Are derivatives of any order and mode right, and do the kernels say which they lack?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import assert_close, random_case
from jax_mbrnnt import multiblank_rnnt_loss, rnnt_loss


@pytest.fixture(params=["plain", "masked"])
def function(request: pytest.FixtureRequest) -> tuple[Any, jax.Array, jax.Array]:
    """The loss of flat logits with padding, by the twin; a point; a direction.

    Masked: a class is -inf everywhere, and so is a node. The derivatives are still finite.
    """
    case = random_case(63, (), 4, 2, 5)
    case.logits[2:], case.logits[:, 2:] = np.nan, np.nan  # beyond the lengths
    if request.param == "masked":
        case.logits[..., 1] = -np.inf
        case.logits[1, 0] = -np.inf

    def flat(logits: jax.Array) -> jax.Array:
        return multiblank_rnnt_loss(
            logits.reshape(4, 3, 5),
            np.array([0, 2], np.int32),
            np.int32(2),
            np.int32(1),
            big_blank_durations=(2,),
            implementation="xla",
        )

    direction = np.random.default_rng(64).normal(size=case.logits.size)
    return flat, jnp.asarray(case.logits.ravel()), jnp.asarray(direction)


def test_jvp(function: Any) -> None:
    loss, point, direction = function
    slope = jax.jvp(loss, (point,), (direction,))[1]
    assert_close(slope, jax.grad(loss)(point) @ direction, 1e-13)


def test_hessian(function: Any) -> None:
    loss, point, direction = function
    gradient, step = jax.jit(jax.grad(loss)), 1e-5
    hessian = jax.jit(jax.hessian(loss))(point)
    differences = gradient(point + step * direction) - gradient(point - step * direction)
    assert_close(hessian @ direction, differences / (2 * step), 1e-8)
    assert_close(hessian, hessian.T, 1e-13)
    assert np.max(np.abs(hessian)) > 0.01


@pytest.mark.parametrize("order", ["forward over reverse", "reverse over reverse"])
def test_hessian_vector_product(function: Any, order: str) -> None:
    loss, point, direction = function
    gradient, step = jax.grad(loss), 1e-5
    if order == "forward over reverse":
        product = jax.jvp(gradient, (point,), (direction,))[1]
    else:
        product = jax.grad(lambda x: gradient(x) @ direction)(point)
    differences = gradient(point + step * direction) - gradient(point - step * direction)
    assert_close(product, differences / (2 * step), 1e-8)


def test_hessian_where_elements_of_the_gradient_vanish() -> None:
    """Uniform logits, as an untrained model may give: both paths are equally likely."""

    def loss(logits: jax.Array) -> jax.Array:
        return rnnt_loss(logits.reshape(2, 2, 2), np.array([0], np.int32), implementation="xla")

    point, step = jnp.zeros(8), 1e-5
    gradient = jax.jit(jax.grad(loss))
    assert gradient(point)[0] == 0
    columns = [
        (gradient(point.at[i].set(step)) - gradient(point.at[i].set(-step))) / (2 * step)
        for i in range(8)
    ]
    assert_close(jax.jit(jax.hessian(loss))(point), np.stack(columns, -1), 1e-8)


@pytest.mark.parametrize("order", ["forward over reverse", "reverse over reverse"])
def test_kernels_say_what_to_use_instead(order: str) -> None:
    case = random_case(67, ())

    def loss(logits: jax.Array) -> jax.Array:
        return multiblank_rnnt_loss(logits, *case[1:], implementation="ffi")

    gradient = jax.grad(loss)
    derivatives = {
        "forward over reverse": lambda x: jax.jvp(gradient, (x,), (x,)),
        "reverse over reverse": jax.grad(lambda x: gradient(x).sum()),
    }
    with pytest.raises((NotImplementedError, TypeError), match=r"implementation=.xla."):
        derivatives[order](jnp.asarray(case.logits))
