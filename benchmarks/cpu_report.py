"""What `cpu.py` prints: tables of medians, and of their ratios beside the goals."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from programs import Shape

SMALL_V = 128  # below, the lattice counts, and the goal is a peer's time instead of the floor's
# To be read beside the ratios: nothing here asserts a time.
FLOOR_GOAL, RIVAL_GOAL, PEER_GOAL, MEMORY_GOAL = 1.5, 0.5, 1 / 3, 1.05
TDT_GOAL, TDT_MEMORY_GOAL = 1.25, 1.06  # of times: over multi-blank
PRECISION_GOAL = 1e-4
# Names of programs, where a ratio needs them.
FRESH = "copy to fresh memory"
BF16_FLOOR = ("read, bfloat16", "copy, bfloat16")
XLA_FLOOR = ("read by XLA", "copy by XLA")
PEERS = ("torchaudio, RNN-T", "warp-transducer, RNN-T")


class Table(Protocol):
    """Of one shape."""

    shape: Shape
    num_bytes: int
    milliseconds: dict[str, list[float]]
    kept: dict[str, list[float]]  # in a process that keeps its memory
    memory: dict[str, dict[str, float]]
    notes: dict[str, str]  # why there is no time

    def builders(self) -> Iterable[str]: ...
    def medians(self) -> dict[str, float]: ...


def number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def line(name: str, cells: list[str]) -> str:
    return f"{name:24}" + "".join(f"{cell:>20}" for cell in cells)


def cell(ms: list[float]) -> str:
    return f"{number(float(np.median(ms)))} [{number(min(ms))},{number(max(ms))}]"


def shapes(tables: Sequence[Table]) -> str:
    return line("(B, T, U+1, V)", [",".join(map(str, table.shape)) for table in tables])


def table_of_times(tables: Sequence[Table]) -> list[str]:
    sizes = line("logits, MiB", [f"{t.num_bytes / 2**20:.1f}" for t in tables])
    lines = [shapes(tables), sizes]
    medians = [table.medians() for table in tables]
    for name in tables[0].builders():
        cells = []
        for table, found in zip(tables, medians, strict=True):
            if name in found:
                cells.append(cell(table.milliseconds[name]))
            else:
                cells.append(table.notes.get(name, "-").split(":")[0])
        lines.append(line(name, cells))
        if name == "h @ W alone":
            less = [number(found.get("ours, less h @ W")) for found in medians]
            lines.append(line("ours, less h @ W", less))
    return lines


Ratio = Callable[[Table, dict[str, float]], float | None]  # of medians
Row = tuple[str, float | None, Ratio]  # with the goal


def over(above: str, *below: str) -> Ratio:
    def ratio(table: Table, ms: dict[str, float]) -> float | None:
        if above not in ms or any(name not in ms for name in below):
            return None
        return ms[above] / sum(ms[name] for name in below)

    return ratio


def over_floor(above: str, *below: str) -> Ratio:
    big = over(above, *below)
    return lambda table, ms: big(table, ms) if table.shape[3] >= SMALL_V else None


TDT_ROWS: list[Row] = [
    ("ours / strong, TDT", RIVAL_GOAL, over("ours, TDT", "strong, TDT")),
    ("the same, bfloat16", RIVAL_GOAL, over("ours, TDT, bfloat16", "strong, TDT, bfloat16")),
    ("TDT / multi-blank, ours", TDT_GOAL, over("ours, TDT", "ours")),
    ("the same, bfloat16", TDT_GOAL, over("ours, TDT, bfloat16", "ours, bfloat16")),
]


def lines_of_ratios(rows: list[Row], tables: Sequence[Table], medians: list[dict]) -> list[str]:
    """A goal stands beside, for a reader to compare."""
    lines = [f"{'':36}{'goal':>8}" + "".join(f"{','.join(map(str, t.shape)):>16}" for t in tables)]
    for name, goal, ratio in rows:
        found = [ratio(table, ms) for table, ms in zip(tables, medians, strict=True)]
        cells = "".join(f"{'-' if x is None else format(x, '.2f'):>16}" for x in found)
        lines.append(f"{name:36}{'' if goal is None else format(goal, '.2f'):>8}{cells}")
    return lines


def table_of_kept(tables: Sequence[Table]) -> list[str]:
    medians = [{name: float(np.median(ms)) for name, ms in t.kept.items()} for t in tables]
    times = [line(name, [cell(t.kept[name]) for t in tables]) for name in tables[0].kept]
    rows: list[Row] = [
        ("ours / strong", RIVAL_GOAL, over("ours", "strong")),
        ("the same, bfloat16", RIVAL_GOAL, over("ours, bfloat16", "strong, bfloat16")),
        *TDT_ROWS,
        ("ours / (read + copy)", FLOOR_GOAL, over_floor("ours", "read", "copy")),
        ("the same, bfloat16", FLOOR_GOAL, over_floor("ours, bfloat16", *BF16_FLOOR)),
        ("bfloat16 / float32, ours", None, over("ours, bfloat16", "ours")),
    ]
    return [shapes(tables), *times, "", *lines_of_ratios(rows, tables, medians)]


def table_of_ratios(tables: Sequence[Table]) -> list[str]:
    def over_peer(table: Table, ms: dict[str, float]) -> float | None:
        best = [ms[name] for name in PEERS if name in ms]
        small = table.shape[3] < SMALL_V
        return ms["ours"] / min(best) if small and best and "ours" in ms else None

    def of_memory(name: str, key: str):
        return lambda table, _: table.memory.get(name, {}).get(key)

    rows: list[Row] = [
        ("ours / strong", RIVAL_GOAL, over("ours", "strong")),
        ("the same, RNN-T", RIVAL_GOAL, over("ours, RNN-T", "strong, RNN-T")),
        ("the same, bfloat16", RIVAL_GOAL, over("ours, bfloat16", "strong, bfloat16")),
        *TDT_ROWS,
        ("ours / (read + copy)", FLOOR_GOAL, over_floor("ours", "read", "copy")),
        ("the same, bfloat16", FLOOR_GOAL, over_floor("ours, bfloat16", *BF16_FLOOR)),
        ("ours, donated / (read + copy)", None, over_floor("ours, donated", "read", "copy")),
        ("ours / (read + copy to fresh memory)", None, over_floor("ours", "read", FRESH)),
        ("ours / (read + copy by XLA)", None, over_floor("ours", *XLA_FLOOR)),
        ("bfloat16 / float32, ours", None, over("ours, bfloat16", "ours")),
        ("ours / best peer, small V", PEER_GOAL, over_peer),
        ("peak growth / logits, ours", MEMORY_GOAL, of_memory("ours", "growth")),
        ("  ours, TDT", TDT_MEMORY_GOAL, of_memory("ours, TDT", "growth")),
        ("  strong", None, of_memory("strong", "growth")),
        ("  strong, TDT", None, of_memory("strong, TDT", "growth")),
        ("  autodiff scan", None, of_memory("autodiff scan", "growth")),
        ("  remat scan", None, of_memory("remat scan", "growth")),
        ("  our pure JAX", None, of_memory("our pure JAX", "growth")),
        ("XLA's temporaries / logits, ours", None, of_memory("ours", "temp")),
        ("  ours, TDT", None, of_memory("ours, TDT", "temp")),
        ("  strong", None, of_memory("strong", "temp")),
        ("  strong, TDT", None, of_memory("strong, TDT", "temp")),
    ]
    return lines_of_ratios(rows, tables, [table.medians() for table in tables])
