"""Do the kernels run clean under AddressSanitizer and UndefinedBehaviorSanitizer?

The CPU's as they are, the CUDA sources over the emulator of tests/simt/, which moreover must
notice when a barrier is taken out of them.
"""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

import simt_module
from simt_module import ROOT, compiler

FLAGS = "-std=c++17 -g -O1 -fopenmp-simd -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
KERNELS = ["alignment.cc", "arc_log_probs.cc", "dispatch.cc", "lattice.cc", "logit_gradients.cc"]
NATIVE = ROOT / "tests" / "native"


def assert_as_expected(*command: str | pathlib.Path, **environment: str) -> str:
    """Returns what it wrote to stderr."""
    environment = {**os.environ, **environment}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("all as expected\n")
    return run.stderr


# How each of the instruction sets that cpu/dispatch.cc chooses from is compiled for.
INSTRUCTION_SETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mfma", *(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl"))]
    INSTRUCTION_SETS["avx512_bf16"] = [*INSTRUCTION_SETS["avx512"], "-mavx512bf16"]

# Registers as wide as AVX-512 has, which the compiler makes of narrower ones: its loops, but for a
# few instructions, on any processor. No emulator at hand knows AVX-512 (docs/cpu.md).
WIDE = "-DMBRNNT_VECTOR_BYTES=64"


def runs_here(isa: str) -> bool:
    flags = pathlib.Path("/proc/cpuinfo").read_text().replace("avx512_", "avx512")
    return all(flag.removeprefix("-m") in flags for flag in INSTRUCTION_SETS[isa])


def test_cpu_kernels_under_sanitizers(tmp_path: pathlib.Path) -> None:
    flags = [*FLAGS.split(), *SANITIZE.split(), f"-I{ROOT}"]
    if len(INSTRUCTION_SETS) > 1:
        flags.append("-DMBRNNT_HAS_X86")

    def compile_(*arguments: str | pathlib.Path) -> None:
        subprocess.run([compiler(), *flags, *arguments], check=True)

    objects = []
    for isa, extra in INSTRUCTION_SETS.items():
        objects.append(tmp_path / f"loops_{isa}.o")
        source = ROOT / "cpu" / "loops.cc"
        compile_(f"-DMBRNNT_ISA={isa}", *extra, "-Wno-psabi", "-c", source, "-o", objects[-1])
    sources = [ROOT / "cpu" / name for name in KERNELS]
    program = tmp_path / "kernels_test"
    compile_(NATIVE / "kernels_test.cc", *sources, *objects, "-o", program)
    for isa in filter(runs_here, INSTRUCTION_SETS):
        assert_as_expected(program, JAX_MBRNNT_CPU_ISA=isa)
    said = assert_as_expected(program, JAX_MBRNNT_CPU_ISA="avx1024")
    assert "JAX_MBRNNT_CPU_ISA=avx1024 is not for this processor" in said


def kernels_test(into: pathlib.Path, compiler: str, *flags: str) -> pathlib.Path:
    """The CPU kernels' test program with the baseline's loops alone."""
    sources = [NATIVE / "kernels_test.cc", *(ROOT / "cpu" / name for name in KERNELS)]
    sources.append(ROOT / "cpu" / "loops.cc")
    program = into / "kernels_test"
    flags = (*FLAGS.split(), "-DMBRNNT_ISA=baseline", "-Wno-psabi", f"-I{ROOT}", *flags)
    subprocess.run([compiler, *flags, *sources, "-o", program], check=True)
    return program


def test_cpu_kernels_in_wide_registers(tmp_path: pathlib.Path) -> None:
    assert_as_expected(kernels_test(tmp_path, compiler(), WIDE, *SANITIZE.split()))


def test_cpu_kernels_on_another_processor(tmp_path: pathlib.Path) -> None:
    """Registers of NEON, emulated."""
    cross = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not cross or not emulator:
        pytest.skip("no cross compiler for aarch64, or no qemu to run what it makes")
    assert_as_expected(emulator, kernels_test(tmp_path, cross, "-static"))


@pytest.mark.parametrize("isa", [*INSTRUCTION_SETS, "wide"])
def test_exp_of_every_float(isa: str, tmp_path: pathlib.Path) -> None:
    if isa != "wide" and not runs_here(isa):
        pytest.skip(f"this processor has no {isa}")
    program = tmp_path / "exp_test"
    flags = f"-std=c++17 -O3 -fno-math-errno -Wno-psabi -DMBRNNT_ISA={isa} -I{ROOT}".split()
    source = NATIVE / "exp_test.cc"
    flags += [WIDE] if isa == "wide" else INSTRUCTION_SETS[isa]
    subprocess.run([compiler(), *flags, source, "-o", program], check=True)
    assert_as_expected(program)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_oracle_with_every_instruction_set(isa: str, compilation_cache: dict[str, str]) -> None:
    """In a process of its own, since the choice is made once."""
    if not runs_here(isa):
        pytest.skip(f"this processor has no {isa}")
    if (
        isa == list(filter(runs_here, INSTRUCTION_SETS))[-1]
        and "JAX_MBRNNT_CPU_ISA" not in os.environ
    ):
        pytest.skip(f"{isa} is this processor's best, which all other tests run")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    tests = [str(ROOT / "tests" / f"test_{name}.py") for name in ("oracle", "kernels", "edges")]
    run = subprocess.run(
        [*command, *tests, "-k", "ffi or kernels"],
        cwd=ROOT / "tests",  # not the source tree, which has no kernels
        env={**os.environ, **compilation_cache, "JAX_MBRNNT_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
    assert " failed" not in run.stdout


CUDA_TEST = [NATIVE / "cuda_test.cc", *simt_module.EMULATOR]


def link(objects: list[str], program: pathlib.Path, *flags: str) -> pathlib.Path:
    subprocess.run([compiler(), *flags, *objects, "-pthread", "-o", program], check=True)
    return program


def test_cuda_kernels_under_sanitizers(tmp_path: pathlib.Path) -> None:
    sources, flags = [*simt_module.KERNELS, *CUDA_TEST], SANITIZE.split()
    objects = simt_module.compile_all(sources, tmp_path, "-O1", *flags)
    assert_as_expected(link(objects, tmp_path / "cuda_test", *flags))


class Announced(NamedTuple):
    """Object files, where every access of a kernel is announced to the race detector."""

    kernels: dict[str, str]  # by the names of their sources
    others: list[str]


def announcing(sources: list[pathlib.Path], into: pathlib.Path, *flags: str) -> dict[str, str]:
    """Kernels that announce, by the names of their sources."""
    objects = simt_module.compile_all(sources, into, "-O1", *simt_module.ANNOUNCED, *flags)
    return dict(zip((source.name for source in sources), objects, strict=True))


@pytest.fixture(scope="module")
def announced(tmp_path_factory: pytest.TempPathFactory) -> Announced:
    """What has no sabotage in it, compiled once."""
    into = tmp_path_factory.mktemp("announced")
    others = simt_module.compile_all(CUDA_TEST, into, "-O1")
    return Announced(announcing(simt_module.KERNELS, into), others)


def test_cuda_kernels_have_no_race(announced: Announced, tmp_path: pathlib.Path) -> None:
    objects = [*announced.kernels.values(), *announced.others]
    assert_as_expected(link(objects, tmp_path / "cuda_test"))


def reads(source: pathlib.Path, file: pathlib.Path, *flags: str) -> bool:
    """Whether `source` is `file` or includes it."""
    command = [compiler(), *simt_module.FLAGS, *flags, "-MM", source]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return str(file) in found.split()


# In which file, what stands there, what is put in its place.
SABOTAGE = {
    "slots for two chunks": (
        "producer.h",
        "producer.Store(loaded, slots[chunk % 2])",
        "producer.Store(loaded, slots[0])",
    ),
    "barrier before a chunk": (
        "walker.h",
        "    ptx::SyncBlock();\n    walker.Chunk(chunk);\n",
        "    walker.Chunk(chunk);\n    ptx::SyncBlock();\n",
    ),
    "order of what a warp stages": (
        "lattice.cu",
        "    __syncwarp();\n    const int64_t columns",
        "    const int64_t columns",
    ),
    "barrier after an anti-diagonal": ("alignment.cu", "    __syncthreads();\n  }", "  }"),
    "order within a row": ("logit_gradients.cu", "group.Sync();  // the row is", "// is"),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_sabotage_of_the_cuda_kernels_is_noticed(
    what: str, announced: Announced, tmp_path: pathlib.Path
) -> None:
    file, there, instead = SABOTAGE[what]
    cuda = tmp_path / "cuda"
    shutil.copytree(ROOT / "cuda", cuda, ignore=shutil.ignore_patterns("ptx.h", "binding.cc"))
    text = (cuda / file).read_text()
    assert text.count(there) == 1
    (cuda / file).write_text(text.replace(there, instead))
    quoted = ["-iquote", str(tmp_path)]  # before the project's own
    changed = [source for source in cuda.glob("*.cu") if reads(source, cuda / file, *quoted)]
    kernels = announced.kernels | announcing(changed, tmp_path, *quoted)
    program = link([*kernels.values(), *announced.others], tmp_path / "cuda_test")
    run = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert run.stderr.startswith("simt: race: ")
    assert run.stdout == ""
