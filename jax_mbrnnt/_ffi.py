"""Loads the kernel modules and registers their handlers with XLA."""

from __future__ import annotations

import importlib
import pathlib
import re
from types import ModuleType

import jax

_STAGES = ("arc_log_probs", "lattice", "lattice_score", "lattice_alignment", "logit_gradients")
# Versioned: two releases of the package may be loaded beside each other in one runtime.
TARGETS = {name: f"jax_mbrnnt_v3_{name}" for name in _STAGES}


def _runtime_api_version() -> tuple[int, int]:
    header = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()

    def number(part: str) -> int:
        found = re.search(rf"#define XLA_FFI_API_{part} (\d+)", header)
        if found is None:
            raise ImportError(f"jax_mbrnnt: no XLA_FFI_API_{part} in jaxlib's c_api.h")
        return int(found[1])

    return number("MAJOR"), number("MINOR")


def check_api_version(built: tuple[int, int], runtime: tuple[int, int]) -> None:
    """`ImportError` if the kernels speak a newer FFI than the runtime.

    XLA would notice only when the backend starts, and then refuse the whole backend.
    """
    if built[0] != runtime[0] or built[1] > runtime[1]:
        raise ImportError(
            f"jax_mbrnnt: the kernels were built for XLA FFI {built[0]}.{built[1]}, but the "
            f"installed jaxlib provides {runtime[0]}.{runtime[1]}. Upgrade jaxlib, or rebuild "
            "jax_mbrnnt against it (pip install --no-build-isolation --no-deps .)."
        )


def _load(module: str, platform: str) -> ModuleType | None:
    try:
        loaded = importlib.import_module(f"jax_mbrnnt.{module}")
    except ModuleNotFoundError as error:  # a module that is there but broken must be heard
        if module != "_cpu":
            return None
        raise ImportError(
            f"jax_mbrnnt: no compiled kernels beside {__file__}. If this is the source tree, "
            "install it with `pip install -e .`, or run from another directory."
        ) from error
    check_api_version(tuple(loaded.ffi_api_version), _runtime_api_version())
    for name, handler in loaded.handlers().items():
        jax.ffi.register_ffi_target(TARGETS[name], handler, platform=platform)
    return loaded


_LOADED = {"cpu": _load("_cpu", "cpu"), "cuda": _load("_cuda", "CUDA")}
MODULES = {platform: module for platform, module in _LOADED.items() if module is not None}

for _target in TARGETS.values():
    jax.ffi.register_ffi_target_as_batch_partitionable(_target)
