"""What every benchmark writes: one kind of row, one head, one table, one picture."""

import csv
import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .apart import ROOT
from .timing import Call

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "numpy", "torch", "torchaudio")


@dataclasses.dataclass
class Row:
    """A quantity of a program: a median, if there is more than one sample, or why there is none."""

    program: str
    quantity: str = "ms"
    median: float | None = None
    min: float | None = None
    max: float | None = None
    samples: int = 1
    shape: str = ""
    B: int = 0
    T: int = 0
    U: int = 0
    V: int = 0
    case: str = ""  # what else was varied
    note: str = ""

    @classmethod
    def of_call(cls, program: str, call: Call, **where: Any) -> "Row":
        ms = call.milliseconds
        return cls(program, "ms", call.median(), min(ms), max(ms), len(ms), **where)

    def cell(self) -> str:
        if self.median is None:
            return self.note.split(":")[0] or "-"
        spread = f" [{number(self.min)},{number(self.max)}]" if self.min is not None else ""
        return number(self.median) + spread


FIELDS = [field.name for field in dataclasses.fields(Row)]


@dataclasses.dataclass
class Ratio:
    """A line below the times: a program's over the sum of others'."""

    name: str
    above: str
    below: Sequence[str]
    goal: float | None = None  # to be read beside it: nothing here asserts a time

    def of(self, medians: Mapping[str, float]) -> float | None:
        if any(name not in medians for name in (self.above, *self.below)):
            return None
        return medians[self.above] / sum(medians[name] for name in self.below)


def number(x: float | None) -> str:
    """Three digits, so that columns can be read down."""
    if x is None:
        return "-"
    size = abs(x)
    if size and size < 1e-3:
        return f"{x:.1e}"
    return f"{x:.0f}" if size >= 100 else f"{x:.1f}" if size >= 10 else f"{x:.2f}"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    lines = [list(map(str, head)), *([str(cell) for cell in row] for row in rows)]
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line[1:], sizes[1:], strict=True)
        yield (line[0].ljust(sizes[0]) + "".join(f"  {cell:>{size}}" for cell, size in cells))


def place(row: Row) -> str:
    """A column's head: which problem."""
    sizes = f"{row.B},{row.T},{row.U},{row.V}"
    return " ".join(filter(None, [row.shape, sizes if row.B else "", row.case]))


def by_program(rows: Iterable[Row], quantity: str) -> dict[str, dict[str, Row]]:
    """`[program][place]`."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.quantity == quantity:
            found.setdefault(row.program, {})[place(row)] = row
    return found


def places_of(rows: Iterable[Row], quantity: str) -> list[str]:
    return list(dict.fromkeys(place(row) for row in rows if row.quantity == quantity))


def _cells(rows: Sequence[Row], quantity: str) -> list[list[str]]:
    """A head, and programs downwards, problems across."""
    cells = by_program(rows, quantity)
    places = places_of(rows, quantity)
    return [
        [f"{quantity}; B,T,U,V:", *places],
        *([p, *(of[x].cell() if x in of else "-" for x in places)] for p, of in cells.items()),
    ]


def lines_of(rows: Sequence[Row], quantity: str) -> Iterator[str]:
    head, *lines = _cells(rows, quantity)
    yield from table(head, lines)


def lines_by_problem(rows: Sequence[Row], quantity: str) -> Iterator[str]:
    """The same turned round, where there are many problems."""
    head, *lines = zip(*_cells(rows, quantity), strict=True)
    yield from table(head, lines)


def lines_of_ratios(rows: Sequence[Row], ratios: Iterable[Ratio]) -> Iterator[str]:
    places = places_of(rows, "ms")
    medians: dict[str, dict[str, float]] = {x: {} for x in places}
    for row in rows:
        if row.quantity == "ms" and row.median is not None:
            medians[place(row)][row.program] = row.median
    lines = [(r, [r.of(medians[x]) for x in places]) for r in ratios]
    yield from table(
        ["ratio of medians", "goal", *places],
        (
            [r.name, number(r.goal) if r.goal else "", *map(number, found)]
            for r, found in lines
            if any(x is not None for x in found)
        ),
    )


def commit() -> str:
    git = ["git", "-C", ROOT, "-c", "safe.directory=*", "describe", "--always", "--dirty"]
    command = [*git, "--abbrev=10", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def facts() -> list[str]:
    """What a reader needs to place the numbers."""
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        info = []
    of_cpu = dict(reversed([[x.strip() for x in row.split(":", 1)] for row in info if ":" in row]))
    wanted = ("f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_bf16", "asimd", "bf16")
    has = set((of_cpu.get("flags") or of_cpu.get("Features") or "").split())

    def version(package: str) -> str:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return f"no {package}"

    smi = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(smi, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        gpu = []
    return [
        f"$ python -m benchmarks {' '.join(sys.argv[1:])}",
        f"{datetime.date.today()}, commit {commit()}",
        f"{of_cpu.get('model name', platform.machine())}, {len(os.sched_getaffinity(0))} cores "
        f"({' '.join(flag for flag in wanted if flag in has)}), load {os.getloadavg()[0]:.1f} at "
        "the start",
        *gpu,
        f"Python {platform.python_version()}, {', '.join(map(version, PACKAGES))}",
    ]


class Report:
    """Prints as it goes; `save` writes NAME.txt and NAME.csv, each with the facts on top."""

    def __init__(self, name: str, directory: pathlib.Path | None) -> None:
        self.name, self.directory = name, directory
        self.lines: list[str] = []
        self.rows: list[Row] = []
        self.facts = facts()
        self.say(*self.facts, "")

    def say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        self.lines += lines

    def add(self, rows: Iterable[Row]) -> None:
        self.rows += rows

    def save(self) -> None:
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / self.name
        path.with_suffix(".txt").write_text("\n".join(self.lines) + "\n")
        if self.rows:
            with open(path.with_suffix(".csv"), "w", newline="") as file:
                file.writelines(f"# {fact}\n" for fact in self.facts)
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(map(_rounded, self.rows))


def _rounded(row: Row) -> dict[str, Any]:
    return {
        key: f"{value:.5g}" if isinstance(value, float) else value
        for key, value in dataclasses.asdict(row).items()
    }


@dataclasses.dataclass
class Panel:
    """One pair of axes: lines by the name of their program."""

    x: str
    y: str
    points: dict[str, list[tuple[float, float]]]


LOOKS = [("#0072B2", "o-"), ("#D55E00", "s-"), ("#666666", "^--")]


def draw(report: Report, title: str, panels: Sequence[Sequence[Panel]]) -> None:
    """NAME.png, logarithmic, with the values that were measured on x."""
    if report.directory is None:
        return
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    except ImportError as error:
        report.say(f"{report.name}.png: not drawn: {error}")
        return
    height, width = np.shape(panels)
    figure, axes = plt.subplots(
        height,
        width,
        figsize=(2.5 * width, 3 * height),
        sharey="row",
        sharex="col",
        layout="constrained",
        squeeze=False,
    )
    for plot, panel in zip(axes.flat, [p for line in panels for p in line], strict=True):
        for (program, points), (colour, style) in zip(panel.points.items(), LOOKS, strict=False):
            plot.plot(*zip(*points, strict=True), style, color=colour, ms=4.5, label=program)
        plot.set_xscale("log", base=2)
        plot.set_yscale("log")
        ticks = sorted({x for points in panel.points.values() for x, _ in points})
        plot.xaxis.set_major_locator(FixedLocator(ticks))
        plot.xaxis.set_minor_locator(NullLocator())
        plot.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        plot.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        plot.grid(True, which="major", color="#dddddd", linewidth=0.7)
        plot.spines[["top", "right"]].set_visible(False)
        plot.set_xlabel(panel.x)
    for plot, line in zip(axes[:, 0], panels, strict=True):
        plot.set_ylabel(line[0].y)
    figure.suptitle(title, fontsize=11)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    report.directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(report.directory / f"{report.name}.png", dpi=150)
    plt.close(figure)
