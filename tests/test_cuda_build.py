"""What does nvcc make of the CUDA kernels: do they fit into registers?

Run with `-s` to see the table.
"""

import pathlib
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

from simt_module import ROOT

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

ARCHITECTURE = "sm_90"
# Where nearly all of the time goes. The others may keep an array in slow memory.
HOT = r"(ArcLogProbs|LogitGradients|Posteriors|Weights)Kernel.*|SweepKernel<float, [0-9]>"


class Resources(NamedTuple):
    """Of one kernel, as `ptxas -v` says; bytes of stack, spills and static shared memory."""

    kernel: str
    registers: int
    stack: int
    spilled: int
    shared: int


def resources(source: pathlib.Path, into: pathlib.Path) -> list[Resources]:
    command = f"nvcc -std=c++17 -O3 -arch={ARCHITECTURE} -Xptxas -v -I{ROOT} -c -o"
    built = subprocess.run(
        [*command.split(), into / "kernels.o", source], capture_output=True, text=True, check=True
    )
    names = subprocess.run(["c++filt"], input=built.stderr, capture_output=True, text=True).stdout
    names = names.replace("(anonymous namespace)::", "").replace("mbrnnt::", "")
    found = re.findall(
        r"Function properties for (.*)\n"
        r" *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        names,
    )
    return [
        Resources(
            re.sub(
                r"\(.*|.*::(?=\w+Kernel)|mbrnnt::", "", name.replace("(anonymous namespace)", "")
            ),
            int(registers),
            int(stack),
            int(stores) + int(loads),
            int(shared or 0),
        )
        for name, stack, stores, loads, registers, shared in found
    ]


def test_hot_kernels_stay_in_registers(tmp_path: pathlib.Path) -> None:
    found = [
        kernel
        for source in sorted(ROOT.glob("cuda/*.cu"))
        for kernel in resources(source, tmp_path)
    ]
    print(f"\n{ARCHITECTURE:44}{'registers':>10}{'stack':>8}{'spilled':>8}{'shared':>8}")
    for kernel, *numbers in found:
        print(f"{kernel:44}{numbers[0]:10}" + "".join(f"{number:8}" for number in numbers[1:]))
    hot = [kernel for kernel in found if re.fullmatch(HOT, kernel.kernel)]
    # 4 types of logits over rows of 2 lengths, gradients of which are with a clamp or without one,
    # 2 types of lattices, 5 numbers of big blanks.
    assert len(hot) == 4 * 2 * (1 + 2) + 2 * 2 + 5
    assert [kernel for kernel in hot if kernel.stack or kernel.spilled] == []
    assert all(kernel.registers <= 128 for kernel in hot)
