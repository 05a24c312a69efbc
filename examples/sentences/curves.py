"""Draws the learning curves of some trainings: `curves.py OUTPUT... --picture curves.png`."""

import dataclasses
import json
import pathlib

import matplotlib
import tyro

matplotlib.use("Agg")

import matplotlib.pyplot as plt

_TITLES = {
    "loss": "development loss, nats a piece",
    "word_error_rate": "word error rate",
    "nodes_a_frame": "joint evaluations a frame",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Draws the learning curves of some trainings."""

    outputs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Output directories of train.py; their names are the legend."""
    picture: pathlib.Path = pathlib.Path("curves.png")
    """Where to draw."""


def main(options: Options) -> None:
    """Draws what `dev.jsonl` of each has."""
    figure, axes = plt.subplots(1, len(_TITLES), figsize=(4 * len(_TITLES), 3.2), dpi=120)
    for output in options.outputs:
        rows = [json.loads(line) for line in (output / "dev.jsonl").read_text().splitlines()]
        for axis, name in zip(axes, _TITLES, strict=True):
            axis.plot([r["step"] for r in rows], [r[name] for r in rows], ".-", label=output.name)
    for axis, title in zip(axes, _TITLES.values(), strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(options.picture)


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
