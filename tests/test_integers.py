"""Labels and lengths in any dtype of integers: do all functions widen before they compare?"""

import contextlib
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from cases import Case, Implementation, assert_close, random_case
from jax_mbrnnt import (
    GreedyDecoding,
    MultiblankRNNT,
    greedy_decode,
    multiblank_rnnt_loss,
    rnnt_loss,
)


@contextlib.contextmanager
def x64(allowed: bool) -> Iterator[None]:
    """JAX's own context manager goes by another name in every version."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", allowed)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integers_will_do(dtype: str, implementation: Implementation) -> None:
    case = random_case(35)
    narrow = Case(case.logits, *(operand.astype(dtype) for operand in case[1:]))
    losses = multiblank_rnnt_loss(*narrow, big_blank_durations=(2,), implementation=implementation)
    expected = multiblank_rnnt_loss(*case, big_blank_durations=(2,), implementation=implementation)
    np.testing.assert_array_equal(losses, expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("size", [127, 128, 129, 255, 256, 257])
def test_axes_that_a_narrow_integer_cannot_count(
    size: int, dtype: str, implementation: Implementation
) -> None:
    """Frames, labels or classes; the labels in padding are what they like."""
    for T, U, V in [(size, 2, 4), (2, size, 4), (2, 2, size)]:
        case = random_case(36, (2,), T, U, V, dtype=np.float32)
        case = case._replace(
            labels=np.where(np.arange(U) < 2, case.labels % 3, 3),
            logit_lengths=np.array([1, 2]),
            label_lengths=np.array([2, 1]),
        )
        narrow = Case(case.logits, *(x.astype(dtype) for x in case[1:]))
        expected = rnnt_loss(*case, implementation=implementation)
        assert np.all(np.isfinite(expected))
        np.testing.assert_array_equal(rnnt_loss(*narrow, implementation=implementation), expected)
        loss = jax.jit(checkify.checkify(MultiblankRNNT().checked))
        error, losses = loss(*map(jnp.asarray, narrow))
        assert error.get() is None
        assert_close(losses, expected, 1e-6)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("argument", Case._fields[1:])
@pytest.mark.parametrize("wide", [False, True])
def test_integers_beyond_32_bits_are_seen_before_they_wrap(
    argument: str, dtype: str, wide: bool
) -> None:
    with x64(wide):
        case = Case(np.zeros((1, 2, 2, 3), np.float32), *(np.array(x) for x in ([[0]], [1], [1])))
        huge = np.full(getattr(case, argument).shape, 2**32, dtype)
        with pytest.raises(ValueError, match=rf"{argument}\[0.*got {2**32}"):
            rnnt_loss(*case._replace(**{argument: huge}))
        with pytest.raises(ValueError, match=rf"{argument}\[0.*got {2**32}"):
            jax.jit(lambda x: rnnt_loss(x, *case._replace(**{argument: huge})[1:]))(case.logits)
        found = rnnt_loss(*(x.tolist() for x in case))
        assert_close(found, rnnt_loss(*case), 1e-6)


def test_known_operands_are_checked_beside_traced_ones() -> None:
    """Lengths that a step closes over, say."""
    case = random_case(35)
    step = jax.jit(lambda x, labels: rnnt_loss(x, labels, np.array([6] * 3)))
    with pytest.raises(ValueError, match=r"logit_lengths\[0\]: .*got 6"):
        step(case.logits, case.labels)


def decode(encoded: jax.Array, lengths: jax.Array) -> GreedyDecoding:
    """Labels 0 to 2 by the encoder alone, one at a frame."""
    return greedy_decode(
        MultiblankRNNT(),
        lambda frame, _: frame,
        lambda labels, state: ((), state),
        encoded,
        lengths,
        initial_state=(),
        max_symbols_per_frame=1,
    )


LENGTHS = np.array([1, 100, 0])


@functools.cache
def decoded(frames: int) -> tuple[jax.Array, GreedyDecoding]:
    encoded = jax.random.normal(jax.random.key(0), (3, frames, 4), jnp.float32)
    expected = decode(encoded, LENGTHS)
    assert expected.joint_evaluations.tolist() == LENGTHS.tolist()
    return encoded, expected


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("frames", [127, 128, 255, 256, 257])
def test_decoders_frames_in_any_integers(frames: int, dtype: str) -> None:
    encoded, expected = decoded(frames)
    lengths = LENGTHS.astype(dtype)
    found = [jax.jit(decode)(encoded, lengths)]
    if frames == 256:
        found.append(decode(encoded, lengths))
    for one in found:
        jax.tree.map(np.testing.assert_array_equal, one, expected)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_decoders_lengths_beyond_32_bits(dtype: str) -> None:
    encoded = jnp.zeros((1, 5, 4), jnp.float32)
    message = rf"logit_lengths\[0\]: .*got {2**32 + 1}"
    with x64(False), pytest.raises(ValueError, match=message):
        decode(encoded, np.array([2**32 + 1], dtype))
    found = jax.jit(decode)(encoded, np.array([2**32 + 1], dtype))
    assert np.isnan(found.log_probs[0])
