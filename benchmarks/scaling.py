"""How the times grow with B, T, U, V and the threads, as a CSV and a picture.

    python benchmarks/scaling.py [--quick] [--out DIR]       cpu.py does this, too

Each number of threads has a process of its own, bound to as many cores before JAX starts.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

import floor
from programs import Shape
from tables import dress, write_csv

BASE: Shape = (2, 200, 41, 256)
AXES = ("B", "T", "U", "V")
VALUES = {
    "B": [1, 2, 4, 8, 16],
    "T": [50, 100, 200, 400, 800],
    "U": [10, 20, 40, 80, 160],
    "V": [32, 64, 128, 256, 512, 1024, 2048],
}
QUICK_BASE: Shape = (2, 50, 21, 64)
QUICK_VALUES = {"B": [1, 4], "T": [25, 100], "U": [10, 40], "V": [32, 128]}
PROGRAMS = ("ours", "strong", "read + copy")
FIELDS = ["axis", "value", "threads", "B", "T", "U", "V", "program", "median_ms", "min_ms"]
FIELDS += ["max_ms"]


# ---- In a process of its own --------------------------------------------------------------


def time_shape(shape: Shape, seconds: float) -> dict[str, list[float]]:

    from programs import make_problem
    from timing import Call, Pass, interleave

    problem = make_problem(shape)
    passes = floor.Floor(problem.logits.nbytes)

    def read_and_copy() -> float:
        kinds = ("read", "copy")
        return sum(passes.milliseconds(kind, problem.logits.nbytes) for kind in kinds)

    calls: dict[str, Call] = {"read + copy": Pass(read_and_copy, lambda: ())}
    for which in ("ours", "strong"):
        calls[which] = Call(problem.compiled(which), lambda: (problem.logits,))
    interleave(calls, seconds, (3, 9))
    return {name: call.milliseconds for name, call in calls.items()}


def run_points(points: list[tuple[str, int, Shape]], seconds: float) -> None:
    done: dict[Shape, dict[str, list[float]]] = {}  # the base is on every axis
    for axis, value, shape in points:
        if shape not in done:
            done[shape] = time_shape(shape, seconds)
        for program, ms in done[shape].items():
            batch, frames, columns, classes = shape
            row = [axis, value, floor.num_threads(), batch, frames, columns - 1, classes, program]
            row += [f"{x:.4f}" for x in (np.median(ms), min(ms), max(ms))]
            print(json.dumps(dict(zip(FIELDS, row, strict=True))), flush=True)


# ---- Around it ----------------------------------------------------------------------------


def make_points(quick: bool) -> list[tuple[str, int, Shape]]:
    base, points = QUICK_BASE if quick else BASE, []
    for i, (axis, values) in enumerate((QUICK_VALUES if quick else VALUES).items()):
        for value in values:
            size = value + 1 if axis == "U" else value
            points.append((axis, value, (*base[:i], size, *base[i + 1 :])))
    return points


def measure(quick: bool) -> list[dict[str, str]]:
    """All rows of the CSV."""
    cores = sorted(os.sched_getaffinity(0))
    base = QUICK_BASE if quick else BASE
    counts = sorted({1 << i for i in range(len(cores).bit_length())} | {len(cores)})
    rows = []
    for count in counts:
        points = [("threads", count, base)]
        if count == len(cores):
            points += make_points(quick)
        command = [sys.executable, __file__, "--points", json.dumps(points)]
        command += ["--seconds", "0.3" if quick else "1"]
        # The child inherits what this thread may run on, and so knows of no other core.
        os.sched_setaffinity(0, cores[:count])
        try:
            result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        finally:
            os.sched_setaffinity(0, cores)
        rows += [json.loads(line) for line in result.stdout.splitlines()]
    return rows


def draw(rows: list[dict[str, str]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    looks = {
        "ours": ("this package", "#0072B2", "o", "-"),
        "strong": ("strong pure JAX", "#D55E00", "s", "-"),
        "read + copy": ("read + copy of the logits", "#666666", "", "--"),
    }
    titles = {"B": "batch B", "T": "frames T", "U": "labels U", "V": "classes V"}
    base = [row for row in rows if row["axis"] == "threads"][-1]
    figure, axes = plt.subplots(
        1, 5, figsize=(13, 3.6), sharey=True, layout="constrained", width_ratios=[3, 3, 3, 3, 2]
    )
    for axis, plot in zip((*AXES, "threads"), axes, strict=True):
        mine = [row for row in rows if row["axis"] == axis]
        ticks = sorted({int(row["value"]) for row in mine})
        for name, (label, colour, marker, line) in looks.items():
            points = [row for row in mine if row["program"] == name]
            x = [int(row["value"]) for row in points]
            y = [float(row["median_ms"]) for row in points]
            plot.plot(x, y, line, color=colour, marker=marker, markersize=4.5, label=label)
        dress(plot, ticks)
        plot.set_xlabel(titles.get(axis, axis))
    axes[-1].set_xlim(0.8, 1.25 * ticks[-1])
    axes[0].set_ylabel("value and gradient, ms")
    figure.suptitle(
        "Multi-blank (2, 4, 8), float32; around "
        + ", ".join(f"{key} = {base[key]}" for key in AXES)
        + f"; {base['threads']} threads where not said",
        fontsize=11,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(quick: bool, out: pathlib.Path) -> list[str]:
    """Writes both files; returns what there is to say of it."""
    rows = measure(quick)
    write_csv(FIELDS, rows, out / "scaling.csv")
    lines = ["Threads, ms at B = {B}, T = {T}, U = {U}, V = {V}:".format(**rows[0])]
    for program in PROGRAMS:
        threads = [r for r in rows if r["axis"] == "threads" and r["program"] == program]
        cells = [f"{r['threads']}: {float(r['median_ms']):.2f}" for r in threads]
        lines.append(f"  {program:28}" + "   ".join(cells))
    try:
        draw(rows, out / "scaling.png")
    except ImportError as error:
        lines.append(f"scaling.png: not drawn: {error}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--points", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.points is not None:
        points = [(axis, value, tuple(shape)) for axis, value, shape in arguments.points]
        run_points(points, arguments.seconds)
    else:
        print("\n".join(run(arguments.quick, arguments.out)))


if __name__ == "__main__":
    main()
