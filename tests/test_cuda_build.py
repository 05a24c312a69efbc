"""What does nvcc make of the CUDA kernels? Registers, wide stores, and the length of hot loops.

Most of it needs nvcc and nvdisasm. `python -m benchmarks sass` prints what is asserted here.
"""

import pathlib
import re

import pytest

from sass import disassembly, hot_loops, pipelines
from sass.disassembly import Instruction, Kernel, Loop, decode


def missing() -> str | None:
    try:
        disassembly.nvcc()
        disassembly.nvdisasm()
    except disassembly.MissingToolError as error:
        return str(error)
    return None


needs_tools = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# One of each generation. sm_86 and 100 would double the time, and compile what 80, 90 do.
ARCHITECTURES = [75, 80, 90, 120]
# Where nearly all of the time goes.
HOT = re.compile(r"(ArcLogProbs|LogitGradients|Posteriors)Kernel<.*|SweepKernel<(?!.*-1>).*")
# The most instructions of four packs, and of a whole row.
BODY = {
    "ArcLogProbsKernel<float, 32, 1>": 80,
    "ArcLogProbsKernel<BFloat16, 32, 1>": 160,
    "LogitGradientsKernel<float, 32, 1, false>": 70,
    "LogitGradientsKernel<BFloat16, 32, 1, false>": 166,
}
ROW = {"ArcLogProbs": 330, "LogitGradients": 300}
# Times a row without.
CLAMP = 1.5
SECOND_HEAD = 1.15
# Cycles, of blanks of 1, 2, 4, 8 beside the label: 1,900 steps of (1500,300) in 100 µs at 1.9 GHz.
# Each of its tiles, 10 in either direction, has a multiprocessor to itself.
STEP = {"SweepKernel<Planes<0, 278u>>": 95}


def by_name(arch: int) -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in hot_loops.compiled(arch)}


@needs_tools
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_hot_kernels_stay_in_registers_and_store_packs(arch: int) -> None:
    assert arch in hot_loops.default_architectures()
    # No more shared memory than a block has without asking: who asks, a thread for each of two
    # shapes, may be given the other's.
    assert all(kernel.resources.shared <= 48 << 10 for kernel in by_name(arch).values())
    hot = {name: kernel for name, kernel in by_name(arch).items() if HOT.fullmatch(name)}
    rows = [name for name in hot if re.fullmatch(hot_loops.ROW_KERNEL, name)]
    # 3 types of logits, rows of 2 lengths, of 1 or 2 heads, gradients with and without clamp.
    assert len(rows) == 3 * 2 * 2 * (1 + 2)
    assert any(name.startswith("SweepKernel") for name in hot)
    assert [name for name, kernel in hot.items() if kernel.resources.spilled] == []
    for name, kernel in hot.items():
        if not name.startswith("SweepKernel"):  # whose rare cases may keep arrays in slow memory
            assert (name, kernel.resources.stack) == (name, 0)
            assert kernel.resources.registers <= 128 or "double" in name, name
    for name in rows:
        if name.startswith("LogitGradients"):
            code = hot_loops.RowKernel(hot[name], arch).body.code
            stores = [i.bytes for i in code if i.name == "STG"]
            assert (name, stores) == (name, [hot_loops.PACK_BYTES] * hot_loops.PACKS_A_ROUND)


@needs_tools
@pytest.mark.parametrize("name", BODY)
def test_rows_take_few_instructions(name: str) -> None:
    kernel = hot_loops.RowKernel(by_name(90)[name], 90)
    body, row = kernel.body.count, kernel.row_count()
    assert 0 < body <= BODY[name]
    assert (
        hot_loops.V // (hot_loops.WARP * kernel.elements) * body
        < row
        <= ROW[name.partition("Kernel")[0]]
    )
    for other, times in [
        (name.replace("false", "true"), CLAMP),
        (name.replace(", 32, 1", ", 32, 2"), SECOND_HEAD),
    ]:
        if other != name:
            assert row < hot_loops.RowKernel(by_name(90)[other], 90).row_count() <= times * row


@needs_tools
@pytest.mark.parametrize("name", STEP)
def test_a_step_of_the_lattice_is_short(name: str) -> None:
    kernel = hot_loops.SweepKernel(by_name(90)[name], 90)
    assert kernel.steps == hot_loops.STEPS_A_ROUND
    walks = max(walk.one_warp() for walk in kernel.walks) / kernel.steps
    assert 0 < walks <= STEP[name]
    assert kernel.slots() <= STEP[name]
    assert kernel.one_warp() <= STEP[name]  # what brings the weights keeps up


SMALL = """
__device__ __noinline__ void Rare(float4* to) { for (int i = 0; i < 9; ++i) to[i].x = sqrtf(i); }

__global__ void Nested(const float4* from, float4* to, const short* few, int n, int m) {
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    if (few[i] == 7) Rare(to);
    int k = 0;
#pragma unroll 1
    do {
      const float4 x = from[k], y = from[k + m];
      to[k] = {x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w};
    } while (++k < m);
    to += m;
  }
}

__global__ void Chase(int* out, int n) {
  __shared__ int next[64];
  next[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  int i = threadIdx.x;
#pragma unroll 1
  for (int k = 0; k < n; ++k) i = next[i];
  out[threadIdx.x] = i;
}

__global__ void Doubles(double* x, int n) {
  double y = x[threadIdx.x];
#pragma unroll 1
  for (int k = 0; k < n; ++k) y = fma(fma(y, 1.25, 0.5), 1.25, 0.5);
  x[threadIdx.x] = y;
}
"""


@pytest.fixture(scope="module", params=[75, 90, 120])
def small(request, tmp_path_factory) -> tuple[int, dict[str, Kernel]]:
    source: pathlib.Path = tmp_path_factory.mktemp("small") / "small.cu"
    source.write_text(SMALL)
    found = disassembly.kernels(source, request.param)
    return request.param, {kernel.name: kernel for kernel in found}


@needs_tools
def test_accesses_loops_and_paths_are_found(small) -> None:
    _, found = small
    kernel = found["Nested"]
    assert kernel.widths("LDG")[16] == 2
    assert kernel.widths("LDG")[2] == 1
    assert kernel.widths("STG") == {16: 1, 4: 9}  # Rare's are counted, too
    inner, outer = kernel.loops
    assert (inner.parent, outer.parent) == (outer, None)
    assert inner.blocks < outer.blocks
    body = kernel.instructions(inner.blocks)
    assert sum(i.name == "LDG" for i in body) == 2

    def path(rounds: int, off) -> list[Instruction]:
        def times(loop: Loop) -> int:
            return rounds if loop is inner else 1

        return kernel.round(outer, times, off)

    def rare(block: int) -> bool:
        return hot_loops.calls_a_function(kernel.blocks[block])

    longest = [path(rounds, rare) for rounds in (0, 1, 5)]
    for rounds, code in zip((0, 1, 5), longest, strict=True):
        assert sum(i.name == "STG" for i in code) == rounds
        assert not any(i.name == "CALL" and "Rare" in i.operands for i in code)
    assert len(longest[2]) - len(longest[1]) == 4 * len(body)
    assert any("Rare" in i.operands for i in path(1, lambda block: False))


@needs_tools
def test_loads_are_waited_for(small) -> None:
    """The control words are where they are looked for: on each architecture."""
    arch, found = small
    kernel = found["Chase"]
    code = kernel.round(kernel.loops[0], lambda loop: 1, lambda block: False)
    loads = [i for i in code if i.name == "LDS"]
    assert len(loads) == 1
    assert loads[0].write_barrier != disassembly.NO_BARRIER
    assert any(i.waits >> loads[0].write_barrier & 1 for i in code)
    least = pipelines.latency(loads[0], arch)
    assert least <= pipelines.one_warp(code, arch) <= least + pipelines.stalls(code)


@needs_tools
def test_doubles_take_their_time(small) -> None:
    arch, found = small
    kernel = found["Doubles"]
    code = kernel.round(kernel.loops[0], lambda loop: 1, lambda block: False)
    assert sum(i.name == "DFMA" for i in code) == 2
    cycles = {75: 128, 90: 4, 120: 128}[arch]
    assert pipelines.demand(code, arch)[pipelines.FP64] == cycles
    # One depends on the other: 8 cycles on sm_90; elsewhere the pipe is the slower one.
    assert max(cycles, 16) <= pipelines.one_warp(code, arch) <= max(cycles, 16) + 20


def test_one_warp_issues_in_order() -> None:
    load = Instruction("", "LDS", "R0, [R1]", stall=2, write_barrier=0)
    use = Instruction("", "FADD", "R2, R2, R0", stall=4, waits=1)
    assert pipelines.one_warp([load, use], 90) == 26 + 4
    assert pipelines.one_warp([load, use._replace(waits=2)], 90) == 2 + 4  # of another barrier
    special = Instruction("", "MUFU.EX2", "R3, R3")
    assert pipelines.one_warp([special] * 3, 90) == 3 * 8
    # Until at most so many of a barrier's are left: one is, from the round before.
    some = Instruction("", "DEPBAR.LE", "SB0, 0x1")
    assert pipelines.one_warp([load, some], 90) == (26 + 1) / 2
    assert pipelines.one_warp([load, some._replace(operands="SB0, 0x0")], 90) == 26 + 1


def test_an_instruction_is_decoded() -> None:
    control = 5 | 1 << 4 | 2 << 5 | 7 << 8 | 0b100001 << 11  # bits 105 to 121
    found = decode("@!P0 LDG.E.64.CONSTANT R2, desc[UR4][R2.64]", control << 105 | 0x981)
    assert found == Instruction(
        "@!P0", "LDG.E.64.CONSTANT", "R2, desc[UR4][R2.64]", 5, 2, disassembly.NO_BARRIER, 0b100001
    )
    assert (found.name, found.bytes, found.is_wide()) == ("LDG", 8, False)
