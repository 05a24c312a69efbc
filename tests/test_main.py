"""What `python -m jax_mbrnnt` says of an installation."""

import os
import subprocess
import sys

import jax
import pytest

import jax_mbrnnt
from jax_mbrnnt import _ffi


def told(**environment: str) -> dict[str, list[str]]:
    command = [sys.executable, "-W", "error", "-m", "jax_mbrnnt"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not run.stderr
    lines: dict[str, list[str]] = {}
    for line in run.stdout.splitlines():
        name, what = line.split(maxsplit=1)
        lines.setdefault(name, []).append(what)
    return lines


def test_what_was_found() -> None:
    lines = told()
    assert lines["jax_mbrnnt"][0].split(",")[0] == jax_mbrnnt.__version__
    assert jax.__version__ in lines["JAX"][0]
    assert lines["implementation"] == ["the best there is"]
    cpu, cuda = lines["kernels"]
    assert cpu == f"CPU, {_ffi.MODULES['cpu'].instruction_set()}"
    if "cuda" not in _ffi.MODULES:
        assert cuda == "none for CUDA: built without nvcc"
    assert "cpu:0" in lines["devices"][0]


@pytest.mark.skipif("cuda" not in _ffi.MODULES, reason="built without CUDA kernels")
def test_kernels_for_cuda() -> None:
    module = _ffi.MODULES["cuda"]
    _, cuda = told()["kernels"]
    assert module.architectures.split()[0].removesuffix("-real") in cuda
    major = module.cuda_version // 1000
    assert f"by CUDA {major}." in cuda
    assert {12: "least driver 525.60.13", 13: "least driver 580"}[major] in cuda
    if module.driver_cuda_version() == 0:
        assert cuda.endswith("the driver here is none")


def test_what_the_environment_says() -> None:
    lines = told(JAX_MBRNNT_IMPLEMENTATION="xla", JAX_MBRNNT_CPU_ISA="baseline")
    assert lines["implementation"] == ["xla"]
    assert lines["kernels"][0] == "CPU, baseline"
