"""Do the CPU kernels run clean under AddressSanitizer and UndefinedBehaviorSanitizer?"""

import os
import pathlib
import platform
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = "-std=c++17 -g -O1 -fopenmp-simd -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
KERNELS = ["arc_log_probs.cc", "dispatch.cc", "lattice.cc", "logit_gradients.cc"]


def test_kernels_under_sanitizers(tmp_path: pathlib.Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    flags = [*FLAGS.split(), *SANITIZE.split(), f"-I{ROOT}"]
    rows = {"baseline": []}
    if platform.machine() in ("x86_64", "AMD64"):
        rows["avx2"] = ["-mavx2", "-mfma"]
        flags.append("-DMBRNNT_HAS_AVX2")

    def compile_(*arguments: str | pathlib.Path) -> None:
        subprocess.run([compiler, *flags, *arguments], check=True)

    objects = []
    for isa, extra in rows.items():
        objects.append(tmp_path / f"rows_{isa}.o")
        source = ROOT / "cpu" / "rows.cc"
        compile_(f"-DMBRNNT_ISA={isa}", *extra, "-c", source, "-o", objects[-1])
    sources = [ROOT / "cpu" / name for name in KERNELS]
    program = tmp_path / "kernels_test"
    compile_(ROOT / "tests" / "native" / "kernels_test.cc", *sources, *objects, "-o", program)
    run = subprocess.run([program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "all as expected\n"), run.stderr
