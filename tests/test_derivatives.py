"""Are derivatives of any order and mode right, and do the kernels say which they lack?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import assert_close, criterion, random_case
from jax_mbrnnt import (
    MultiblankRNNT,
    lattice_loss,
    rnnt_arcs,
    rnnt_loss,
)

STEP = 1e-5  # of the finite differences


TRANSDUCERS: dict[str, dict[str, Any]] = {
    "multiblank": {"big_blank_durations": (2,)},
    "TDT": {"durations": (1, 2)},
}
OPTIONS: dict[str, Any] = {}


@pytest.fixture(autouse=True, params=TRANSDUCERS)
def of_each_transducer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "OPTIONS", TRANSDUCERS[request.param])


def loss(logits: jax.Array) -> jax.Array:
    """Of flat logits `[T, U+1, V]` = [4, 3, 5] with padding, by the twin."""
    labels = np.array([0, 1], np.int32), np.int32(2), np.int32(1)
    return criterion(**OPTIONS, implementation="xla")(logits.reshape(4, 3, 5), *labels)


def gradient(logits: jax.Array) -> jax.Array:
    return jax.jit(jax.grad(loss))(logits)


@pytest.fixture(params=["plain", "masked"])
def point(request: pytest.FixtureRequest) -> jax.Array:
    """Padded with NaN. Masked: -inf for a class everywhere and for all of a node."""
    logits = random_case(63, (), 4, 2, 5).logits
    logits[2:], logits[:, 2:] = np.nan, np.nan
    if request.param == "masked":
        logits[..., 1] = -np.inf
        logits[1, 0, :3] = -np.inf
    return jnp.asarray(logits.ravel())


@pytest.fixture
def direction() -> jax.Array:
    return jnp.asarray(np.random.default_rng(64).normal(size=60))


@pytest.mark.parametrize("way", ["jvp", "linearize", "jacfwd"])
def test_forward_mode(point: jax.Array, direction: jax.Array, way: str) -> None:
    slopes = {
        "jvp": lambda x: jax.jvp(loss, (x,), (direction,))[1],
        "linearize": lambda x: jax.linearize(loss, x)[1](direction),
        "jacfwd": lambda x: jax.jacfwd(loss)(x) @ direction,
    }
    slope = jax.jit(slopes[way])(point)
    assert_close(slope, gradient(point) @ direction, 1e-13)


def test_hessian(point: jax.Array, direction: jax.Array) -> None:
    hessian = jax.jit(jax.hessian(loss))(point)
    differences = gradient(point + STEP * direction) - gradient(point - STEP * direction)
    assert_close(hessian @ direction, differences / (2 * STEP), 1e-8)
    assert_close(hessian, hessian.T, 1e-13)
    assert np.max(np.abs(hessian)) > 0.01


@pytest.mark.parametrize("order", ["forward over reverse", "reverse over reverse"])
def test_hessian_vector_product(point: jax.Array, direction: jax.Array, order: str) -> None:
    products = {
        "forward over reverse": lambda x: jax.jvp(jax.grad(loss), (x,), (direction,))[1],
        "reverse over reverse": jax.grad(lambda x: jax.grad(loss)(x) @ direction),
    }
    differences = gradient(point + STEP * direction) - gradient(point - STEP * direction)
    product = jax.jit(products[order])(point)
    assert_close(product, differences / (2 * STEP), 1e-8)


def test_hessian_where_elements_of_the_gradient_vanish() -> None:
    """Uniform logits, as an untrained model may give: both paths are equally likely."""

    def loss(logits: jax.Array) -> jax.Array:
        return rnnt_loss(logits.reshape(2, 2, 2), np.array([0], np.int32), implementation="xla")

    gradient, point = jax.jit(jax.grad(loss)), jnp.zeros(8)
    assert gradient(point)[0] == 0
    columns = [
        (gradient(point.at[i].set(STEP)) - gradient(point.at[i].set(-STEP))) / (2 * STEP)
        for i in range(8)
    ]
    assert_close(jax.jit(jax.hessian(loss))(point), np.stack(columns, -1), 1e-8)


@pytest.mark.parametrize("order", ["forward over reverse", "reverse over reverse"])
def test_kernels_say_what_to_use_instead(order: str) -> None:
    case = random_case(67, ())

    def loss(logits: jax.Array) -> jax.Array:
        return criterion(**OPTIONS, implementation="ffi")(logits, *case[1:])

    gradient = jax.grad(loss)
    derivatives = {
        "forward over reverse": lambda x: jax.jvp(gradient, (x,), (x,)),
        "reverse over reverse": jax.grad(lambda x: gradient(x).sum()),
    }
    with pytest.raises((NotImplementedError, TypeError), match=r"implementation=.xla."):
        derivatives[order](jnp.asarray(case.logits))


def forward_mode(loss: Any, point: Any) -> dict[str, Any]:
    """Ways of asking for a forward derivative."""

    def jvp(f: Any) -> Any:
        return jax.jvp(f, (point,), (point,))

    return {
        "jvp": lambda: jvp(loss),
        "jvp of jit": lambda: jvp(jax.jit(loss)),
        "jit of jvp": lambda: jax.jit(lambda: jvp(loss))(),
        "linearize": lambda: jax.linearize(loss, point)[1](point),
        "jacfwd": lambda: jax.jacfwd(loss)(point),
        "hessian": lambda: jax.hessian(loss)(point),
    }


@pytest.mark.parametrize("way", list(forward_mode(None, None)))
def test_forward_mode_through_the_kernels_says_what_to_use_instead(way: str) -> None:
    def kernels(logits: jax.Array) -> jax.Array:
        return criterion(**OPTIONS, implementation="ffi")(logits, jnp.array([0, 1]))

    with pytest.raises(NotImplementedError, match="implementation='xla'"):
        forward_mode(kernels, jax.random.normal(jax.random.key(0), (3, 3, 5)))[way]()


@pytest.mark.parametrize("stage", ["arc_log_probs", "lattice_loss"])
def test_forward_mode_through_a_stage_says_what_to_use_instead(stage: str) -> None:
    logits, labels = jnp.zeros((3, 3, 5)), jnp.array([1, 2])
    stages = {
        "arc_log_probs": lambda x: MultiblankRNNT(implementation="ffi").arc_log_probs(x, labels),
        "lattice_loss": lambda x: lattice_loss(x[..., :2], arcs=rnnt_arcs(), implementation="ffi"),
    }
    with pytest.raises(NotImplementedError, match="implementation='xla'"):
        jax.jvp(stages[stage], (logits,), (logits,))
