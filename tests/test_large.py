"""Are logits addressed by more than 32 bits?"""

import mmap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import MultiblankRNNT, rnnt_loss


def test_utterance_behind_two_thousand_million_logits() -> None:
    """The others are empty, and the pages of memory that nobody touches are never there."""
    shape = B, T, U1, V = 1026, 8, 4, 65536
    assert (B - 1) * T * U1 * V > 2**31
    memory = mmap.mmap(-1, 2 * B * T * U1 * V)
    logits = np.frombuffer(memory, jnp.bfloat16).reshape(shape)
    logits[-1] = np.random.default_rng(80).normal(size=shape[1:]).astype(jnp.bfloat16)
    lengths = np.zeros((2, B), np.int32)
    lengths[:, -1] = T, U1 - 1

    losses = rnnt_loss(
        jax.device_put(logits, may_alias=True),
        np.zeros((B, U1 - 1), np.int32),
        *lengths,
        implementation="ffi",
    )
    alone = rnnt_loss(logits[-1], np.zeros(U1 - 1, np.int32), implementation="ffi")
    assert alone > 0
    np.testing.assert_array_equal(losses, np.append(np.zeros(B - 1, np.float32), alone))


def test_gradients_of_two_thousand_million_logits() -> None:
    """On a GPU, where they take no time. The last utterances are compared with themselves alone."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs the memory and the speed of a GPU")
    B, T, U1, V = 66, 500, 65, 1024
    assert (B - 1) * T * U1 * V > 2**31
    logits = jax.random.normal(jax.random.key(81), (B, T, U1, V), jnp.bfloat16)
    labels = jax.random.randint(jax.random.key(82), (B, U1 - 1), 0, V - 4, jnp.int32)
    step = jax.jit(
        MultiblankRNNT(big_blank_durations=(2, 4, 8), implementation="ffi").cost_and_grad
    )
    losses, gradients = step(logits, labels)
    for b in (0, B - 1):
        loss, gradient = step(logits[b], labels[b])
        np.testing.assert_array_equal(losses[b], loss)
        np.testing.assert_array_equal(gradients[b], gradient)
    assert np.all(np.isfinite(losses))
