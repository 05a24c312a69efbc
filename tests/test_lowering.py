"""What is compiled where: kernels, twins, and the guards in front of them."""

import functools
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mbrnnt import _ffi, lattice_loss, multiblank_rnnt_loss, rnnt_arcs

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


def test_environment_chooses_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_MBRNNT_IMPLEMENTATION", "xla")
    assert "jax_mbrnnt" not in lowered("cpu")
    assert _ffi.TARGETS["lattice"] in lowered("cpu", "ffi")
    arc_log_probs, lengths = jax.ShapeDtypeStruct((2, 5, 3, 2), jnp.float32), np.full(2, 2)
    lattice = functools.partial(lattice_loss, arcs=rnnt_arcs(), label_lengths=lengths)
    assert "jax_mbrnnt" not in jax.jit(lattice).lower(arc_log_probs).as_text()
    monkeypatch.setenv("JAX_MBRNNT_IMPLEMENTATION", "ffi")
    assert _ffi.TARGETS["lattice"] in lowered("cpu")
    assert "jax_mbrnnt" not in lowered("cpu", "xla")
    with pytest.raises(NotImplementedError, match="no kernel for this platform"):
        lowered("tpu")
    monkeypatch.setenv("JAX_MBRNNT_IMPLEMENTATION", "")
    assert _ffi.TARGETS["lattice"] in lowered("cpu")
    monkeypatch.setenv("JAX_MBRNNT_IMPLEMENTATION", "kernels")
    with pytest.raises(ValueError, match=r"JAX_MBRNNT_IMPLEMENTATION: expected .*got 'kernels'"):
        lowered("cpu")


def test_loss_without_gradient_scores_only() -> None:
    text = jax.jit(multiblank_rnnt_loss).lower(LOGITS, LABELS).as_text()
    called = {name for name, target in _ffi.TARGETS.items() if f"@{target}(" in text}
    assert called == {"arc_log_probs", "lattice_score"}


@pytest.mark.parametrize(
    ("num_frames", "columns", "of_a_node"),
    [(3, 1000, 1.34), (1000, 3, 1.34), (400, 101, 1.02), (1, 1, 8.0)],
)
def test_workspace_of_the_cpus_lattice(num_frames: int, columns: int, of_a_node: float) -> None:
    """One row and one column more than there are nodes, in two planes for each arc and four others:
    mantissas and exponents.
    """
    for num_arcs in (2, 5, 32):
        planes = 2 * num_arcs + 4
        numbers = _ffi.MODULES["cpu"].lattice_numbers_per_utterance(
            num_frames, columns, num_arcs, True
        )
        assert numbers <= (num_frames + 1) * (columns + 1) * planes + planes + 18
        assert numbers <= of_a_node * num_frames * columns * planes


def test_tpu_gets_the_twin() -> None:
    assert "jax_mbrnnt" not in lowered("tpu")
    assert "while" in lowered("tpu")


def test_xla_never_calls_a_kernel() -> None:
    assert "jax_mbrnnt" not in lowered("cpu", "xla")


def test_ffi_insists() -> None:
    with pytest.raises(NotImplementedError, match="no kernel for this platform"):
        lowered("tpu", "ffi")


@pytest.mark.skipif("cuda" not in _ffi.MODULES, reason="built without CUDA kernels")
def test_gpu_calls_the_kernels_in_place_and_locally() -> None:
    """Lowered here, without a GPU: the gradient overwrites the logits, no call is partitioned."""
    text = lowered("cuda")
    calls = {
        name: line
        for line in text.splitlines()
        for name, target in _ffi.TARGETS.items()
        if f"@{target}(" in line
    }
    assert calls.keys() == {"arc_log_probs", "lattice", "logit_gradients"}
    for call in calls.values():
        assert 'num_batch_dims = "1"' in call
        if getattr(jax.config, "jax_use_shardy_partitioner", True):  # older JAX has GSPMD
            assert "sdy.sharding_rule" in call
    alias = "output_operand_alias<output_tuple_indices = [{}], operand_index = 0"
    assert alias.format("") in calls["logit_gradients"]
    assert alias.format("1") in calls["lattice"]
    assert "output_operand_alias" not in calls["arc_log_probs"]


def test_gpu_without_kernels_gets_the_twin_and_one_warning() -> None:
    program = """
        import sys, warnings
        sys.modules["jax_mbrnnt._cuda"] = None  # as if it had not been built
        from test_lowering import lowered
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert "jax_mbrnnt" not in lowered("cuda")
            assert "while" in lowered("cuda")
        print([str(warning.message) for warning in caught])
        try:
            lowered("cuda", "ffi")
        except NotImplementedError as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    warned, refused = run.stdout.splitlines()
    assert warned.count("JAX_MBRNNT_CUDA=ON") == 1
    assert "no kernel for cuda" in refused


def test_newer_ffi_than_the_runtime_is_refused_at_import() -> None:
    _ffi.check_api_version(built=(0, 1), runtime=(0, 3))
    for built in ((0, 4), (1, 0)):
        with pytest.raises(ImportError, match=r"built for XLA FFI .* provides 0\.3"):
            _ffi.check_api_version(built=built, runtime=(0, 3))
