"""The CUDA sources as a kernel module of the CPU platform: compiled over tests/simt/, loaded."""

import concurrent.futures
import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax

ROOT = pathlib.Path(__file__).parents[1]
BUILD = ROOT / "build" / "simt"
LIBRARY = BUILD / "libsimt.so"
SIMT = ROOT / "tests" / "simt"
BINDING = SIMT / "binding.cc"
KERNELS = sorted(ROOT.glob("cuda/*.cu"))
EMULATOR = sorted(set(SIMT.glob("*.cc")) - {BINDING})
FLAGS = [
    *["-x", "c++", "-std=c++17", "-g", "-fPIC", "-fvisibility=hidden", "-pthread"],
    *["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"],  # but for #pragma unroll
    f"-I{SIMT}",
    f"-I{ROOT}",
]
# For kernels alone: every access is announced (tests/simt/races.h), `volatile` ones
# as such, by calls that return to where they were made.
ANNOUNCED = [
    "-fsanitize=thread",
    "--param=tsan-distinguish-volatile=1",
    "-fno-optimize-sibling-calls",
]
STAGES = ("arc_log_probs", "lattice", "lattice_score", "lattice_alignment", "logit_gradients")


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("c++")
    if found is None:
        raise FileNotFoundError("the CUDA sources need a C++ compiler to run on the CPU")
    return found


def compile_all(sources: list[pathlib.Path], into: pathlib.Path, *flags: str) -> list[str]:
    """Object files of `sources`, two of which are compiled at a time."""
    into.mkdir(parents=True, exist_ok=True)
    objects = [str(into / f"{source.stem}.o") for source in sources]

    def compile_one(source: pathlib.Path, object_: str) -> None:
        subprocess.run([compiler(), *FLAGS, *flags, "-c", source, "-o", object_], check=True)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources, objects))
    return objects


def build() -> None:
    headers = f"-isystem{jax.ffi.include_dir()}"
    # Kernels come first: of an inline function that others have, too, the linker takes theirs.
    objects = compile_all(KERNELS, BUILD, "-O2", *ANNOUNCED)
    objects += compile_all([*EMULATOR, BINDING], BUILD, "-O2", headers)
    subprocess.run([compiler(), "-shared", *objects, "-o", LIBRARY], check=True)


def take_the_place_of_the_cpu_kernels() -> None:
    """Must come before the package is imported, which then registers these handlers."""
    assert "jax_mbrnnt" not in sys.modules
    library = ctypes.CDLL(str(LIBRARY))
    library.simt_handler.restype = ctypes.c_void_p
    library.simt_handler.argtypes = [ctypes.c_char_p]
    lattice_numbers_per_utterance = library.simt_lattice_numbers_per_utterance
    lattice_numbers_per_utterance.restype = ctypes.c_int64
    lattice_numbers_per_utterance.argtypes = [*[ctypes.c_int64] * 3, ctypes.c_bool]

    module = types.ModuleType("jax_mbrnnt._cpu")
    handlers = {
        stage: jax.ffi.pycapsule(ctypes.c_void_p(library.simt_handler(stage.encode())))
        for stage in STAGES
    }
    version = tuple((ctypes.c_int * 2).in_dll(library, "simt_ffi_api_version"))
    vars(module).update(
        handlers=lambda: handlers,
        lattice_numbers_per_utterance=lattice_numbers_per_utterance,
        ffi_api_version=version,
    )
    sys.modules[module.__name__] = module
