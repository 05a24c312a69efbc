"""Is the loss of a joint network, a chunk of frames at a time, that of all its logits?"""

import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Implementation, assert_close, criterion, row
from jax_mbrnnt import (
    MultiblankRNNT,
    Transducer,
    multiblank_rnnt_joint_loss,
    multiblank_rnnt_loss,
    rnnt_loss,
)

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


# ---- values and gradients ----------------------------------------------------------------


@pytest.mark.parametrize("joint", JOINTS)
def test_joints(joint: Any, implementation: Implementation) -> None:
    assert_equals_whole(joint, make_problem(), 1e-12, chunk_frames=3, implementation=implementation)


@KERNELS
@pytest.mark.parametrize("chunk_frames", [1, 2, 3, 4, 6, 7, 100, None])
def test_chunks(chunk_frames: int | None, implementation: Implementation) -> None:
    """Among them such as do not divide the frames, and one that is longer."""
    options = {"chunk_frames": chunk_frames, "implementation": implementation}
    assert_equals_whole(with_biases, make_problem(), 1e-12, **options)


@pytest.mark.parametrize("chunk_frames", [1, 4, 100])
def test_chunks_of_the_twin(chunk_frames: int) -> None:
    options = {"chunk_frames": chunk_frames, "implementation": "xla"}
    assert_equals_whole(with_biases, make_problem(), 1e-12, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"big_blank_durations": (), "sigma": 0.0, "fastemit_lambda": 0.0, "clamp": 0.0},
        {"big_blank_durations": (2, 20), "clamp": 0.0},
        {"blank_id": 4, "fastemit_lambda": 0.0},
        {"blank_id": 4, "durations": (0, 1, 3)},
    ],
    ids=str,
)
def test_options(options: dict[str, Any], implementation: Implementation) -> None:
    options = {**options, "chunk_frames": 3, "implementation": implementation}
    assert_equals_whole(with_biases, make_problem(1), 1e-12, **options)


@KERNELS
def test_float32(implementation: Implementation) -> None:
    options = {"chunk_frames": 2, "implementation": implementation}
    assert_equals_whole(with_biases, make_problem(2, np.float32), 1e-6, **options)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(dtype: Any, implementation: Implementation) -> None:
    """No further from float64 than all logits at once, and the gradient in the params' dtype."""
    problem = make_problem(3, dtype)
    wide = Problem(*jax.tree.map(lambda x: x.astype(jnp.float64), problem[:3]), *problem[3:])
    exact = losses_and_gradients(whole, with_biases, wide, implementation=implementation)
    at_once = losses_and_gradients(whole, with_biases, problem, implementation=implementation)
    options = {"chunk_frames": 2, "implementation": implementation}
    actual = losses_and_gradients(chunked, with_biases, problem, **options)
    assert actual[0].dtype == jnp.float32

    def error(x: jax.Array, y: jax.Array) -> float:
        return float(jnp.max(jnp.abs(x.astype(jnp.float64) - y)))

    trees = zip(*map(jax.tree.leaves, (actual, at_once, exact)), strict=True)
    for a, o, e in trees:
        assert a.dtype == o.dtype
        rounding = float(jnp.finfo(dtype).eps) * float(jnp.max(jnp.abs(e)))
        assert error(a, e) <= 2 * error(o, e) + rounding


def test_params_in_float32_of_a_bfloat16_joint() -> None:
    """Mixed precision: the logits are bfloat16, the lattice and the params' gradient float32."""
    problem = make_problem(4, np.float32)

    def joint(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        floats = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, encoded, predicted))
        return with_biases(*floats)

    assert joint(*problem[:3]).dtype == jnp.bfloat16
    losses, gradients = losses_and_gradients(chunked, joint, problem, chunk_frames=2)
    assert losses.dtype == jnp.float32
    expected = losses_and_gradients(whole, joint, problem)
    # Each chunk's share of the params' gradient is rounded to bfloat16, as that of the whole is.
    assert_trees_close((losses, gradients), expected, 0.05)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(gradients))


def test_many_chunks_are_summed_in_float32() -> None:
    """The gradient of a bfloat16 bias: 512 frames' shares of about 1 would stop growing at 256."""
    frames = 512

    def joint(bias: jax.Array, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return encoded[:, None] + predicted[None] + row(bias, encoded[None])

    operands = jnp.zeros(3, jnp.bfloat16), jnp.zeros((frames, 3)), jnp.zeros((1, 3))
    operands = jax.tree.map(lambda x: x.astype(jnp.bfloat16), operands)
    gradient = jax.jit(
        jax.grad(
            lambda *floats: multiblank_rnnt_joint_loss(
                joint, *floats, jnp.zeros((0,), jnp.int32), chunk_frames=1
            )
        )
    )(*operands)
    # A blank at every frame: the sum over the frames of 1/3, and of 1/3 - 1.
    np.testing.assert_allclose(np.asarray(gradient, np.float64), [171, 171, -341], rtol=0.01)


def test_public_names_agree() -> None:
    problem = make_problem(5)
    options = {"blank_id": 3, "fastemit_lambda": 0.2, "clamp": 0.1}
    plain = multiblank_rnnt_joint_loss(with_biases, *problem, chunk_frames=2, **options)
    assert_close(plain, rnnt_loss(with_biases(*problem[:3]), *problem[3:], **options), 1e-12)
    method = MultiblankRNNT(**OPTIONS).joint_loss(with_biases, *problem, chunk_frames=2)
    assert_close(method, whole(with_biases, problem), 1e-12)


def test_lengths_may_be_left_out() -> None:
    problem = make_problem(6)
    actual = multiblank_rnnt_joint_loss(with_biases, *problem[:4])
    assert_close(actual, multiblank_rnnt_loss(with_biases(*problem[:3]), problem.labels), 1e-12)


@pytest.mark.parametrize("batch", [(), (2, 2)], ids=str)
def test_batch_dims(batch: tuple[int, ...], implementation: Implementation) -> None:
    problem = make_problem(7, batch=batch)
    assert_equals_whole(with_biases, problem, 1e-12, chunk_frames=3, implementation=implementation)


@pytest.mark.parametrize("empty", ["frames", "batch"])
def test_nothing_to_do(empty: str, implementation: Implementation) -> None:
    problem = make_problem(8)
    if empty == "frames":
        problem = problem._replace(
            encoded=problem.encoded[:, :0],
            logit_lengths=jnp.zeros(B, jnp.int32),
            label_lengths=jnp.arange(B, dtype=jnp.int32),
        )
    else:
        problem = Problem(problem.params, *(x[:0] for x in problem[1:]))
    assert_equals_whole(with_biases, problem, 1e-12, implementation=implementation)


def test_pytrees() -> None:
    """Of what the joint needs of a frame: here also which of two output layers, an integer."""
    problem = make_problem(9)
    params = {"out": jnp.stack([problem.params["out"], -problem.params["out"]]), "unused": None}
    encoded = {"hidden": problem.encoded, "layer": jnp.arange(B * T).reshape(B, T) % 2}
    problem = problem._replace(params=params, encoded=encoded, predicted=(problem.predicted,))

    def joint(params: Any, encoded: Any, predicted: Any) -> jax.Array:
        e, p = nodes(encoded["hidden"], predicted[0])
        return jnp.einsum("btuh,bthv->btuv", jnp.tanh(e + p), params["out"][encoded["layer"]])

    def total(loss: Any, *floats: Any) -> jax.Array:
        return loss(joint, Problem(*floats, *problem[3:])).sum()

    chunks = functools.partial(chunked, chunk_frames=3)
    operands = params, encoded, problem.predicted
    by = functools.partial(jax.grad, argnums=(0, 1, 2), allow_int=True)
    actual = by(functools.partial(total, chunks))(*operands)
    expected = by(functools.partial(total, whole))(*operands)
    assert actual[1]["layer"].dtype == jax.dtypes.float0
    for gradients in (actual, expected):
        del gradients[1]["layer"]
    assert_trees_close(actual, expected, 1e-12)


# ---- the edges -----------------------------------------------------------------------------


def with_edges() -> tuple[Problem, list[str]]:
    """One utterance for each edge of the contract."""
    names = "whole short dummy impossible_empty impossible NaN_frame NaN_label NaN_in_padding"
    names += " label negative_label label_in_padding long negative long_labels negative_labels"
    edges = names.split()
    problem = make_problem(10, batch=(len(edges),))
    encoded, predicted, labels = (np.array(x) for x in problem[1:4])
    labels %= 4  # none is masked (class 4)
    logit_lengths, label_lengths = np.full(len(edges), T), np.full(len(edges), U)
    at = {name: i for i, name in enumerate(edges)}

    def lengths(name: str, frames: int, columns: int) -> None:
        logit_lengths[at[name]], label_lengths[at[name]] = frames, columns

    lengths("short", 3, 2)
    lengths("dummy", 0, 0)
    lengths("impossible_empty", 0, 2)
    encoded[at["impossible"]] = -np.inf
    encoded[at["NaN_frame"], 2, 1] = np.nan
    predicted[at["NaN_label"], 2, 1] = np.nan
    lengths("NaN_in_padding", 3, 2)
    encoded[at["NaN_in_padding"], 3:] = np.nan
    predicted[at["NaN_in_padding"], 3:] = np.nan
    labels[at["label"], 1] = V
    labels[at["negative_label"], 1] = -1
    lengths("label_in_padding", T, 2)
    labels[at["label_in_padding"], 2:] = V + 7
    lengths("long", T + 1, U)
    lengths("negative", -1, U)
    lengths("long_labels", T, U + 1)
    lengths("negative_labels", T, -1)
    operands = (encoded, predicted, labels, logit_lengths, label_lengths)
    return Problem(problem.params, *map(jnp.asarray, operands)), edges


def masking(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    """-inf encoded are not read: they mask all classes of an utterance, and one of every one."""
    e, p = nodes(jnp.where(encoded == -jnp.inf, 0, encoded), predicted)
    logits = jnp.tanh(e + p) @ params["out"]
    masked = jnp.any(encoded == -jnp.inf, axis=-1)[..., None, None]
    return jnp.where(masked | row(jnp.arange(V) == 4, logits), -jnp.inf, logits)


def test_edges(implementation: Implementation) -> None:
    """Losses and the gradients of encoded and predicted: those of the logits all at once."""
    problem, edges = with_edges()
    options: dict[str, Any] = {"implementation": implementation}
    losses, gradients = losses_and_gradients(chunked, masking, problem, chunk_frames=2, **options)
    expected, at_once = losses_and_gradients(whole, masking, problem, **options)
    padded = edges.index("NaN_in_padding")
    assert np.all(np.isfinite(gradients[1][padded]))  # there also 0 times NaN is 0
    assert np.all(gradients[1][padded, 3:] == 0)
    assert np.all(gradients[2][padded, 3:] == 0)
    same = np.arange(len(edges)) != padded
    assert_close(losses, expected, 1e-12)
    for actual, reference in zip(gradients[1:], at_once[1:], strict=True):
        assert_close(actual[same], reference[same], 1e-12)
    kinds = {name: str(float(losses[i])) for i, name in enumerate(edges)}
    assert {n for n in edges if kinds[n] == "nan"} == {
        *("NaN_frame", "NaN_label", "label", "negative_label"),
        *("long", "negative", "long_labels", "negative_labels"),
    }
    assert {n for n in edges if kinds[n] == "inf"} == {"impossible", "impossible_empty"}
    assert losses[edges.index("dummy")] == 0
    for name in ("impossible", "impossible_empty", "dummy"):
        assert np.all(gradients[1][edges.index(name)] == 0)
    for name in ("long", "negative", "long_labels", "negative_labels"):  # the whole block
        assert np.all(np.isnan(gradients[1][edges.index(name)]))
        assert np.all(np.isnan(gradients[2][edges.index(name)]))


def normalizing(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    """Its derivative is NaN at 0."""
    e, p = nodes(encoded, predicted)
    e, p = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (e, p))
    return jnp.tanh(e + p) @ params["out"]


def logarithmic(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    e, p = nodes(encoded, predicted)
    return jnp.log(jnp.abs(e)) @ params["out"] + jnp.log(jnp.abs(p)) @ params["out"]


def squaring(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    e, p = nodes(encoded, predicted)
    return jnp.tanh(e * e + p * p) @ params["out"] + (e * e) @ params["out"] * (p * p).sum(
        -1, keepdims=True
    )


def looking_up(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    """NaN where an index is out of range."""
    e, p = nodes(encoded["hidden"], predicted)
    bias = jnp.take(params["w"], encoded["speaker"], axis=0)[..., None, :]
    return jnp.tanh(e + p + bias) @ params["out"]


def with_dtype(gradient: jax.Array, x: jax.Array) -> jax.Array:
    """JAX has a dtype of its own, of no numbers, for the gradients of integers."""
    return gradient if gradient.dtype == x.dtype else jnp.zeros_like(x)


LITTER = [0.0, np.nan, np.inf, 1e200, -1e200]


@pytest.mark.parametrize("joint", [with_biases, normalizing, logarithmic, squaring, looking_up])
@pytest.mark.parametrize(
    ("lengths", "chunk_frames"), [([7, 3, 0], 2), ([0, 2, 7], 100), ([0, 0, 0], 3)], ids=str
)
def test_padding_does_not_reach_the_params(
    joint: Any, chunk_frames: int, lengths: list[int], implementation: Implementation
) -> None:
    """Whatever stands in padding, and whatever the joint makes of it: bit for bit."""
    logit_lengths = np.array(lengths)
    label_lengths = np.where(logit_lengths > 0, [2, 4, 3], 0)
    problem = make_problem(11)._replace(
        logit_lengths=jnp.asarray(logit_lengths), label_lengths=jnp.asarray(label_lengths)
    )
    frames = np.arange(T)[:, None] < logit_lengths[:, None, None]
    labels = np.arange(U + 1)[:, None] <= label_lengths[:, None, None]
    labels &= logit_lengths[:, None, None] > 0
    options = {"chunk_frames": chunk_frames, "implementation": implementation}
    step = jax.jit(lambda p: losses_and_gradients_of(chunked, joint, p, **options))
    results = []
    for value in LITTER:
        filled = problem._replace(
            encoded=jnp.where(frames, problem.encoded, value),
            predicted=jnp.where(labels, problem.predicted, value),
        )
        if joint is looking_up:
            speaker = jnp.where(frames[..., 0], 1, 1000 if value == 0 else -7)
            filled = filled._replace(encoded={"hidden": filled.encoded, "speaker": speaker})
        losses, gradients = step(filled)
        results.append((losses, jax.tree.map(with_dtype, gradients, filled[:3])))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(results[0]))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])
    # And what is not padding has the gradient that it has on its own.
    for b in np.flatnonzero(logit_lengths):
        short = jax.tree.map(lambda x: x[b : b + 1, : lengths[b]], filled.encoded)  # noqa: B023
        columns = label_lengths[b] + 1
        alone = Problem(
            filled.params,
            short,
            filled.predicted[b : b + 1, :columns],
            filled.labels[b : b + 1, : columns - 1],
            *(x[b : b + 1] for x in filled[4:]),
        )
        expected = losses_and_gradients_of(whole, joint, alone, implementation="ffi", at=b)
        assert_close(results[-1][0][b], expected[0][0], 1e-12)
        of_encoded, of_short = (
            tree["hidden"] if joint is looking_up else tree
            for tree in (results[-1][1][1], expected[1][1])
        )
        assert_close(of_encoded[b, : lengths[b]], of_short[0], 1e-10)


def test_padding_of_a_dummy_under_vmap(implementation: Implementation) -> None:
    """An utterance without frames and without any other in its batch."""
    problem = make_problem(11)._replace(
        logit_lengths=jnp.array([7, 0, 3]), label_lengths=jnp.array([2, 0, 4])
    )
    problem = problem._replace(encoded=problem.encoded.at[1].set(jnp.nan))

    def total(params: Any, implementation: Implementation) -> jax.Array:
        def one(*rest: jax.Array) -> jax.Array:
            options = {"chunk_frames": 3, "implementation": implementation}
            return chunked(normalizing, Problem(params, *rest), **options)

        return jax.vmap(one)(*problem[1:]).sum()

    gradient = jax.jit(jax.grad(functools.partial(total, implementation=implementation)))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient(problem.params)))


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
