"""How measurements are written down and drawn, whatever was measured."""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any


def write_csv(fields: Sequence[str], rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def dress(plot: Any, ticks: Sequence[int]) -> None:
    """Logarithmic axes with plain numbers, on x those that were measured."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    plot.set_xscale("log", base=2)
    plot.set_yscale("log")
    plot.xaxis.set_major_locator(FixedLocator(ticks))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    plot.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    plot.tick_params(labelsize=8.5)
    plot.grid(True, which="major", color="#dddddd", linewidth=0.7)
    plot.spines[["top", "right"]].set_visible(False)
