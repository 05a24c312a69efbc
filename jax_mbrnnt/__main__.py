"""`python -m jax_mbrnnt` says what was found: for bug reports, and before a long training."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator

import jax

from jax_mbrnnt import __version__, _checks, _ffi

# The oldest driver for what a CUDA compiled: https://docs.nvidia.com/deploy/cuda-compatibility/
_LEAST_DRIVER = {12: "525.60.13", 13: "580"}


def _cuda(version: int) -> str:
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


def _kernels() -> Iterator[str]:
    cpu, cuda = _ffi.MODULES["cpu"], _ffi.MODULES.get("cuda")
    yield f"CPU, {cpu.instruction_set()}"
    if cuda is None:
        yield "none for CUDA: built without nvcc"
        return
    major = cuda.cuda_version // 1000
    least = _LEAST_DRIVER.get(major, "unknown")
    driver = cuda.driver_cuda_version()
    yield (
        f"CUDA, for {cuda.architectures.replace('-real', '')}, by {_cuda(cuda.cuda_version)}; "
        f"least driver {least}, the driver here is {f'for {_cuda(driver)}' if driver else 'none'}"
    )


def _devices() -> str:
    try:
        return ", ".join(map(str, jax.devices()))
    except RuntimeError as error:  # JAX_PLATFORMS names one that cannot start
        return f"none: {error}"


def main() -> None:
    """Prints a line for each thing."""
    commit = _ffi.MODULES["cpu"].commit
    print(f"jax_mbrnnt      {__version__}{f', commit {commit}' if commit else ''}")
    for kernels in _kernels():
        print(f"kernels         {kernels}")
    print(f"implementation  {_checks.chosen_implementation(None) or 'the best there is'}")
    print(f"JAX             {jax.__version__}, jaxlib {importlib.metadata.version('jaxlib')}")
    print(f"Python          {platform.python_version()}, {platform.platform()}")
    print(f"devices         {_devices()}")


if __name__ == "__main__":
    main()
