"""Draws lattice.png: a lattice in three transducers, each arc as wide as its posterior.

`python docs/pictures/lattice.py`. The scores are made up, of a speaker who says three labels with a
pause in between; the posteriors are the package's.
"""

import pathlib

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # No display is wanted.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch

from jax_mbrnnt import TDT, MultiblankRNNT, Transducer

T, LABELS = 14, "yes"
SPOKEN = [1, 2, 10, T]  # the frame of each label, and of the end
LABEL_COLOUR = "#D55E00"  # Okabe and Ito's colours, which colour-blind readers tell apart too
BLANK_COLOURS = {1: "#000000", 2: "#009E73", 3: "#56B4E9", 4: "#0072B2"}


def logits_of(transducer: Transducer) -> np.ndarray:
    """`[T, U+1, V]`: labels are probable where they are spoken, durations that lead there, too."""
    frame, next_label = np.arange(T)[:, None], np.array(SPOKEN)
    wait = next_label - frame  # [T, U+1], frames until the next label
    label = 3.0 - 2.0 * abs(wait)
    scores = np.repeat(label[..., None], len(LABELS), axis=-1)
    if isinstance(transducer, TDT):
        blank = np.zeros_like(label)
        # From a label to the next one, or from a pause.
        after = np.append(next_label[1:], T) - frame
        goal = np.where(wait <= 0, after, wait)
        durations = [2.0 - 1.5 * abs(np.minimum(goal, 4) - d) for d in transducer.durations]
        return np.stack([*np.moveaxis(scores, -1, 0), blank, *durations], axis=-1)
    blanks = [
        np.where(wait >= d, 1.0 + 0.6 * d, -4.0) for d in reversed(transducer.big_blank_durations)
    ]
    return np.stack([*np.moveaxis(scores, -1, 0), *blanks, np.zeros_like(label)], axis=-1)


def draw(axes: plt.Axes, name: str, transducer: Transducer) -> None:
    logits = jnp.asarray(logits_of(transducer), jnp.float32)
    posteriors = np.asarray(transducer.posteriors(logits, jnp.arange(len(LABELS))))
    frames, columns = np.meshgrid(np.arange(T), np.arange(len(LABELS) + 1))
    axes.scatter(frames, columns, s=12, color="#BBBBBB", zorder=3)
    axes.scatter([T], [len(LABELS)], s=26, color="black", zorder=3)
    nodes = posteriors.sum()  # of a path, in the mean
    for a, arc in enumerate(transducer.arcs):
        for t, u in zip(*np.nonzero(posteriors[..., a] > 0.004), strict=True):
            axes.add_patch(
                FancyArrowPatch(
                    (t, u),
                    (t + arc.duration, u + arc.emits),
                    arrowstyle="-",
                    connectionstyle=f"arc3,rad={0.28 if arc.duration > 1 and not arc.emits else 0}",
                    color=LABEL_COLOUR if arc.emits else BLANK_COLOURS[arc.duration],
                    linewidth=5 * posteriors[t, u, a],
                    alpha=0.85,
                    shrinkA=0,
                    shrinkB=0,
                    zorder=2,
                )
            )
    axes.set_title(f"{name}: {nodes:.1f} arcs a path", fontsize=12, loc="left")
    axes.set(
        xlim=(-0.4, T + 0.4),
        ylim=(-0.75, len(LABELS) + 0.3),
        xticks=range(0, T + 1, 2),
        yticks=np.arange(len(LABELS)) + 0.5,
        yticklabels=list(LABELS),
    )
    axes.tick_params(length=0, labelsize=11)
    axes.spines[:].set_visible(False)


def main(picture: pathlib.Path) -> None:
    transducers = {
        "RNN-T": MultiblankRNNT(),
        "Multi-blank, durations 2 and 4": MultiblankRNNT(big_blank_durations=(2, 4)),
        "TDT, durations 0 to 4": TDT(durations=(0, 1, 2, 3, 4)),
    }
    figure, all_axes = plt.subplots(3, figsize=(7, 7), sharex=True, layout="constrained")
    for axes, (name, transducer) in zip(all_axes, transducers.items(), strict=True):
        draw(axes, name, transducer)
    all_axes[-1].set_xlabel("frame", fontsize=12)
    legend = [plt.Line2D([], [], color=LABEL_COLOUR, linewidth=3, label="label")]
    legend += [
        plt.Line2D([], [], color=colour, linewidth=3, label=f"blank of {d}")
        for d, colour in BLANK_COLOURS.items()
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=5, frameon=False, fontsize=11)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main(pathlib.Path(__file__).with_suffix(".png"))
