"""Draws rivals.png from what was measured: the loss's time and the joint's memory against others'.

`python docs/pictures/rivals.py` reads benchmarks/results/loss.csv and joint.csv.
"""

import csv
import pathlib

import matplotlib

matplotlib.use("Agg")  # No display is wanted.

import matplotlib.pyplot as plt

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
OURS, OTHERS = "#0072B2", "#999999"

TIMES = {  # a program of loss.csv, its name here
    "ours": "this package",
    "our pure JAX": "this package, its pure JAX",
    "strong": "pure JAX, gradient by hand",
    "autodiff scan": "pure JAX, gradient by JAX",
    "remat scan": "the same, log-softmax made twice",
    "ours, RNN-T": "this package, RNN-T",
    "torchaudio, RNN-T": "torchaudio, RNN-T",
}
CASE = "H 64, C 12"  # width of the joint, frames a chunk
MEMORY = {  # the same of joint.csv
    "chunked": "this package, chunks of frames",
    "remat": "pure JAX, chunks of frames",
    "whole": "this package, all logits",
}


def medians(name: str, quantity: str, **wanted: str) -> dict[str, float]:
    """Of each program, where the columns have these values."""
    with (RESULTS / name).open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    wanted |= {"quantity": quantity}
    found = [row for row in rows if all(row[key] == x for key, x in wanted.items())]
    assert found, f"{name}: no row has {wanted}"
    return {row["program"]: float(row["median"]) for row in found if row["median"]}


def points(axes: plt.Axes, values: dict[str, float], title: str) -> None:
    """On a logarithmic axis, where a bar would have no beginning."""
    for y, (name, value) in enumerate(values.items()):
        colour = OURS if name.startswith("this package") else OTHERS
        axes.plot(value, y, "o", color=colour, markersize=9)
        axes.annotate(f"{value:.0f}", (value, y), (9, -4), textcoords="offset points", fontsize=11)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(min(values.values()) / 1.5, 2.5 * max(values.values()))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(title, fontsize=12)
    axes.tick_params(labelsize=11, length=0, which="both")
    axes.grid(color="#DDDDDD")
    axes.spines[:].set_visible(False)


def main(picture: pathlib.Path) -> None:
    times = medians("loss.csv", "ms", shape="conformer", case="")
    B, T, U, V = 4, 800, 40, 512
    at = {"B": str(B), "T": str(T), "U": str(U), "V": str(V), "case": CASE}
    memory = medians("joint.csv", "temporaries, MiB", **at)
    logits = f"logits [{B}, {T}, {U + 1}, {V}], {4 * B * T * (U + 1) * V / 2**20:.0f} MiB"
    figure, (upper, lower) = plt.subplots(
        2, figsize=(7, 5.4), layout="constrained", height_ratios=[len(TIMES), len(MEMORY) + 1]
    )
    points(
        upper,
        {name: times[program] for program, name in TIMES.items()},
        "Loss and gradient, ms\nmulti-blank (2, 4, 8), logits [4, 200, 41, 1024]",
    )
    points(
        lower,
        {name: memory[program] for program, name in MEMORY.items()},
        f"The same with a joint: temporary memory, MiB\n{logits}",
    )
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main(pathlib.Path(__file__).with_suffix(".png"))
