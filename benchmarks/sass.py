"""What nvcc made of the CUDA kernels, without a GPU: registers, memory accesses, hot loops.

What is read from the code, and from which of its loops, tests/sass/ says.
"""

import argparse
import pathlib
import re
import subprocess
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sass import pipelines
from sass.disassembly import Kernel, nvcc, nvdisasm
from sass.hot_loops import (
    ROW_KERNEL,
    SOURCES,
    SWEEP_KERNEL,
    Path,
    RowKernel,
    SweepKernel,
    V,
    compiled,
    is_hot,
)

from .results import Report, table


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
