"""Tables for the terminal, pictures and numbers for the disk."""

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jiwer
import matplotlib

matplotlib.use("Agg")  # Before pyplot: no window is wanted, nor may a display be there.

import matplotlib.pyplot as plt
import numpy as np
import rich.box
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from jax_mbrnnt import Arc
from speech.intervals import difference_interval
from speech.log_mel import FRAME_SECONDS
from spoken_words.evaluation import BEAMS, Evaluation, Searched
from spoken_words.model import ENCODER_FRAME_SECONDS
from spoken_words.recipe import Recipe

# Okabe and Ito's colours, which colour-blind readers tell apart too.
_LABEL_COLOUR = "#D55E00"
_BLANK_COLOURS = ("#000000", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9")
_RECOGNISER_COLOURS = ("#0072B2", "#D55E00", "#009E73")


def print_tables(console: Console, evaluations: Mapping[str, Evaluation]) -> None:
    """Prints the recognisers side by side, and each beside the RNN-T, if that is one of them."""
    for search in next(iter(evaluations.values())).searches:
        options = [f"{name} {value}" for name, value in BEAMS.get(search, {}).items()]
        heads = ("word\nerrors, %", "95 %", "above the\nRNN-T, 95 %", "joint\nevaluations", "ms")
        table = _table(", ".join(["Unseen utterances", search, *options]), heads)
        for name, evaluation in evaluations.items():
            found, of_rnnt = evaluation.searches[search], evaluations.get("RNN-T", evaluation)
            above = difference_interval(found.errors, of_rnnt.searches[search].errors)
            table.add_row(
                name,
                f"{100 * found.errors.rate:.2f}",
                str(found.interval),
                "" if of_rnnt is evaluation else str(above),
                f"{found.joint_evaluations:.1f}",
                f"{1000 * found.seconds:.2f}",
            )
        console.print(table)
    console.print(
        "Milliseconds are the search's alone, of an utterance that is decoded by itself.\n"
    )

    table = _table("", ("loss, nats\na character", "encoder and\ngreedy search, ms"))
    for name, evaluation in evaluations.items():
        milliseconds = 1000 * evaluation.decoding_seconds
        table.add_row(name, f"{evaluation.loss:.4f}", f"{milliseconds:.2f}")
    console.print(table)


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, box=rich.box.SIMPLE_HEAD)
    table.add_column("recogniser", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def print_samples(console: Console, evaluations: Mapping[str, Evaluation], count: int = 4) -> None:
    """Prints what was said and what was recognised, misrecognised utterances first."""
    references = next(iter(evaluations.values())).references
    heard = {name: e.searches["greedy"].hypotheses for name, e in evaluations.items()}

    def mistakes(i: int) -> float:
        return sum(jiwer.wer(references[i], hypotheses[i]) for hypotheses in heard.values())

    table = Table(title="Some of them, the worst first", box=rich.box.SIMPLE, show_header=False)
    for i in sorted(range(len(references)), key=mistakes, reverse=True)[:count]:
        table.add_row("said", references[i], style="bold")
        for name, hypotheses in heard.items():
            is_right = hypotheses[i] == references[i]
            table.add_row(name, hypotheses[i], style="green" if is_right else "red")
        table.add_section()
    console.print(table)


def plot_losses(path: pathlib.Path, losses: Mapping[str, Sequence[float]]) -> None:
    """Draws the training loss of every step, faintly, and its running mean."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for colour, (name, values) in zip(_RECOGNISER_COLOURS, losses.items(), strict=False):
        steps = np.arange(1, len(values) + 1)
        window = max(1, min(11, len(values) // 4))
        smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
        middle = steps[(window - 1) // 2 :][: len(smooth)]
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(middle, smooth, color=colour, linewidth=2, label=name)
    axes.set(
        title="Training loss (faint: of every step; with sigma for every arc where there is one)",
        xlabel="step",
        ylabel="nats a character",
        yscale="log",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_lattices(
    path: pathlib.Path,
    text: str,
    features: np.ndarray,
    posteriors: Mapping[str, np.ndarray],
    arcs: Mapping[str, Sequence[Arc]],
) -> None:
    """Draws the way of each recogniser through one utterance's lattice, over its log-mel image.

    Every arc is a line from its node to the next one, the more opaque the more probable it is.

    Args:
      path: where the PNG is written.
      text: what is said; U characters.
      features: `[F, mel bands]`, log-mel.
      posteriors: of each recogniser, `[T, U + 1, A]`.
      arcs: what the A arcs of each recogniser are.
    """
    blanks = sorted({arc.duration for of_one in arcs.values() for arc in of_one if not arc.emits})
    colours = dict(zip(blanks, itertools.cycle(_BLANK_COLOURS), strict=False))
    height = 0.9 + len(posteriors) * max(3.0, 0.17 * len(text))
    figure, all_axes = plt.subplots(
        len(posteriors), figsize=(12, height), sharex=True, layout="constrained", squeeze=False
    )
    for axes, (name, posterior) in zip(all_axes[:, 0], posteriors.items(), strict=True):
        axes.imshow(
            features.T,
            origin="lower",
            aspect="auto",
            cmap="Greys",
            alpha=0.45,
            extent=(0, len(features) * FRAME_SECONDS, -0.5, len(text) + 0.5),
        )
        shares: dict[str, float] = collections.defaultdict(float)
        colour_of = {}
        for a, arc in enumerate(arcs[name]):
            frames = "1 frame" if arc.duration == 1 else f"{arc.duration} frames"
            kind = "label" if arc.emits else f"blank, {frames}"
            colour_of[kind] = _LABEL_COLOUR if arc.emits else colours[arc.duration]
            _draw_arc(axes, arc, posterior[..., a], colour_of[kind])
            shares[kind] += arc.duration * posterior[..., a].sum() / len(posterior)
        for kind, share in shares.items():  # For the legend alone.
            axes.plot([], [], color=colour_of[kind], linewidth=2.5, label=f"{kind}: {share:.0%}")
        axes.set(
            title=name,
            ylabel="character",
            yticks=np.arange(len(text)) + 0.5,
            yticklabels=["␣" if character == " " else character for character in text],
        )
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.legend(loc="lower right", title="arc, and the time it covers", framealpha=0.95)
    all_axes[-1, 0].set_xlabel("time (s); in grey the log-mel image, 60 Hz to 3.9 kHz upwards")
    figure.suptitle(f"Posterior mass of the arcs: “{text}”")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_arc(axes: Any, arc: Arc, mass: np.ndarray, colour: str) -> None:
    """Draws one kind of arc wherever it has mass `[T, U + 1]`."""
    frames, positions = np.nonzero(mass > 0.01)
    tails = np.stack([frames * ENCODER_FRAME_SECONDS, positions], axis=-1)
    step = np.array([arc.duration * ENCODER_FRAME_SECONDS, float(arc.emits)])
    axes.add_collection(
        LineCollection(
            list(np.stack([tails, tails + step], axis=1)),
            colors=[to_rgba(colour, min(1.0, p)) for p in mass[frames, positions]],
            linewidths=2.5,
            capstyle="butt",
        )
    )


def write_json(
    path: pathlib.Path,
    seconds: float,
    recipe: Recipe,
    losses: Mapping[str, Sequence[float]],
    evaluations: Mapping[str, Evaluation],
) -> None:
    """Writes everything that was set and measured."""
    results = {
        "seconds": seconds,
        "recipe": dataclasses.asdict(recipe),
        "recognisers": {
            name: {"training_losses": losses[name], **vars(evaluation)}
            | {"searches": {how: _plain(found) for how, found in evaluation.searches.items()}}
            for name, evaluation in evaluations.items()
        },
    }
    path.write_text(json.dumps(results, indent=2) + "\n")


def _plain(found: Searched) -> dict[str, Any]:
    others = {name: value for name, value in vars(found).items() if name != "errors"}
    return {"word_error_rate": found.errors.rate} | others
