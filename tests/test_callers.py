"""What becomes of a caller's functions: traced at every call, and not held by us afterwards."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Implementation, assert_close
from jax_mbrnnt import (
    GreedyDecoding,
    MultiblankRNNT,
    greedy_decode,
    multiblank_rnnt_joint_loss,
    rnnt_loss,
)

B, T, U, V, H = 2, 3, 2, 9, 4
KEYS = jax.random.split(jax.random.key(0), 2)
ENCODED = jax.random.normal(KEYS[0], (B, T, H), jnp.float32)
PREDICTED = jax.random.normal(KEYS[1], (B, U + 1, H), jnp.float32)
LABELS = jnp.array([[1, 2], [3, 0]])
WEIGHTS = [jnp.ones((H, V), jnp.float32), jnp.arange(H * V, dtype=jnp.float32).reshape(H, V) / 10]


class Model:
    """The weights are an attribute: what a module of any library comes down to."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def joint(self, params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return jnp.tanh(encoded[:, :, None] + predicted[:, None]) @ self.weights

    def loss(self, implementation: Implementation | None = None) -> jax.Array:
        operands = (), ENCODED, PREDICTED, LABELS
        return multiblank_rnnt_joint_loss(
            self.joint, *operands, implementation=implementation
        ).sum()

    def decode(self) -> GreedyDecoding:
        def joint(frame: jax.Array, prediction: jax.Array) -> jax.Array:
            return jnp.tanh(frame + prediction) @ self.weights

        def predict(labels: jax.Array, state: Any) -> tuple[jax.Array, Any]:
            return jnp.asarray(self.weights).T[labels], state

        return greedy_decode(MultiblankRNNT(), joint, predict, ENCODED, initial_state=())


def expected(weights: jax.Array) -> jax.Array:
    logits = Model(weights).joint((), ENCODED, PREDICTED)
    return rnnt_loss(logits, LABELS).sum()


def with_new_weights(model: Model, function: Callable[[], Any]) -> Iterator[tuple[Any, jax.Array]]:
    for weights in WEIGHTS:
        model.weights = weights
        yield function(), weights


def test_the_losses_of_an_attribute_that_changes(implementation: Implementation) -> None:
    model = Model(None)
    joint = model.joint  # the same function at every call

    def loss() -> jax.Array:
        operands = (), ENCODED, PREDICTED, LABELS
        return multiblank_rnnt_joint_loss(joint, *operands, implementation=implementation).sum()

    for value, weights in with_new_weights(model, loss):
        assert_close(value, expected(weights), 1e-6)


def test_a_global_and_the_cell_of_a_closure(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = None

    def joint(_: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return GLOBAL.joint((), encoded, predicted) @ cell

    for weights in WEIGHTS:
        for cell in (jnp.eye(V, dtype=jnp.float32), 2 * jnp.eye(V, dtype=jnp.float32)):
            monkeypatch.setitem(globals(), "GLOBAL", Model(weights))
            value = multiblank_rnnt_joint_loss(joint, (), ENCODED, PREDICTED, LABELS).sum()
            assert_close(value, expected(weights @ cell), 1e-6)


GLOBAL: Any = None


def test_two_settings_within_one_jit() -> None:
    model = Model(None)

    @jax.jit
    def both(first: jax.Array, second: jax.Array) -> list[jax.Array]:
        losses = []
        for model.weights in (first, second):
            losses.append(model.loss())
        model.weights = None  # a traced value is not to be left behind
        return losses

    for value, weights in zip(both(*WEIGHTS), WEIGHTS, strict=True):
        assert_close(value, expected(weights), 1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_gradients_by_an_attribute(jit: bool, implementation: Implementation) -> None:
    """What the function sets is traced, and must not be left behind in anything of ours."""
    model = Model(None)

    def loss(weights: jax.Array) -> jax.Array:
        model.weights = weights
        value = model.loss(implementation)
        model.weights = None  # a traced value is not to be left behind
        return value

    step = jax.value_and_grad(loss)
    step = jax.jit(step) if jit else step
    for weights in (*WEIGHTS, *WEIGHTS):
        value, gradient = step(weights)
        expected_value, expected_gradient = jax.value_and_grad(expected)(weights)
        assert_close(value, expected_value, 1e-6)
        assert_close(gradient, expected_gradient, 1e-5)


def test_training_a_module_of_flax_without_jit() -> None:
    nnx = pytest.importorskip("flax.nnx", reason="needs the extra `examples`")
    model = nnx.Linear(H, V, rngs=nnx.Rngs(0))

    def joint_of(model: Any) -> Any:
        return lambda _, e, p: model(jnp.tanh(e[:, :, None] + p[:, None]))

    def loss(model: Any) -> jax.Array:
        return multiblank_rnnt_joint_loss(joint_of(model), (), ENCODED, PREDICTED, LABELS).sum()

    joint = joint_of(model)  # the same function at every step

    def step(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return x - 0.01 * gradient

    losses = []
    with jax.numpy_rank_promotion("allow"):  # of the module's bias
        for _ in range(3):
            losses.append(
                float(multiblank_rnnt_joint_loss(joint, (), ENCODED, PREDICTED, LABELS).sum())
            )
            whole = rnnt_loss(joint((), ENCODED, PREDICTED), LABELS).sum()
            assert_close(losses[-1], whole, 1e-6)
            gradients = nnx.grad(loss)(model)
            nnx.update(model, jax.tree.map(step, nnx.state(model), gradients))
    assert losses[0] > losses[1] > losses[2]


def test_a_joint_need_not_be_hashable() -> None:
    class Unhashable(list):
        def __call__(self, *operands: Any) -> jax.Array:
            return Model(WEIGHTS[1]).joint(*operands)

    value = multiblank_rnnt_joint_loss(Unhashable(), (), ENCODED, PREDICTED, LABELS).sum()
    assert_close(value, expected(WEIGHTS[1]), 1e-6)


def test_the_decoder_sees_what_has_changed() -> None:
    model = Model(None)
    for found, weights in with_new_weights(model, model.decode):
        fresh = Model(weights).decode()
        jax.tree.map(np.testing.assert_array_equal, found, fresh)
    assert not np.array_equal(found.log_probs, Model(WEIGHTS[0]).decode().log_probs)


def of_joint(model: Model) -> None:
    jax.block_until_ready(model.loss())


def of_gradient(model: Model) -> None:
    def loss(weights: jax.Array) -> jax.Array:
        return Model(model.weights + weights).loss()

    jax.block_until_ready(jax.value_and_grad(loss)(jnp.zeros_like(model.weights)))


def of_decoder(model: Model) -> None:
    jax.block_until_ready(model.decode())


@pytest.mark.parametrize("call", [of_joint, of_gradient, of_decoder])
def test_nothing_is_held_afterwards(call: Callable[[Model], None]) -> None:
    """Neither the function nor an array that it reads; `jax.clear_caches` is not called."""
    held = []
    for i in range(4):
        model = Model(WEIGHTS[1] + i)
        held += [weakref.ref(model), weakref.ref(model.weights)]
        call(model)
        del model
    gc.collect()
    assert [ref() for ref in held if ref() is not None] == []
