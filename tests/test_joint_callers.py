"""Who calls the loss of a joint network: Flax, and those who get something wrong."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import assert_close
from joints import (
    B,
    H,
    U,
    V,
    assert_equals_whole,
    chunked,
    make_problem,
    nodes,
    with_biases,
)

# ---- errors -------------------------------------------------------------------------------------


def bad_joint(change: Callable[[jax.Array], Any]) -> Any:
    return lambda *operands: change(with_biases(*operands))


P0 = make_problem(25)
WRONG: dict[str, tuple[Any, Any, dict[str, Any], type, str]] = {
    "no function": (*(3, P0, {}, TypeError), r"joint: expected a function, got 3"),
    "frames": (
        *(with_biases, P0._replace(encoded=P0.encoded[0]), {}, ValueError),
        r"encoded: expected shape \[batch_dims..., T, ...\] = \[3, T, ...\], got \(7, 5\)",
    ),
    "leaf": (
        with_biases,
        P0._replace(encoded={"a": P0.encoded, "b": P0.encoded[:, 1:]}),
        {},
        ValueError,
        r"encoded\['b'\]: expected shape .* = \[3, 7, ...\], got \(3, 6, 5\)",
    ),
    "nothing": (
        *(with_biases, P0._replace(encoded=()), {}, ValueError),
        r"encoded: expected an array or a pytree of arrays, got \(\)",
    ),
    "columns": (
        *(with_biases, P0._replace(predicted=P0.predicted[:, 1:]), {}, ValueError),
        r"predicted: expected shape .* = \[3, 5, ...\], got \(3, 4, 5\)",
    ),
    "labels": (
        *(with_biases, P0._replace(labels=jnp.zeros((B, U))), {}, TypeError),
        r"labels: expected an integer dtype, got float64",
    ),
    "blank as a label": (
        *(with_biases, P0._replace(labels=P0.labels.at[:, 0].set(7)), {}, ValueError),
        r"labels\[\d, 0\]: expected none of the blanks' classes \(8, 7, 6\), got 7",
    ),
    "scalar labels": (
        *(with_biases, P0._replace(labels=jnp.asarray(1)), {}, ValueError),
        r"labels: expected shape \[batch_dims..., U\], got \(\)",
    ),
    "lengths": (
        *(with_biases, P0._replace(logit_lengths=jnp.zeros(2, int)), {}, ValueError),
        r"logit_lengths: expected shape \(3,\) to match logits of the joint \(3, 7, 5, 9\)",
    ),
    "length": (
        *(with_biases, P0._replace(logit_lengths=jnp.array([1, 8, 1])), {}, ValueError),
        r"logit_lengths\[1\]: expected a value in \[0, 8\) \(T = 7\), got 8",
    ),
    "label": (
        *(with_biases, P0._replace(labels=P0.labels.at[:, 0].set(9)), {}, ValueError),
        r"labels\[\d, 0\]: expected a value in \[0, 9\) \(V = 9 classes\), got 9",
    ),
    "logits": (
        *(bad_joint(lambda x: x[:, :, 1:]), P0, {}, ValueError),
        r"joint: expected logits of shape \[batch_dims..., C, U\+1, V\] = \[3, 1, 5, V\] for C = 1 "
        r"of the frames, got \(3, 1, 4, 9\)",
    ),
    "frames of the logits": (
        *(bad_joint(lambda x: x[:, :1]), P0, {}, ValueError),
        r"joint: expected logits .* = \[3, 4, 5, V\] for C = 4 of the frames, got \(3, 1, 5, 9\)",
    ),
    "dtype": (
        *(bad_joint(lambda x: x.astype(jnp.int32)), P0, {}, TypeError),
        r"joint: expected logits of dtype float16 or .*, got int32",
    ),
    "several": (
        *(bad_joint(lambda x: (x, x)), P0, {}, TypeError),
        r"joint: expected it to return one array of logits, got \(",
    ),
    "blank": (
        *(with_biases, P0, {"blank_id": 9}, ValueError),
        r"blank_id: expected a class in \[-9, 9\)",
    ),
    "chunk": (
        *(with_biases, P0, {"chunk_frames": 0}, ValueError),
        r"chunk_frames: expected at least 1, got 0",
    ),
    "half a frame": (
        *(with_biases, P0, {"chunk_frames": 2.5}, TypeError),
        r"chunk_frames: expected an integer, got 2.5",
    ),
    "implementation": (
        *(with_biases, P0, {"implementation": "cuda"}, ValueError),
        r"implementation: expected one of",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors(wrong: str) -> None:
    joint, problem, options, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        chunked(joint, problem, **{"chunk_frames": 4, **options})


# ---- Flax ---------------------------------------------------------------------------------------


def test_flax_nnx() -> None:
    nnx = pytest.importorskip("flax.nnx", reason="needs the extra `examples`")
    problem = make_problem(26, np.float32)

    class Joint(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.hidden = nnx.Linear(H, H, rngs=rngs)
            self.output = nnx.Linear(H, V, rngs=rngs)

        def __call__(self, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
            e, p = nodes(encoded, predicted)
            return self.output(jnp.tanh(self.hidden(e) + p))

    graph, state = nnx.split(Joint(nnx.Rngs(0)))

    def joint(state: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(encoded, predicted)

    assert_equals_whole(joint, problem._replace(params=state), 1e-6, chunk_frames=3)


def test_flax_linen() -> None:
    """`Module.apply` is a joint as it is."""
    nn = pytest.importorskip("flax.linen", reason="needs the extra `examples`")
    problem = make_problem(27, np.float32)

    class Joint(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
            e, p = nodes(encoded, predicted)
            return nn.Dense(self.classes)(jnp.tanh(nn.Dense(H)(e) + p))

    model = Joint(V)
    variables = model.init(jax.random.key(0), problem.encoded, problem.predicted)
    problem = problem._replace(params=variables)
    assert_equals_whole(model.apply, problem, 1e-6, chunk_frames=3)
    first = chunked(model.apply, problem, chunk_frames=3)
    assert_close(first, chunked(Joint(V).apply, problem, chunk_frames=3), 0)
