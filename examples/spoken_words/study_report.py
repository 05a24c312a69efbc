"""The study's tables and picture, from its rows."""

import collections
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # Before pyplot: no window is wanted, nor may a display be there.

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from speech.intervals import Interval, WordErrors, difference_interval, rate_interval
from spoken_words.evaluation import BEAMS

Row = dict[str, Any]


class Point(NamedTuple):
    """An arm in a test, over all of its seeds."""

    seeds: int
    errors: WordErrors
    joint_evaluations: float
    rows: list[Row]

    @property
    def interval(self) -> Interval:
        return rate_interval(self.errors)


def errors_of(row: Row, how: str) -> WordErrors:
    """What a row has kept of them: a digit of words an utterance, and where there are errors."""
    words = np.array([int(digit) for digit in row["words"]])
    counts = np.zeros((3, len(words)), int)
    for i, *of_utterance in row["decoding"][how]["errors"]:
        counts[:, i] = of_utterance
    return WordErrors(words, *counts)


def joined(all_errors: Sequence[WordErrors]) -> WordErrors:
    """The utterances of several seeds as those of one."""
    return WordErrors(*map(np.concatenate, zip(*all_errors, strict=True)))


def point(rows: Sequence[Row], arm: str, test: str, how: str, seeds: Sequence[int] = ()) -> Point:
    """Of these seeds, or of all that there are."""
    found = [
        row
        for row in rows
        if row["arm"] == arm and row["what"] == f"{test} test" and how in row["decoding"]
        if not seeds or row["seed"] in seeds
    ]
    found.sort(key=lambda row: row["seed"])
    decodings = [row["decoding"][how] for row in found]
    evaluations = np.mean([x["joint_evaluations"] for x in decodings]) if found else np.nan
    of_rows = [errors_of(row, how) for row in found] or [WordErrors(*np.zeros((4, 0), int))]
    return Point(len(found), joined(of_rows), float(evaluations), found)


def seeds_of(rows: Sequence[Row], arm: str, test: str) -> list[int]:
    return sorted({x["seed"] for x in rows if x["arm"] == arm and x["what"] == f"{test} test"})


def report(console: Console, output: pathlib.Path, rows: Sequence[Row]) -> None:
    """Prints and writes `study.md`, and draws `study.png`."""
    names = list(dict.fromkeys(row["arm"] for row in rows if row["what"] == "errors"))
    if "RNN-T" not in names:
        console.print("No row of the RNN-T yet, with which all others are compared.")
        return
    text = "\n\n".join(
        [
            *(_table_of_errors(rows, names, test) for test in ("easy", "hard")),
            _table_of_decodings(rows, names),
            _table_of_jumps(rows, names),
            _table_of_times(rows, names),
        ]
    )
    (output / "study.md").write_text(text + "\n")
    console.print(text, markup=False)
    _plot(output / "study.png", rows, names)


def markdown(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _percent(x: float) -> str:
    return f"{100 * x:.2f}"


def _table_of_errors(rows: Sequence[Row], names: Sequence[str], test: str) -> str:
    lines = []
    for name in names:
        seeds = sorted({*seeds_of(rows, name, test)} & {*seeds_of(rows, "RNN-T", test)})
        if not seeds:
            continue
        greedy, beam = (point(rows, name, test, how, seeds) for how in ("greedy", "beam"))
        rnnt = point(rows, "RNN-T", test, "greedy", seeds)
        counts = [int(x.sum()) for x in greedy.errors[1:]]
        delays = [1000 * row["delay"] for row in greedy.rows if "delay" in row]
        worse = sum(row["beam_errors"] for row in greedy.rows)
        each = [_percent(errors_of(r, "greedy").rate) for r in greedy.rows]
        lines.append(
            [
                *(name, ", ".join(each), _percent(greedy.errors.rate), greedy.interval),
                difference_interval(greedy.errors, rnnt.errors),
                "/".join(map(str, counts)),
                f"{greedy.joint_evaluations:.1f}",
                f"{rnnt.joint_evaluations / greedy.joint_evaluations:.2f}",
                f"{_percent(beam.errors.rate)} ({worse})",
                f"{np.mean(delays):.0f}" if delays else "",
            ]
        )
    head = [
        *("", "WER % of each seed", "of all", "95 %", "above RNN-T, 95 %", "sub/del/ins"),
        *("nodes", "RNN-T's nodes over these", "beam 4 (less probable)", "delay ms"),
    ]
    return f"**The {test} test**, greedy\n\n" + markdown(head, lines)


def _table_of_decodings(rows: Sequence[Row], names: Sequence[str]) -> str:
    lines = []
    for name in names:
        found = [row for row in rows if row["arm"] == name and row["what"] == "easy test"]
        ways = list(dict.fromkeys(how for row in found for how in row["decoding"]))
        for how in ways:
            if how not in ("greedy", "beam"):
                at = point(rows, name, "easy", how)
                evaluations = f"{at.joint_evaluations:.1f}"
                lines.append([name, how, _percent(at.errors.rate), at.interval, evaluations])
    head = ["", "how", "WER %", "95 %", "nodes"]
    options = ", ".join(f"{name} {value}" for name, value in BEAMS["narrow beam"].items())
    title = "Decoding with shorter durations than in training, and with a narrow beam"
    return f"**{title}** ({options})\n\n" + markdown(head, lines)


def _table_of_jumps(rows: Sequence[Row], names: Sequence[str]) -> str:
    lines = []
    for name in names:
        found = [row for row in rows if row["arm"] == name and row["what"] == "easy test"]
        counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        for row in found:
            for kind, of_kind in row["longest_before"].items():
                counts[kind].update(of_kind)
        durations = sorted({int(d) for of_kind in counts.values() for d in of_kind})
        if len(durations) < 3:
            continue
        wrong = sum((counts[kind] for kind in counts if kind != "equal"), collections.Counter())
        of_errors = ", ".join(
            f"{d}: {wrong[str(d)]} of {wrong[str(d)] + counts['equal'][str(d)]}" for d in durations
        )
        deleted = ", ".join(f"{d}: {counts['delete'][str(d)]}" for d in durations)
        arcs: collections.Counter = collections.Counter()
        for row in found:
            arcs.update(row["arcs"])
        used = ", ".join(f"{arc}: {n / len(found):.1f}" for arc, n in arcs.items() if n > 0)
        lines.append([name, of_errors, deleted, used])
    head = ["", "wrong characters, by the longest jump before", "deleted ones", "arcs taken"]
    return "**Which jumps come before errors**\n\n" + markdown(head, lines)


def _table_of_times(rows: Sequence[Row], names: Sequence[str]) -> str:
    ways = {"greedy": "greedy", "narrow beam": "narrow beam"}
    ways |= {"beam": "beam 4", "whole": "with encoder"}
    lines = []
    for name in names:
        found = [row for row in rows if row["arm"] == name and row["what"] == "times"]
        if found:
            cells = [
                f"{1000 * float(np.mean([row[size][how] for row in found])):.2f}"
                for size in ("B=1", "B=16")
                for how in ways
            ]
            lines.append([name, *cells])
    head = ["ms an utterance"]
    head += [f"{what}, {size}" for size in ("B = 1", "B = 16") for what in ways.values()]
    return "**Decoding times**\n\n" + markdown(head, lines)


def _plot(path: pathlib.Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Word error rate against nodes, a point an arm, with error bars."""
    figure, all_axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axes, test in zip(all_axes, ("easy", "hard"), strict=True):
        for i, name in enumerate(names):
            at = point(rows, name, test, "greedy")
            if at.seeds:
                rate, bars = 100 * at.errors.rate, 100 * np.array(at.interval)
                axes.errorbar(
                    at.joint_evaluations,
                    rate,
                    yerr=[[max(0.0, rate - bars[0])], [max(0.0, bars[1] - rate)]],
                    marker="osD^v<>pP*X"[i % 11],
                    color=plt.get_cmap("tab20")(i % 20),
                    capsize=3,
                    linestyle="none",
                    label=name,
                )
        axes.set(
            title=f"The {test} test",
            xlabel="joint evaluations an utterance",
            ylabel="word error rate (%), 95 % interval",
        )
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
