"""Is the loss of a joint network, a chunk of frames at a time, that of all its logits?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Implementation, assert_close, row
from jax_mbrnnt import (
    MultiblankRNNT,
    multiblank_rnnt_joint_loss,
    multiblank_rnnt_loss,
    rnnt_loss,
)
from joints import (
    JOINTS,
    KERNELS,
    OPTIONS,
    B,
    Problem,
    T,
    U,
    V,
    assert_equals_whole,
    assert_trees_close,
    chunked,
    losses_and_gradients,
    losses_and_gradients_of,
    make_problem,
    nodes,
    whole,
    with_biases,
)

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
