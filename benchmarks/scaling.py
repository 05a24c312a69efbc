"""How the times of the multi-blank loss grow with B, T, U, V and the threads, and a picture.

Each number of threads has a process of its own, bound to as many cores before JAX starts.
"""

import argparse
import os

from . import apart
from .loss import measure
from .problems import SHAPES, Shape
from .results import Panel, Report, Row, draw, lines_by_problem

VALUES = {
    "B": [1, 2, 4, 8, 16],
    "T": [50, 100, 200, 400, 800],
    "U": [10, 20, 40, 80, 160],
    "V": [32, 64, 128, 256, 512, 1024, 2048],
}
QUICK_VALUES = {"B": [1, 4], "V": [32, 128]}
NAMES = {"ours": "this package", "strong": "strong pure JAX", "floor": "read + copy of the logits"}


def measure_sizes(shape: str, sizes: list[dict[str, int]], seconds: float, case: str) -> list[dict]:
    """In a process of its own."""
    only = ["read", "copy", "ours", "strong"]
    options = {"seconds": seconds, "rounds": (3, 9), "only": only, "case": case}
    found = (measure(shape, [("multi-blank", "f32")], sizes=s, **options) for s in sizes)
    return [row for rows in found for row in rows]


def run(report: Report, arguments: argparse.Namespace) -> None:
    quick = arguments.quick
    base = SHAPES["tiny" if quick else "scaling"]
    axes = QUICK_VALUES if quick else VALUES
    cores = sorted(os.sched_getaffinity(0))
    counts = sorted({1 << i for i in range(len(cores).bit_length())} | {len(cores)})
    for count in counts:
        sizes: list[dict[str, int]] = [{}]  # the base is on every axis
        if count == len(cores):
            more = [{axis: n} for axis, values in axes.items() for n in values]
            sizes += [size for size in more if base._replace(**size) != base]
        found = apart.call(
            measure_sizes,
            cores=set(cores[:count]),
            shape=base.name,
            sizes=sizes,
            seconds=0.3 if quick else 1,
            case=f"{count} threads",
        )
        report.add(Row(**row) for row in found)
    report.say(*lines_by_problem(report.rows, "ms"))
    points = [panel(report.rows, base, axis, len(cores)) for axis in axes]
    title = f"Multi-blank (2, 4, 8), float32; around B,T,U,V = {base.sizes()}; {len(cores)} threads"
    draw(report, title, [[*points, panel_of_threads(report.rows, base)]])


def of_base(rows: list[Row], base: Shape) -> list[Row]:
    return [row for row in rows if base[2:6] == (row.B, row.T, row.U, row.V)]


def panel(rows: list[Row], base: Shape, axis: str, cores: int) -> Panel:
    def on_axis(row: Row) -> bool:
        others = (name for name in "BTUV" if name != axis)
        return row.case == f"{cores} threads" and all(
            getattr(row, name) == getattr(base, name) for name in others
        )

    on = [(getattr(row, axis), row) for row in rows if on_axis(row)]
    return Panel(axis, "value and gradient, ms", lines(on))


def panel_of_threads(rows: list[Row], base: Shape) -> Panel:
    on = [(int(row.case.split()[0]), row) for row in of_base(rows, base)]
    return Panel("threads", "", lines(on))


def lines(on: list[tuple[int, Row]]) -> dict[str, list[tuple[float, float]]]:
    """Of each program its points, the floor's are those of two passes together."""
    found: dict[str, dict[float, float]] = {name: {} for name in NAMES}
    for x, row in on:
        if row.quantity == "ms" and row.median is not None:
            points = found[row.program if row.program in found else "floor"]
            points[x] = points.get(x, 0) + row.median
    return {NAMES[name]: sorted(points.items()) for name, points in found.items()}
