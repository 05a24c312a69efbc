"""Do the kernels run clean under AddressSanitizer and UndefinedBehaviorSanitizer?

The CPU's as they are, the CUDA sources over the emulator of tests/simt/, which moreover must
notice when a barrier is taken out of them.
"""

import os
import pathlib
import platform
import subprocess

import pytest

import simt_module
from simt_module import ROOT, compiler

FLAGS = "-std=c++17 -g -O1 -fopenmp-simd -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
KERNELS = ["arc_log_probs.cc", "dispatch.cc", "lattice.cc", "logit_gradients.cc"]
NATIVE = ROOT / "tests" / "native"


def assert_as_expected(program: pathlib.Path, **environment: str) -> None:
    environment = {**os.environ, **environment}
    run = subprocess.run([program], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "all as expected\n"), run.stderr


def test_cpu_kernels_under_sanitizers(tmp_path: pathlib.Path) -> None:
    flags = [*FLAGS.split(), *SANITIZE.split(), f"-I{ROOT}"]
    instruction_sets = {"baseline": []}
    if platform.machine() in ("x86_64", "AMD64"):
        instruction_sets["avx2"] = ["-mavx2", "-mfma"]
        instruction_sets["avx512"] = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")]
        flags.append("-DMBRNNT_HAS_X86")

    def compile_(*arguments: str | pathlib.Path) -> None:
        subprocess.run([compiler(), *flags, *arguments], check=True)

    objects = []
    for isa, extra in instruction_sets.items():
        objects.append(tmp_path / f"loops_{isa}.o")
        source = ROOT / "cpu" / "loops.cc"
        compile_(f"-DMBRNNT_ISA={isa}", *extra, "-Wno-psabi", "-c", source, "-o", objects[-1])
    sources = [ROOT / "cpu" / name for name in KERNELS]
    program = tmp_path / "kernels_test"
    compile_(NATIVE / "kernels_test.cc", *sources, *objects, "-o", program)
    for isa in instruction_sets:  # one that this processor lacks is replaced by the baseline
        assert_as_expected(program, JAX_MBRNNT_CPU_ISA=isa)


def cuda_test(into: pathlib.Path, sources: list[pathlib.Path], *flags: str) -> pathlib.Path:
    """The CUDA kernels' test program over the emulator."""
    objects = simt_module.compile_all([NATIVE / "cuda_test.cc", *sources], into, "-O1", *flags)
    program = into / "cuda_test"
    subprocess.run([compiler(), *flags, *objects, "-o", program], check=True)
    return program


def test_cuda_kernels_under_sanitizers(tmp_path: pathlib.Path) -> None:
    assert_as_expected(cuda_test(tmp_path, simt_module.SOURCES, *SANITIZE.split()))


# In which file, what stands there, what is put in its place.
SABOTAGE = {
    "barrier between chunks": ("sweep.cu", "      __syncthreads();\n    }\n  }\n", "    }\n  }\n"),
    "lag between warps": (
        "sweep.cu",
        "own = chunk - kLag * warp",
        "own = chunk - (kLag - 1) * warp",
    ),
    "wait for copies": ("sweep.cu", "    __pipeline_wait_prior(kPrefetched - 1);\n", ""),
    "order within a row": ("logit_gradients.cu", "  group.Sync();\n  MapRow", "  MapRow"),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_sabotage_of_the_cuda_kernels_is_noticed(what: str, tmp_path: pathlib.Path) -> None:
    file, there, instead = SABOTAGE[what]
    sources = []
    for source in simt_module.SOURCES:
        if source.name == file:
            text = source.read_text()
            assert text.count(there) == 1
            source = tmp_path / file
            source.write_text(text.replace(there, instead))
        sources.append(source)
    program = cuda_test(tmp_path, sources)
    run = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert run.stdout == ""
