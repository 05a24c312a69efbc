"""What instructions cost: a scheduler's issue slots, its pipes' cycles, and one warp's time.

A multiprocessor has four schedulers. Each issues one instruction a cycle, to pipes of its own but
for the one of loads, stores and shuffles, which the four share. Nothing here was fitted to a
measurement of these kernels: rates are the guide's, latencies round numbers after the papers.

[guide]  CUDA C++ Programming Guide, "Arithmetic Instructions": results a cycle and multiprocessor
[ncu]    Nsight Compute, "Pipelines": which instruction goes where
[jia]    Jia et al. 2018, 2019 (arXiv 1804.06826, 1903.07486): latencies on sm_70, sm_75
[luo]    Luo et al. 2024 (arXiv 2402.13499): latencies on sm_80, sm_89, sm_90
[guess]  the order of magnitude
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

from .disassembly import NO_BARRIER, Instruction

SCHEDULERS = 4
ISSUE, FMA, ALU, FP64, XU, LSU = "issue", "fma", "alu", "fp64", "xu", "lsu"


@dataclasses.dataclass(frozen=True)
class Rates:
    """Results a cycle and multiprocessor [guide]."""

    fp32: int
    fp64: int
    convert64: int  # between types of 64 bits and others
    fp64_latency: int = 0  # where it is waited for through a barrier


RATES = {
    75: Rates(fp32=64, fp64=2, convert64=2, fp64_latency=48),  # [jia]
    80: Rates(fp32=64, fp64=32, convert64=16, fp64_latency=8),  # [guess]: sm_90's fixed one
    86: Rates(fp32=128, fp64=2, convert64=2, fp64_latency=48),
    89: Rates(fp32=128, fp64=2, convert64=2, fp64_latency=48),
    90: Rates(fp32=128, fp64=64, convert64=16),
    100: Rates(fp32=128, fp64=64, convert64=16),
    120: Rates(fp32=128, fp64=2, convert64=2, fp64_latency=48),
}
INTEGER, SPECIAL = 64, 16  # the same on all of them [guide]

MEMORY = r"LDG|STG|LDS|STS|LDL|STL|LD|ST|LDGSTS|LDSM|ATOM\w*|RED|SHFL|SYNCS"
# Cycles until the result of an instruction without a fixed latency is there, from its issue.
LATENCY = {
    r"LDS|ATOMS|SYNCS": 26,  # [luo]
    r"SHFL|REDUX": 24,  # [jia]
    r"LDC": 28,  # [jia], from the constant cache
    r"MUFU|[FI]2[FI]P?|FRND|POPC|FLO|BREV": 22,  # [jia]
    r"LDG|LD|LDL|LDGSTS|LDGDEPBAR|ATOMG?": 270,  # [luo], from L2
    r"S2U?R": 25,  # [guess]
    r".*": 12,  # [guess]
}
OPERANDS_READ = 10  # [guess]: until a store's registers may be overwritten


def pipe(instruction: Instruction, arch: int) -> tuple[str, float]:
    """Where it is executed, and for how many cycles nothing else can start there [ncu]."""
    rates, name, opcode = RATES[arch], instruction.name, instruction.opcode

    def cycles(rate: int) -> float:
        return 32 * SCHEDULERS / rate

    if re.fullmatch(MEMORY, name):
        # 128 bytes a cycle: the multiprocessor's, not the scheduler's.
        return LSU, 1 if name == "SHFL" else max(instruction.bytes / 4, 1)
    if re.fullmatch(r"D(FMA|ADD|MUL|SETP|MNMX)", name):
        return FP64, cycles(rates.fp64)
    if re.fullmatch(r"[FI]2[FI]|FRND", name):
        if "64" in opcode:
            return (XU if rates.convert64 == SPECIAL else FP64), cycles(rates.convert64)
        return XU, cycles(SPECIAL)
    if re.fullmatch(r"MUFU|POPC|FLO|BREV", name):
        return XU, cycles(SPECIAL)
    if re.fullmatch(r"FFMA\d?|FMUL\d?|FADD\d?|HFMA2|HADD2|HMUL2", name):
        return FMA, cycles(rates.fp32)
    if name in ("IMAD", "IDP"):  # a product of 64 bits takes two passes [guess]
        return FMA, cycles(INTEGER) * (2 if re.search(r"\.(WIDE|HI)", opcode) else 1)
    if re.fullmatch(r"(U[A-Z]|B[A-Z]|S2|CS2|R2UR|LDC|NOP|EXIT|RET|CALL|WARP|.*BAR|YIELD).*", name):
        return ISSUE, 1  # control flow, barriers, and the uniform datapath
    return ALU, cycles(INTEGER)


def latency(instruction: Instruction, arch: int) -> int:
    if instruction.name.startswith("D") and RATES[arch].fp64_latency:
        return RATES[arch].fp64_latency if pipe(instruction, arch)[0] == FP64 else OPERANDS_READ
    return next(n for pattern, n in LATENCY.items() if re.fullmatch(pattern, instruction.name))


def demand(path: Iterable[Instruction], arch: int) -> collections.Counter[str]:
    """The cycles that a path takes of the issue port and of each pipe."""
    found: collections.Counter[str] = collections.Counter()
    for instruction in path:
        found[ISSUE] += 1
        where, cycles = pipe(instruction, arch)
        if where != ISSUE:
            found[where] += cycles
    return found


def stalls(path: Iterable[Instruction]) -> int:
    """What one warp takes at least: the sum of the stall counts."""
    return sum(max(instruction.stall, 1) for instruction in path)


class Warp:
    """One warp that is alone on its multiprocessor and issues in order."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.now = 0.0
        self.free: dict[str, float] = {}  # pipe -> from when on
        self.barriers: list[list[float]] = [[] for _ in range(6)]  # when each counts down

    def issue(self, instruction: Instruction) -> None:
        where, held = pipe(instruction, self.arch)
        start = max(self.now, self.free.get(where, 0))
        for number, pending in enumerate(self.barriers):
            if instruction.waits >> number & 1:
                start = max([start, *pending])
                pending.clear()
        if found := re.fullmatch(r"SB(\d), (0x\w+|\d+)", instruction.operands):
            # DEPBAR.LE: until at most so many are left.
            pending = self.barriers[int(found[1])]
            done = pending[: len(pending) - int(found[2], 0)]
            start = max([start, *done])
            del pending[: len(done)]
        self.free[where] = start + held
        if instruction.write_barrier != NO_BARRIER:
            done_at = start + latency(instruction, self.arch)
            self.barriers[instruction.write_barrier].append(done_at)
        if instruction.read_barrier != NO_BARRIER:
            self.barriers[instruction.read_barrier].append(start + OPERANDS_READ)
        self.now = start + max(instruction.stall, 1)


def one_warp(path: Sequence[Instruction], arch: int, settled: int = 4, rounds: int = 10) -> float:
    """Cycles of a round of a loop when it has settled."""
    warp = Warp(arch)
    for _ in range(settled):
        for instruction in path:
            warp.issue(instruction)
    start = warp.now
    for _ in range(rounds):
        for instruction in path:
            warp.issue(instruction)
    return (warp.now - start) / rounds
