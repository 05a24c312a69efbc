"""What nvcc made of the CUDA kernels, without a GPU: registers, memory accesses, hot loops.

Where the code is looked at is decided by its shape, not by addresses: see `RowKernel` and
`SweepKernel`. Costs and times are a model's (pipelines.py).
"""

import argparse
import collections
import functools
import pathlib
import re
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from . import pipelines
from .disassembly import ROOT, Instruction, Kernel, Loop, kernels, nvcc, nvdisasm
from .results import Report, table

SOURCES = sorted(ROOT.glob("cuda/*.cu"))
V = 1024  # of the rows whose instructions are counted, all of whose packs are aligned
WARP, PACK_BYTES, PACKS_A_ROUND = 32, 16, 4
# Kernels where nearly all of the time goes: the first of rows of logits, the second of the lattice.
ROW_KERNEL = r"(ArcLogProbs|LogitGradients)Kernel<(?!double\b).*"
DOUBLES, FLOATS = "DFMA|DMUL|DADD", "FFMA|FMUL|FADD"
SWEEP_KERNEL = r"SweepKernel<.*"
STEPS_A_ROUND = 8  # of the loop of a sweep, if it has so many shuffles; otherwise one


class Card(NamedTuple):
    name: str
    bytes_a_second: float
    multiprocessors: int = 132
    hertz: float = 1.83e9

    def cycles(self, num_bytes: float) -> float:
        """In which memory moves so much for each of the multiprocessors."""
        return num_bytes * self.multiprocessors * self.hertz / self.bytes_a_second


CARDS = [
    Card("H100 SXM, 3.35 TB/s by its data sheet", 3.35e12),
    Card("H200, 4.8 TB/s by its data sheet", 4.8e12),
    Card("H200, 4.3 TB/s by a measured copy", 4.3e12),
]


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


def widths(kernel: Kernel, opcode: str) -> str:
    """How many move up to 32 bits, 64 and 128."""
    found = kernel.widths(opcode)
    few = sum(count for size, count in found.items() if size <= 4)
    return f"{few} {found[8]} {sum(count for size, count in found.items() if size >= 16)}"


def number(x: float) -> str:
    return f"{x:.1f}" if x < 20 else f"{x:.0f}"


def table_of_kernels(found: Iterable[Kernel]) -> Iterator[str]:
    head = ["kernel", "registers", "stack", "spilled", "shared", "loads of 4 8 16", "stores"]
    yield from table(
        head, ([k.name, *k.resources, widths(k, "LDG"), widths(k, "STG")] for k in found)
    )


def table_of_rows(rows: Iterable[RowKernel]) -> Iterator[str]:
    def cells(kernel: RowKernel) -> list[object]:
        body, row = kernel.body, kernel.row
        found = [
            *(kernel.name, body.count, f"{body.count / kernel.elements:.2f}"),
            *(pipelines.stalls(body.code), number(body.one_warp())),
            "{:.0f} {}".format(*body.slots()),
        ]
        return found + ([row.count, "{:.0f} {}".format(*row.slots())] if row else ["-", "-"])

    head = ["kernel", "body", "an element", "stalls", "alone", "slots", f"row of {V}", "slots"]
    yield from table(head, map(cells, rows))


def table_of_sweeps(sweeps: Iterable[SweepKernel]) -> Iterator[str]:
    def cells(kernel: SweepKernel, path: Path) -> list[object]:
        who = "brings" if path is kernel.producer else "walks"
        numbers = path.count, pipelines.stalls(path.code), path.one_warp(), path.slots(sharing=1)[0]
        ports = [f"{port} {cycles:.0f}" for port, cycles in path.demand().most_common()]
        return [
            *(kernel.name, who),
            *(number(n / kernel.steps) for n in numbers),
            kernel.steps,
            " ".join(ports),
        ]

    head = [
        "kernel",
        "warp",
        "a step",
        "stalls",
        "alone",
        "slots",
        "steps a round",
        "ports, a round",
    ]
    yield from table(head, (cells(kernel, path) for kernel in sweeps for path in kernel.paths()))


def table_of_floors(rows: Iterable[RowKernel]) -> Iterator[str]:
    """Memory's time for a row beside the kernel's, in slots of a multiprocessor's schedulers."""

    def cells(kernel: RowKernel, taken: float) -> list[object]:
        given = [card.cycles(kernel.row_bytes()) * pipelines.SCHEDULERS for card in CARDS]
        shares = [f"{n:.0f} ({taken / n:.2f})" for n in given]
        return [kernel.name, kernel.row_bytes(), f"{taken:.0f}", *shares]

    head = ["kernel", "bytes", "slots", *(card.name.partition(" by")[0] for card in CARDS)]
    yield from table(head, (cells(k, k.row.slots()[0]) for k in rows if k.row))


def table_of_heads(rows: Iterable[RowKernel]) -> Iterator[str]:
    """What a second head adds to the first one's V logits."""
    counts = {kernel.name: kernel.row_count() for kernel in rows}

    def cells(two: RowKernel) -> list[object]:
        one, both = counts[two.of_one_head()], counts[two.name]
        return [two.name, one, both, f"{both / one:.3f}"]

    head = ["kernel", f"row of {V}, one head", "with a second", "ratio"]
    yield from table(head, (cells(k) for k in rows if k.heads == 2 and k.row))


def version(tool: str) -> str:
    found = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return next(line for line in found.splitlines() if "release" in line)


def lines_of(arch: int, found: list[Kernel]) -> Iterator[str]:
    rows = [RowKernel(k, arch) for k in found if re.fullmatch(ROW_KERNEL, k.name)]
    sweeps = [SweepKernel(k, arch) for k in found if re.fullmatch(SWEEP_KERNEL, k.name)]
    yield f"sm_{arch}"
    yield from ["", *table_of_kernels(found)]
    if rows:
        yield from ["", *table_of_rows(rows), "", *table_of_heads(rows)]
    if sweeps:
        yield from ["", *table_of_sweeps(sweeps)]
    if rows and arch == 90:
        yield from ["", *table_of_floors(rows)]


LEGEND = f"""\
Registers of a thread; bytes of its stack, of spills, of a block's static shared memory; how many
instructions load and store 4 bytes or less, 8, and 16 of global memory.

Rows of logits: instructions of the loop over four packs and for each of a lane's elements; the sum
of its stall counts; the cycles of a warp that is alone, data in L2; the cycles that it holds the
port of a scheduler that it holds the longest. Then the instructions and slots of one aligned row;
with two heads, of a TDT's, whose second head adds at most as many logits as half a warp has lanes.

The sweep: the same, for each step of the lattice, of the warp that walks (forward and backward,
where they differ) and of those that bring what it needs.

Floors: memory moves a row's bytes while the four schedulers of one of {CARDS[0].multiprocessors}
multiprocessors, at {CARDS[0].hertz / 1e9:.2f} GHz, have so many slots; in brackets the part that
the row takes.
"""


def dump(kernel: Kernel, arch: int) -> Iterator[str]:
    hot = RowKernel if re.fullmatch(ROW_KERNEL, kernel.name) else SweepKernel
    found = hot(kernel, arch)
    paths = found.paths() if isinstance(found, SweepKernel) else [found.body]
    for path in paths:
        yield f"{kernel.name}, sm_{arch}, once around: stall, barriers written, read, waited for"
        for i in path.code:
            barriers = "".join("-" if b == 7 else str(b) for b in (i.write_barrier, i.read_barrier))
            yield f"{i.stall:4} {barriers} {i.waits:06b} {i.predicate:5} {i.opcode} {i.operands}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="*", type=pathlib.Path, default=SOURCES)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--dump", metavar="KERNEL", help="only the hot loops of kernels named so")


def run(report: Report, arguments: argparse.Namespace) -> None:
    sources = SOURCES[1:2] if arguments.quick else arguments.sources
    everything = {arch: compiled(arch, tuple(sources)) for arch in arguments.arch}
    if arguments.dump or (arguments.sources != SOURCES and not arguments.out):
        report.directory = None  # it is asked for to be read
    if arguments.dump:
        for arch, found in everything.items():
            for kernel in filter(is_hot, found):
                if arguments.dump in kernel.name:
                    report.say(*dump(kernel, arch))
        return
    report.say(f"{version(nvcc())}; {version(nvdisasm())}", "", *LEGEND.splitlines())
    report.say(*(f"  {card.name}" for card in CARDS))
    for arch, found in everything.items():
        report.say("", *lines_of(arch, found))
