"""Does the package's own code survive the modes in which JAX looks for mistakes?

The whole test-suite runs without rank promotion and with strict dtype promotion (conftest.py).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import Implementation
from jax_mbrnnt import MultiblankRNNT, greedy_decode, lattice_loss, rnnt_arcs

B, T, U, V, H = 3, 6, 3, 9, 4
DURATIONS = (2, 3)


def on_device(x: Any, dtype: Any) -> jax.Array:
    return jax.device_put(np.asarray(x, dtype))


RNG = np.random.default_rng(0)
LOGIT_LENGTHS, LABEL_LENGTHS = [6, 3, 0], [3, 1, 0]


def padded_with_nan(*shape: int, frames: bool, labels: bool) -> jax.Array:
    """Normal numbers `[B, T and/or U+1, ...]`."""
    x = RNG.normal(size=shape)
    for b in range(B):
        if frames:
            x[b, LOGIT_LENGTHS[b] :] = np.nan
        if labels:
            x[(b, *[slice(None)] * frames, slice(LABEL_LENGTHS[b] + 1, None))] = np.nan
    return on_device(x, np.float32)


LOGITS = padded_with_nan(B, T, U + 1, V, frames=True, labels=True)
ARCS = padded_with_nan(B, T, U + 1, 2, frames=True, labels=True)
ENCODED = padded_with_nan(B, T, H, frames=True, labels=False)
PREDICTED = padded_with_nan(B, U + 1, H, frames=False, labels=True)
WEIGHTS = on_device(RNG.normal(size=(H, V)), np.float32)
STATE = on_device(np.zeros((B, H)), np.float32)
LABELS = on_device(RNG.integers(0, V - 3, (B, U)), np.int32)
LENGTHS = on_device(LOGIT_LENGTHS, np.int32), on_device(LABEL_LENGTHS, np.int32)
ONES = on_device(np.ones(B), np.float32)
FULL_LOGITS = on_device(RNG.normal(size=LOGITS.shape), np.float32)
FULL_ENCODED = on_device(RNG.normal(size=ENCODED.shape), np.float32)


def joint(weights: jax.Array, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    return jnp.tanh(encoded[:, :, None] + predicted[:, None]) @ weights


def with_gradient(function: Callable[..., jax.Array], *operands: jax.Array) -> Any:
    losses, pullback = jax.vjp(function, *operands)
    return losses, pullback(ONES)


def decode(encoded: jax.Array, lengths: jax.Array | None) -> Any:
    return greedy_decode(
        MultiblankRNNT(big_blank_durations=DURATIONS),
        lambda frame, prediction: jnp.tanh(frame + prediction) @ WEIGHTS,
        lambda labels, state: (WEIGHTS.T[labels], state),
        encoded,
        lengths,
        initial_state=STATE,
    )


def calls(implementation: Implementation) -> dict[str, Callable[[], Any]]:
    """Without `jit`, of padded batches."""
    model = MultiblankRNNT(big_blank_durations=DURATIONS, implementation=implementation)
    utterances = LABELS, *LENGTHS

    def by_chunks(*operands: jax.Array) -> jax.Array:
        return model.joint_loss(joint, *operands, *utterances, chunk_frames=2)

    def lattice(arc_log_probs: jax.Array) -> jax.Array:
        options: dict[str, Any] = {"arcs": rnnt_arcs(), "implementation": implementation}
        return lattice_loss(arc_log_probs, *LENGTHS, **options)

    def alignment(logits: jax.Array) -> jax.Array:
        return model.alignment(logits, *utterances).log_probs

    return {
        "losses": lambda: model(LOGITS, *utterances),
        "gradients": lambda: with_gradient(lambda x: model(x, *utterances), LOGITS),
        "score_forward": lambda: model.score_forward(LOGITS, *utterances),
        "cost_and_grad": lambda: model.cost_and_grad(LOGITS, *utterances),
        "posteriors": lambda: model.posteriors(LOGITS, *utterances),
        "alignment": lambda: with_gradient(alignment, LOGITS),
        "joint": lambda: by_chunks(WEIGHTS, ENCODED, PREDICTED),
        "joint's gradients": lambda: with_gradient(by_chunks, WEIGHTS, ENCODED, PREDICTED),
        "lattice": lambda: with_gradient(lattice, ARCS),
        "all lengths": lambda: model(FULL_LOGITS, LABELS),
        "decoder": lambda: decode(ENCODED, LENGTHS[0]),
        "decoder of all frames": lambda: decode(FULL_ENCODED, None),
    }


MODES: dict[str, Callable[[], Any]] = {
    "NaN": lambda: jax.debug_nans(True),
    "infinities": lambda: jax.debug_infs(True),
    "transfers": lambda: jax.transfer_guard("disallow"),
    "leaks": lambda: jax.checking_leaks(),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
}


TO_THE_DEVICE = ("xla", "transfers", "gradients")


@functools.cache
def called(implementation: Implementation, name: str) -> Any:
    return jax.block_until_ready(calls(implementation)[name]())


@pytest.mark.parametrize("name", calls("ffi"))
@pytest.mark.parametrize("mode", MODES)
def test_eager_calls(
    mode: str, name: str, implementation: Implementation, request: pytest.FixtureRequest
) -> None:
    if jax.__version_info__ < (0, 7) and (implementation, mode, name) == TO_THE_DEVICE:
        reason = "older JAX brings the twin's constants to the device at every eager vjp"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    expected = called(implementation, name)
    with MODES[mode]():
        found = jax.block_until_ready(calls(implementation)[name]())
    # JAX's look for NaN may compile something else, whose roundings are others.
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def test_gradients_without_jit_copy_no_logits(implementation: Implementation) -> None:
    """What the backward pass needs of them is the caller's array itself."""
    model = MultiblankRNNT(implementation=implementation)
    logits = jnp.zeros((B, T, U + 1, 100), jnp.float32)
    before = sum(x.nbytes for x in jax.live_arrays())
    losses, pullback = jax.vjp(lambda x: model(x, LABELS, *LENGTHS), logits)
    jax.block_until_ready(losses)
    assert sum(x.nbytes for x in jax.live_arrays()) - before < logits.nbytes / 2
    assert pullback(ONES)[0].shape == logits.shape
