"""What is compiled where: kernels, twins, and the guards in front of them."""

import warnings

import jax
import jax.numpy as jnp
import pytest

from jax_mbrnnt import _ffi, _primitives, multiblank_rnnt_loss

LOGITS = jax.ShapeDtypeStruct((2, 5, 3, 8), jnp.float32)
LABELS = jax.ShapeDtypeStruct((2, 2), jnp.int32)


def lowered(platform: str, implementation: str | None = None) -> str:
    def total(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return multiblank_rnnt_loss(
            logits, labels, big_blank_durations=(2,), implementation=implementation
        ).sum()

    step = jax.jit(jax.grad(total)).trace(LOGITS, LABELS)
    return step.lower(lowering_platforms=(platform,)).as_text()


def test_cpu_calls_the_three_kernels_of_a_gradient() -> None:
    text = lowered("cpu")
    called = {name for name, target in _ffi.TARGETS.items() if f"@{target}(" in text}
    assert called == {"arc_log_probs", "lattice", "logit_gradients"}


def test_loss_without_gradient_scores_only() -> None:
    text = jax.jit(multiblank_rnnt_loss).lower(LOGITS, LABELS).as_text()
    called = {name for name, target in _ffi.TARGETS.items() if f"@{target}(" in text}
    assert called == {"arc_log_probs", "lattice_score"}


def test_tpu_gets_the_twin() -> None:
    assert "jax_mbrnnt" not in lowered("tpu")
    assert "while" in lowered("tpu")


def test_xla_never_calls_a_kernel() -> None:
    assert "jax_mbrnnt" not in lowered("cpu", "xla")


def test_ffi_insists() -> None:
    with pytest.raises(NotImplementedError, match="no kernel for this platform"):
        lowered("tpu", "ffi")


@pytest.mark.skipif("cuda" in _ffi.MODULES, reason="built with CUDA kernels")
def test_gpu_without_kernels_gets_the_twin_and_one_warning() -> None:
    _primitives._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="JAX_MBRNNT_CUDA=ON"):
        assert "jax_mbrnnt" not in lowered("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lowered("cuda")


def test_newer_ffi_than_the_runtime_is_refused_at_import() -> None:
    _ffi.check_api_version(built=(0, 1), runtime=(0, 3))
    for built in ((0, 4), (1, 0)):
        with pytest.raises(ImportError, match=r"built for XLA FFI .* provides 0\.3"):
            _ffi.check_api_version(built=built, runtime=(0, 3))
