"""Where the time of the CUDA kernels goes: their hot loops, and what those take.

Where the code is looked at is decided by its shape, not by addresses: see `RowKernel` and
`SweepKernel`. Costs and times are a model's (pipelines.py).
"""

import collections
import functools
import pathlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from . import pipelines
from .disassembly import ROOT, Instruction, Kernel, Loop, kernels

SOURCES = sorted(ROOT.glob("cuda/*.cu"))
V = 1024  # of the rows whose instructions are counted, all of whose packs are aligned
WARP, PACK_BYTES, PACKS_A_ROUND = 32, 16, 4
# Kernels where nearly all of the time goes: the first of rows of logits, the second of the lattice.
ROW_KERNEL = r"(ArcLogProbs|LogitGradients)Kernel<(?!double\b).*"
DOUBLES, FLOATS = "DFMA|DMUL|DADD", "FFMA|FMUL|FADD"
SWEEP_KERNEL = r"SweepKernel<.*"
STEPS_A_ROUND = 8  # of the loop of a sweep, if it has so many shuffles; otherwise one


class Path(NamedTuple):
    """What one warp executes."""

    code: list[Instruction]
    count: int  # subroutines included
    arch: int

    @classmethod
    def round(cls, kernel: Kernel, arch: int, loop: Loop, **rules) -> "Path":
        code = kernel.round(loop, **rules)
        return cls(code, kernel.count(code), arch)

    def demand(self) -> collections.Counter[str]:
        found = pipelines.demand(self.code, self.arch)
        found[pipelines.ISSUE] = self.count
        return found

    def slots(self, sharing: int = pipelines.SCHEDULERS) -> tuple[float, str]:
        """The most cycles that a port is held, and which: below that no number of warps gets.

        `sharing` schedulers do the same at a time, and share loads and stores.
        """
        return max(
            (cycles * (sharing if port == pipelines.LSU else 1), port)
            for port, cycles in self.demand().items()
        )

    def one_warp(self) -> float:
        return pipelines.one_warp(self.code, self.arch)


def calls_a_function(code: Iterable[Instruction]) -> bool:
    """One of ours that was not inlined, as only rare cases are; the compiler's are $__internal."""
    return any(re.match(r"`\(\$(?!__internal)", i.operands) for i in code if i.name == "CALL")


class RowKernel:
    """One warp makes a row at a time, by packs of 16 bytes, of which four are on their way.

    `body` is once around the loop that loads the most packs (at least four). `row` is once around
    the loop outside of it, for an aligned row of V logits: the body as often as it takes, and
    otherwise the longest path that neither loads nor stores a pack (those are of rows of other
    lengths), does not call a function, and makes no round over single elements. So a second head
    counts whole, if it has a lane for each of its logits.
    """

    def __init__(self, kernel: Kernel, arch: int) -> None:
        self.name, self.arch = kernel.name, arch
        self.lanes, self.heads = map(int, re.findall(r", (\d+)", kernel.name))
        self.element_bytes = 4 if "<float" in kernel.name else 2
        self.reads_only = "ArcLogProbs" in kernel.name
        self.elements = PACKS_A_ROUND * PACK_BYTES // self.element_bytes

        def packs(loop: Loop) -> int:
            own = kernel.instructions(loop.own_blocks())
            return sum(i.name == "LDG" and i.is_wide() for i in own)

        loop = max(kernel.loops, key=packs)
        if packs(loop) < PACKS_A_ROUND or loop.parent is None:
            raise LookupError(
                f"{kernel.name}, sm_{arch}: no loop over four packs within one over rows"
            )

        def rounds(inner: Loop) -> int:
            if inner is loop:
                return V // (WARP * self.elements)
            code = kernel.instructions(inner.blocks)
            over_arcs = any(i.name == "LDG" for i in code) and not (
                any(i.name == "MUFU" or i.is_wide() for i in code)
            )
            return 1 if over_arcs else 0

        def off(block: int) -> bool:
            code = kernel.blocks[block]
            wide = block not in loop.blocks and any(i.is_wide() for i in code)
            return wide or calls_a_function(code)

        self.body = Path.round(kernel, arch, loop, rounds=rounds, off=off)
        self.row = None
        if self.lanes == WARP:
            self.row = Path.round(kernel, arch, loop.parent, rounds=rounds, off=off)

    def row_count(self) -> int:
        """Instructions; 0 where there is no way round, or rows are too short."""
        return self.row.count if self.row else 0

    def row_bytes(self) -> int:
        return V * self.element_bytes * (1 if self.reads_only else 2)

    def of_one_head(self) -> str:
        """The name of the same for rows of one head."""
        return self.name.replace(f", {self.lanes}, {self.heads}", f", {WARP}, 1")


class SweepKernel:
    """One warp walks through a tile of the lattice, with a shuffle (at least) a step.

    Its hot loops are those with the most arithmetic of their own among the loops that shuffle:
    double precision counts first. There are several where both directions are in one kernel.
    `producer` is the loop with the most arithmetic among those that do not shuffle, if there is
    one: other warps bring there what a round of the walk needs.

    Of each, the longest path counts that calls no function, which all that is rare does, and makes
    no round of a nested loop: one waits for other blocks, where what was asked for a round before
    has not come.
    """

    def __init__(self, kernel: Kernel, arch: int) -> None:
        self.name, self.arch = kernel.name, arch

        def own(loop: Loop, pattern: str) -> int:
            code = kernel.instructions(loop.own_blocks())
            return sum(re.fullmatch(pattern, i.name) is not None for i in code)

        def shuffles(loop: Loop) -> bool:
            return any(i.name == "SHFL" for i in kernel.instructions(loop.blocks))

        def path(loop: Loop) -> Path:
            def off(block: int) -> bool:
                return calls_a_function(kernel.blocks[block])

            return Path.round(kernel, arch, loop, rounds=lambda inner: 0, off=off)

        walks = [loop for loop in kernel.loops if own(loop, "SHFL")]
        kind = DOUBLES if any(own(loop, DOUBLES) for loop in walks) else FLOATS
        most = max((own(loop, kind) for loop in walks), default=0)
        if most == 0:
            raise LookupError(f"{kernel.name}, sm_{arch}: no loop with arithmetic and a shuffle")
        self.walks = [path(loop) for loop in walks if 2 * own(loop, kind) > most]
        shuffled = min(sum(i.name == "SHFL" for i in walk.code) for walk in self.walks)
        self.steps = STEPS_A_ROUND if shuffled >= STEPS_A_ROUND else 1
        others = [loop for loop in kernel.loops if not shuffles(loop) and own(loop, FLOATS)]
        others.sort(key=lambda loop: own(loop, FLOATS))
        self.producer = path(others[-1]) if others else None

    def paths(self) -> list[Path]:
        return self.walks + ([self.producer] if self.producer else [])

    def one_warp(self) -> float:
        """Cycles a step, of the walk or of what it waits for."""
        return max(path.one_warp() for path in self.paths()) / self.steps

    def slots(self) -> float:
        """A step of the scheduler that has the most to do, where warps go around all four in turn.

        The second warp walks; how many others there are, slot.h says (Planes::kProducers).
        """
        walk = max(path.slots(sharing=1)[0] for path in self.walks)
        if not self.producer:
            return walk / self.steps
        labels, blanks = map(int, re.findall(r"\d+", self.name.replace("u", "")))
        producers = 8 if labels + 1 + blanks.bit_count() > 5 else 4
        schedulers = [0.0] * 4
        for warp in range(1 + producers):
            schedulers[warp % 4] += walk if warp == 1 else self.producer.slots(sharing=1)[0]
        return max(schedulers) / self.steps


def is_hot(kernel: Kernel) -> bool:
    return re.fullmatch(f"{ROW_KERNEL}|{SWEEP_KERNEL}", kernel.name) is not None


@functools.cache
def compiled(arch: int, sources: tuple[pathlib.Path, ...] = tuple(SOURCES)) -> list[Kernel]:
    """All kernels; two sources are compiled at a time."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda source: kernels(source, arch), sources)
        return sorted((kernel for some in found for kernel in some), key=lambda k: k.name)


def default_architectures() -> list[int]:
    """What a release is compiled for: CMakeLists.txt says."""
    text = (ROOT / "CMakeLists.txt").read_text()
    lists = re.findall(r"\(?CMAKE_CUDA_ARCHITECTURES((?: \d+(?:-real)?)+)\)", text)
    return sorted({int(arch) for found in lists for arch in re.findall(r"\d+", found)})
