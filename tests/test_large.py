"""Are logits addressed by more than 32 bits?"""

import mmap

import jax
import jax.numpy as jnp
import numpy as np

from jax_mbrnnt import rnnt_loss


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
