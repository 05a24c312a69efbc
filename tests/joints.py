"""Joint networks, and their losses by chunks of frames and by all logits at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import assert_close, criterion, row
from jax_mbrnnt import Transducer

B, T, U, V, H = 3, 7, 4, 9, 5
OPTIONS: dict[str, Any] = {
    "big_blank_durations": (2, 3),
    "sigma": 0.05,
    "fastemit_lambda": 0.1,
    "clamp": 0.3,
}
KERNELS = pytest.mark.parametrize("implementation", ["ffi"])


# ---- joints ------------------------------------------------------------------------------


def nodes(encoded: jax.Array, predicted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of every node, to be broadcast: `[..., C, 1, H]` and `[..., 1, U+1, H]`."""
    return encoded[..., :, None, :], predicted[..., None, :, :]


def with_biases(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    e, p = nodes(encoded, predicted)
    hidden = jnp.tanh(e @ params["w"] + p @ params["r"] + row(params["c"], e))
    return hidden @ params["out"] + row(params["b"], e)


def tied(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    """The output layer twice, and the frames' projection also that of the labels."""
    e, p = nodes(encoded, predicted)
    hidden = jnp.tanh((e + p) @ params["w"])
    return hidden @ params["out"] + (hidden @ params["w"]) @ params["out"]


def gated(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    e, p = nodes(encoded, predicted)
    gate = jax.nn.sigmoid(e @ params["w"] + p @ params["r"])
    return (gate * jnp.tanh(e) + (1 - gate) * jnp.tanh(p)) @ params["out"]


def multiplicative(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    e, p = nodes(encoded, predicted)
    return (e @ params["w"] * (p @ params["r"])) @ params["out"] + row(params["b"], e)


JOINTS = [with_biases, tied, gated, multiplicative]


class Problem(NamedTuple):
    """The operands of the loss after the joint."""

    params: Any
    encoded: Any
    predicted: Any
    labels: Any
    logit_lengths: Any
    label_lengths: Any


def make_problem(seed: int = 0, dtype: Any = np.float64, batch: tuple[int, ...] = (B,)) -> Problem:
    rng = np.random.default_rng(seed)
    shapes = {"w": (H, H), "r": (H, H), "c": (H,), "out": (H, V), "b": (V,)}
    operands = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    problem = Problem(
        operands,
        rng.normal(size=(*batch, T, H)),
        rng.normal(size=(*batch, U + 1, H)),
        rng.choice([0, 1, 5], (*batch, U)).astype(np.int32),  # no blanks in any of the tests
        rng.integers(1, T + 1, batch).astype(np.int32),
        rng.integers(0, U + 1, batch).astype(np.int32),
    )
    floats = jax.tree.map(lambda x: jnp.asarray(x, dtype), problem[:3])
    return Problem(*floats, *map(jnp.asarray, problem[3:]))


def model(**options: Any) -> Transducer:
    """Multi-blank unless there are durations of TDT's, which are three of the V scores."""
    options = {**OPTIONS, **options}
    if "durations" in options:
        del options["big_blank_durations"]
    return criterion(**options)


def chunked(joint: Any, problem: Problem, **options: Any) -> jax.Array:
    chunk_frames = options.pop("chunk_frames", None)
    return model(**options).joint_loss(joint, *problem, chunk_frames=chunk_frames)


def whole(joint: Any, problem: Problem, **options: Any) -> jax.Array:
    return model(**options)(joint(*problem[:3]), *problem[3:])


def losses_and_gradients(
    loss: Callable[..., jax.Array], joint: Any, problem: Problem, **options: Any
) -> Any:
    """Losses, and the pullback of some cotangents to params, encoded and predicted."""
    run = functools.partial(losses_and_gradients_of, loss, joint, **options)
    with jax.default_matmul_precision("highest"):  # a GPU's would be coarser than float32
        return jax.jit(run)(problem)


def losses_and_gradients_of(
    loss: Callable[..., jax.Array], joint: Any, problem: Problem, at: int = 0, **options: Any
) -> Any:
    """The same without `jit`. `at`: the number of the first utterance, for its cotangent."""
    count = int(np.prod(problem.labels.shape[:-1]))
    cotangents = np.random.default_rng(1).normal(size=at + count)[at:]

    def of(*floats: Any) -> jax.Array:
        return loss(joint, Problem(*floats, *problem[3:]), **options)

    losses, pullback = jax.vjp(of, *problem[:3])
    return losses, pullback(jnp.asarray(cotangents.reshape(losses.shape), losses.dtype))


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        assert_close(np.asarray(a, np.float64), np.asarray(e, np.float64), tolerance)


def assert_equals_whole(joint: Any, problem: Problem, tolerance: float, **options: Any) -> None:
    expected_options = {k: v for k, v in options.items() if k != "chunk_frames"}
    expected = losses_and_gradients(whole, joint, problem, **expected_options)
    actual = losses_and_gradients(chunked, joint, problem, **options)
    assert_trees_close(actual, expected, tolerance)
