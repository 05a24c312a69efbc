"""What the chunked loss of a joint network compiles to, and JAX's transformations of it."""

import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Implementation, row
from jax_mbrnnt import (
    multiblank_rnnt_joint_loss,
)
from joints import (
    KERNELS,
    B,
    H,
    Problem,
    T,
    V,
    assert_trees_close,
    chunked,
    losses_and_gradients,
    make_problem,
    nodes,
    whole,
    with_biases,
)

# ---- what is computed, and what is not -------------------------------------------------------


def counting(counted: list[int]) -> Any:
    def joint(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: counted.append(1), encoded.ravel()[0])
        return with_biases(params, encoded, predicted)

    return joint


@pytest.mark.parametrize("lengths", [[5, 2, 1], [12, 3, 3], [0, 0, 0], [1, 13, 1]], ids=str)
def test_stops_at_the_longest_utterance(lengths: list[int]) -> None:
    """A length out of range is a NaN gradient of all frames: all chunks."""
    problem = make_problem(12)
    problem = problem._replace(
        encoded=jnp.concatenate([problem.encoded] * 2, axis=1)[:, :12],
        logit_lengths=jnp.array(lengths),
    )
    counted: list[int] = []
    actual = losses_and_gradients(chunked, counting(counted), problem, chunk_frames=2)
    jax.effects_barrier()
    longest = max(n if n <= 12 else 12 for n in lengths)
    assert len(counted) == 2 * -(-longest // 2)  # forward and backward
    assert_trees_close(actual, losses_and_gradients(whole, with_biases, problem), 1e-12)


def test_loop_under_vmap_is_as_long_as_the_longest() -> None:
    """One loop for all that are mapped, of a length that is not."""
    problem = make_problem(13)._replace(logit_lengths=jnp.array([4, 2, 3]))

    def one(encoded: jax.Array, *rest: jax.Array) -> jax.Array:
        return chunked(with_biases, Problem(problem.params, encoded, *rest), chunk_frames=2)

    def total(encoded: jax.Array) -> jax.Array:
        return jax.vmap(one)(encoded, *problem[2:]).sum()

    loops = list(while_loops(jax.make_jaxpr(jax.grad(total))(problem.encoded).jaxpr))
    assert len(loops) == 2  # forward and backward
    for loop in loops:
        integers = [x.aval.shape for x in loop.outvars if x.aval.dtype == jnp.int32]
        assert set(integers) == {()}


def while_loops(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from while_loops(inner)


def test_joint_is_traced_with_chunks_alone() -> None:
    shapes = []

    def joint(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        shapes.append(encoded.shape)
        return with_biases(params, encoded, predicted)

    losses_and_gradients(chunked, joint, make_problem(14), chunk_frames=4)
    assert set(shapes) == {(B, 1, H), (B, 4, H)}


def test_memory_is_that_of_a_chunk(pytestconfig: pytest.Config) -> None:
    """Nothing as large as the logits of all frames, and few things as large as a chunk's."""
    if pytestconfig.getoption("backend") != "cpu":
        pytest.skip("libraries' and the emulator's workspaces are not ours; see test_h100.py")
    b, t, u, v, h, c = 2, 64, 15, 512, 8, 4
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    params = zeros((h, v))
    operands = zeros((b, t, h)), zeros((b, u + 1, h))
    labels = jnp.zeros((b, u), jnp.int32)

    def joint(params: jax.Array, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        e, p = nodes(encoded, predicted)
        return jnp.tanh(e + p) @ params

    def mean(*floats: jax.Array) -> jax.Array:
        options = {"big_blank_durations": (2, 4, 8), "chunk_frames": c}
        return multiblank_rnnt_joint_loss(joint, *floats, labels, **options).mean()

    step = jax.jit(jax.value_and_grad(mean, argnums=(0, 1, 2)))
    program = step.lower(params, *operands).compile()
    shapes = re.findall(r"\w+\[([\d,]+)\]", program.as_text())
    sizes = {int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}
    chunk = b * c * (u + 1) * v
    assert max(sizes) == chunk
    logits_bytes, chunk_bytes = 4 * b * t * (u + 1) * v, 4 * chunk
    # On a CPU the gradient does not overwrite the logits, and is transposed for the weights'.
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary <= 3 * chunk_bytes + 0.05 * logits_bytes


def test_default_chunk_is_bounded_in_bytes() -> None:
    from jax_mbrnnt import _joint_loss as module

    shapes = []

    def joint(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        shapes.append(encoded.shape)
        return jnp.zeros((1, encoded.shape[1], 11, 1024), jnp.float32) + params

    arguments = jnp.float32(0), jnp.zeros((1, 1000, 1)), jnp.zeros((1, 11, 1))
    labels = jnp.zeros((1, 10), jnp.int32)
    jax.eval_shape(lambda *floats: multiblank_rnnt_joint_loss(joint, *floats, labels), *arguments)
    wanted = module.CHUNK_BYTES.get(jax.default_backend(), module.OTHER_CHUNK_BYTES)
    wanted //= 11 * 1024 * 4
    (frames,) = {shape[1] for shape in shapes} - {1}
    assert 0.9 * wanted <= frames <= wanted


# ---- random keys --------------------------------------------------------------------------------


def with_dropout(params: Any, encoded: Any, predicted: jax.Array) -> jax.Array:
    e, p = nodes(encoded["hidden"], predicted)
    hidden = jnp.tanh(e + p)
    draw = functools.partial(jax.random.bernoulli, p=0.7, shape=hidden.shape[2:])
    kept = jax.vmap(jax.vmap(draw))(encoded["key"])
    return jnp.where(kept, hidden / 0.7, 0) @ params["out"]


@pytest.mark.parametrize("chunk_frames", [1, 3, 7])
def test_dropout(chunk_frames: int, implementation: Implementation) -> None:
    """A key for each frame: the same masks in chunks of any size, forward and backward."""
    problem = make_problem(15)
    keys = jax.random.split(jax.random.key(3), (B, T))

    losses = {}
    for name, loss in (("whole", whole), ("chunked", chunked)):
        options: dict[str, Any] = {"implementation": implementation}
        if name == "chunked":
            options["chunk_frames"] = chunk_frames

        def total(params: Any, hidden: jax.Array, keys: jax.Array) -> jax.Array:
            encoded = {"hidden": hidden, "key": keys}
            filled = problem._replace(params=params, encoded=encoded)
            return loss(with_dropout, filled, **options).sum()  # noqa: B023 - called at once

        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        losses[name] = step(problem.params, problem.encoded, keys)
        other = step(problem.params, problem.encoded, jax.random.split(jax.random.key(4), (B, T)))
        assert abs(other[0] - losses[name][0]) > 1e-3
    assert_trees_close(losses["chunked"], losses["whole"], 1e-12)


# ---- JAX's transformations ---------------------------------------------------------------------


def expected_of(problem: Problem) -> Any:
    return losses_and_gradients(whole, with_biases, problem, implementation="ffi")


def gradient_of_sum(loss: Callable[[Problem], jax.Array], problem: Problem) -> Any:
    """By params, encoded and predicted, jitted."""

    def total(*floats: Any) -> jax.Array:
        return loss(Problem(*floats, *problem[3:])).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*problem[:3])


def chunked_by(**options: Any) -> Callable[[Problem], jax.Array]:
    return lambda problem: chunked(with_biases, problem, chunk_frames=3, **options)


def whole_sum_gradient(problem: Problem) -> Any:
    return gradient_of_sum(lambda p: whole(with_biases, p), problem)


def test_vmap_over_utterances(implementation: Implementation) -> None:
    problem = make_problem(16)

    def mapped(problem: Problem) -> jax.Array:
        loss = chunked_by(implementation=implementation)
        return jax.vmap(lambda *rest: loss(Problem(problem.params, *rest)))(*problem[1:])

    assert_trees_close(gradient_of_sum(mapped, problem), whole_sum_gradient(problem), 1e-12)


def test_vmap_of_grad_over_params() -> None:
    """Two models at once."""
    problem = make_problem(17)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), problem.params)

    def gradient(params: Any) -> Any:
        return gradient_of_sum(chunked_by(), problem._replace(params=params))

    actual = jax.jit(jax.vmap(gradient))(stacked)
    for i in range(2):
        params = jax.tree.map(lambda x: x[i], stacked)  # noqa: B023 - called at once
        expected = whole_sum_gradient(problem._replace(params=params))
        assert_trees_close(jax.tree.map(lambda x: x[i], actual), expected, 1e-12)  # noqa: B023


def test_nested_vmap() -> None:
    problem = make_problem(18, batch=(2, 3))

    def mapped(problem: Problem) -> jax.Array:
        def one(*rest: jax.Array) -> jax.Array:
            return chunked_by()(Problem(problem.params, *rest))

        return jax.vmap(jax.vmap(one))(*problem[1:])

    assert_trees_close(gradient_of_sum(mapped, problem), whole_sum_gradient(problem), 1e-12)


@KERNELS
@pytest.mark.parametrize("transform", ["jit", "checkpoint", "scan", "eager", "disable_jit"])
def test_transforms(transform: str, implementation: Implementation) -> None:
    problem = make_problem(19)
    loss = chunked_by(implementation=implementation)
    expected = whole_sum_gradient(problem)
    if transform == "scan":

        def scanned(problem: Problem) -> jax.Array:
            def step(total: jax.Array, one: Any) -> tuple[jax.Array, None]:
                return total + loss(Problem(problem.params, *one)), None

            return jax.lax.scan(step, jnp.zeros(()), problem[1:])[0]

        actual = gradient_of_sum(scanned, problem)
    elif transform == "checkpoint":
        actual = gradient_of_sum(jax.checkpoint(loss), problem)
    elif transform == "jit":
        actual = gradient_of_sum(jax.jit(loss), problem)
    else:
        total = lambda *floats: loss(Problem(*floats, *problem[3:])).sum()  # noqa: E731
        if transform == "disable_jit":
            with jax.disable_jit():
                actual = jax.grad(total, argnums=(0, 1, 2))(*problem[:3])
        else:
            actual = jax.grad(total, argnums=(0, 1, 2))(*problem[:3])
    assert_trees_close(actual, expected, 1e-12)


@pytest.mark.parametrize("where", ["jit", "eager", "scan"])
def test_joint_that_closes_over_params(where: str, implementation: Implementation) -> None:
    """Traced values that a joint closes over count as its params."""
    problem = make_problem(20)
    keys = jax.random.split(jax.random.key(0), 1)

    def total(params: Any, scale: jax.Array, keys: jax.Array, loss: Any) -> jax.Array:
        noise = jax.random.normal(keys[0], (V,))

        def joint(_: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
            drawn = jax.random.normal(keys[0], (V,))  # a key that is closed over
            logits = scale * with_biases(params, encoded, predicted)
            return logits + row(noise + drawn, logits)

        return loss(joint, problem._replace(params=()), implementation=implementation).sum()

    def gradient(loss: Any) -> Any:
        by = jax.grad(functools.partial(total, loss=loss), argnums=(0, 1))
        operands = problem.params, jnp.asarray(1.5), keys
        if where == "eager":
            return by(*operands)
        if where == "jit":
            return jax.jit(by)(*operands)

        def scanned(params: Any, scale: jax.Array, keys: jax.Array) -> Any:
            def step(carry: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
                return carry + total(params, scale, key[None], loss), None

            return jax.lax.scan(step, jnp.zeros(()), keys)[0]

        return jax.jit(jax.grad(scanned, argnums=(0, 1)))(*operands)

    chunks = functools.partial(chunked, chunk_frames=3)
    assert_trees_close(gradient(chunks), gradient(whole), 1e-12)


def test_repeated_steps_compile_nothing(caplog: pytest.LogCaptureFixture) -> None:
    problem = make_problem(21)
    jitted_loss = jax.jit(lambda problem: chunked(with_biases, problem, chunk_frames=3))

    def step() -> None:
        jax.block_until_ready(jitted_loss(problem))

    step()
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        step()
    assert [r.getMessage() for r in caplog.records if "ompiling" in r.getMessage()] == []


def test_kernels_name_the_way_to_other_derivatives() -> None:
    problem = make_problem(22)

    def total(params: Any) -> jax.Array:
        return chunked(with_biases, problem._replace(params=params)).sum()

    with pytest.raises(NotImplementedError, match="implementation='xla'"):
        jax.jvp(total, (problem.params,), (problem.params,))
    with pytest.raises(NotImplementedError, match="implementation='xla'"):
        jax.jacfwd(jax.grad(total))(problem.params)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("jvp", {}),
        ("forward over reverse", {}),
        ("forward over reverse", {"blank_id": 4, "durations": (0, 1, 3)}),
        ("reverse over reverse", {}),
    ],
    ids=str,
)
def test_other_derivatives_in_pure_jax(kind: str, options: dict[str, Any]) -> None:
    problem = make_problem(23)
    directions = make_problem(24)[:3]
    options = {**options, "implementation": "xla"}

    def derivative(loss: Any) -> Any:
        def total(*floats: Any) -> jax.Array:
            return loss(with_biases, Problem(*floats, *problem[3:]), **options).sum()

        gradient = jax.grad(total, argnums=(0, 1, 2))
        if kind == "jvp":
            run = lambda x, d: jax.jvp(total, x, d)[1]  # noqa: E731
        elif kind == "forward over reverse":
            run = lambda x, d: jax.jvp(gradient, x, d)[1]  # noqa: E731
        else:
            run = lambda x, d: jax.vjp(gradient, *x)[1](d)  # noqa: E731
        return jax.jit(run)(problem[:3], directions)

    chunks = functools.partial(chunked, chunk_frames=3)
    assert_trees_close(derivative(chunks), derivative(whole), 1e-10)
