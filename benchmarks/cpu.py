"""The CPU's table: `value_and_grad` of the losses beside floors, rivals and peers, in one run.

    python benchmarks/cpu.py [--quick] [--out DIR]

Multi-blank with durations 2, 4, 8 unless RNN-T or TDT is said (durations 0 to 4: V + 5 scores),
float32 unless bfloat16 is said. Every gradient is compared with pure JAX's before it is timed. All
programs of a shape take turns, in a new order each round. The same in a process that keeps its
memory, memory and scaling follow. Writes `cpu.txt` (what is printed), `cpu.csv`,
`scaling.csv` and `scaling.png`.
"""

import argparse
import dataclasses
import functools
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import floor
import kept
import memory
import peers
import precision
import scaling
from cpu_report import (
    BF16_FLOOR,
    FRESH,
    PEERS,
    PRECISION_GOAL,
    XLA_FLOOR,
    table_of_kept,
    table_of_ratios,
    table_of_times,
)
from machine import machine
from programs import MULTIBLANK, RNNT, TDT_0_TO_4, Kind, Problem, Shape, make_problem
from tables import write_csv
from timing import Call, Pass, interleave

SHAPES: list[Shape] = [
    (4, 100, 21, 29),
    (8, 200, 41, 128),
    (4, 200, 41, 1024),
    (2, 400, 81, 1024),
    (8, 150, 31, 500),
    (1, 1000, 101, 512),
]
QUICK_SHAPES = [SHAPES[0], SHAPES[1]]
QUICK_PROGRAMS = frozenset({"read", "copy", "exponential", "ours", "strong"})  # of the second,
QUICK_PROGRAMS |= {"ours, TDT", "strong, TDT"}
MEMORY_FROM = 16 << 20  # bytes of logits; below, the resident set tells of other things
HIDDEN = 16  # of the product in front: narrow, so that the loss is not lost beside it
# Absolute, on the gradient of one utterance's loss; a peer's arithmetic may be coarser, and
# logarithms in float32 lose digits over a thousand frames.
TOLERANCE = {"f32": 1e-4, "log-domain": 1e-3, "bf16": 1e-2, "peer": 2e-2}
FIELDS = ["B", "T", "U+1", "V", "program", "median_ms", "min_ms", "max_ms", "samples"]
FIELDS += ["max_error", "rss_growth_over_logits", "temp_over_logits", "note"]

Build = Callable[[str], Call]


def product(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """Of rows: for four dimensions XLA would transpose the logits' gradient (docs/cpu.md)."""
    rows = hidden.reshape(-1, hidden.shape[-1]) @ kernel
    return rows.reshape(*hidden.shape[:-1], -1)


class Table:
    """One shape: its programs, checked; then their times."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.calls: dict[str, Call] = {}
        self.errors: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self.memory: dict[str, dict[str, float]] = {}
        self.kept: dict[str, list[float]] = {}  # ms in a process that keeps its memory
        self.twins: dict[Kind, Any] = {}
        self.answers: dict[tuple[Kind, str], tuple[jax.Array, jax.Array]] = {}
        self.problem = make_problem(shape)
        self.problems = {(MULTIBLANK, "f32"): self.problem}

    def problem_of(self, kind: Kind, dtype: str) -> Problem:
        if (kind, dtype) not in self.problems:
            if dtype == "bf16":
                wide = self.problem_of(kind, "f32")
                made = dataclasses.replace(wide, logits=wide.logits.astype(jnp.bfloat16))
            elif kind.model.durations:
                made = make_problem(self.shape, kind)
            else:  # the same logits
                made = dataclasses.replace(self.problem, kind=kind)
            self.problems[kind, dtype] = made
        return self.problems[kind, dtype]

    # ---- What is timed -------------------------------------------------------------------

    def builders(self) -> dict[str, Build]:
        """In the order of the rows."""
        of = functools.partial
        rivals = {
            "strong": of(self.build, "strong"),
            "strong, RNN-T": of(self.build, "strong", kind=RNNT),
            "strong, bfloat16": of(self.build, "strong", dtype="bf16"),
            "strong, TDT": of(self.build, "strong", kind=TDT_0_TO_4),
            "strong, TDT, bfloat16": of(self.build, "strong", kind=TDT_0_TO_4, dtype="bf16"),
            "autodiff scan": of(self.build, "autodiff"),
            "remat scan": of(self.build, "remat"),
            "our pure JAX": lambda _: Call(self.twin(MULTIBLANK), lambda: (self.problem.logits,)),
        }
        return {
            "read": of(self.build_floor, "read"),
            "copy": of(self.build_floor, "copy"),
            FRESH: of(self.build_floor, "fresh copy"),
            "exponential": of(self.build_floor, "exponential"),
            XLA_FLOOR[0]: of(self.build_floor_of_xla, jnp.sum),
            XLA_FLOOR[1]: of(self.build_floor_of_xla, jnp.negative),
            BF16_FLOOR[0]: of(self.build_floor, "read", share=2),
            BF16_FLOOR[1]: of(self.build_floor, "copy", share=2),
            "ours": of(self.build, "ours"),
            "ours, RNN-T": of(self.build, "ours", kind=RNNT),
            "ours, bfloat16": of(self.build, "ours", dtype="bf16"),
            "ours, TDT": of(self.build, "ours", kind=TDT_0_TO_4),
            "ours, TDT, bfloat16": of(self.build, "ours", kind=TDT_0_TO_4, dtype="bf16"),
            "ours, donated": self.build_donated,
            "ours, with h @ W": self.build_behind_product,
            "h @ W alone": self.build_product,
            **rivals,
            PEERS[0]: of(self.build_peer, peers.torchaudio_rnnt),
            PEERS[1]: of(self.build_peer, peers.warp_transducer),
        }

    def build_floor(self, kind: str, name: str, share: int = 1) -> Call:
        num_bytes = self.problem.logits.nbytes // share
        return Pass(lambda: self.floors.milliseconds(kind, num_bytes), lambda: ())

    def build_floor_of_xla(self, function: Callable[[jax.Array], jax.Array], name: str) -> Call:
        """As a user gets it: under `jit`, where a result as large as the logits is fresh memory."""
        program = jax.jit(function).lower(self.problem.logits).compile()
        return Call(program, lambda: (self.problem.logits,))

    def build(self, which: str, name: str, kind: Kind = MULTIBLANK, dtype: str = "f32") -> Call:
        problem = self.problem_of(kind, dtype)
        program = problem.compiled(which)
        (_, losses), gradient = program(problem.logits)
        precise = dtype != "f32" or which == "ours"
        self.check(name, losses, gradient, kind, TOLERANCE[dtype if precise else "log-domain"])
        return Call(program, lambda: (problem.logits,))

    def build_donated(self, name: str) -> Call:
        """The gradient takes the logits' place, as it does where logits are made within `jit`."""
        copy = jax.jit(jnp.copy)
        step = jax.jit(self.problem.step("ours"), donate_argnums=0)
        program = step.lower(self.problem.logits).compile()
        (_, losses), gradient = program(copy(self.problem.logits))
        self.check(name, losses, gradient, MULTIBLANK, TOLERANCE["f32"])
        return Call(program, lambda: (copy(self.problem.logits),))

    @functools.cached_property
    def operands(self) -> tuple[jax.Array, jax.Array]:
        """Of the product: h and W."""
        keys = jax.random.split(jax.random.key(1), 2)
        hidden = jax.random.normal(keys[0], (*self.shape[:3], HIDDEN))
        return hidden, jax.random.normal(keys[1], (HIDDEN, self.shape[3])) * (2 / HIDDEN**0.5)

    def build_behind_product(self, name: str) -> Call:
        def loss(which, hidden, kernel):
            return self.problem.loss(which, product(hidden, kernel))[0]

        def compiled(which):
            step = jax.value_and_grad(functools.partial(loss, which), argnums=(0, 1))
            return jax.jit(step).lower(*self.operands).compile()

        program = compiled("ours")
        got = jax.tree.leaves(program(*self.operands))
        expected = jax.tree.leaves(compiled("twin")(*self.operands))
        pairs = zip(got, expected, strict=True)
        error = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)
        self.judge(name, error, TOLERANCE["f32"])
        return Call(program, lambda: self.operands)

    def build_product(self, name: str) -> Call:
        def alone(hidden, kernel):
            logits, pull_back = jax.vjp(product, hidden, kernel)
            return pull_back(logits)

        program = jax.jit(alone).lower(*self.operands).compile()
        return Call(program, lambda: self.operands)

    def build_peer(self, peer: Callable[..., peers.Step], name: str) -> Call:
        step = peer(self.problem.logits, np.asarray(self.problem.labels))
        losses, gradient = (jnp.from_dlpack(result) for result in step())
        self.check(name, losses, gradient, RNNT, TOLERANCE["peer"])
        return Call(lambda: (step(), None)[1], lambda: ())  # its results are not JAX's

    # ---- Right? --------------------------------------------------------------------------

    def twin(self, kind: Kind) -> Any:
        """Compiled once, it answers for float32 and bfloat16, and is one of the rivals."""
        if kind not in self.twins:
            self.twins[kind] = self.problem_of(kind, "f32").compiled("twin")
        return self.twins[kind]

    def expected(self, kind: Kind, dtype: str) -> tuple[jax.Array, jax.Array]:
        if (kind, dtype) not in self.answers:
            logits = self.problem_of(kind, dtype).logits.astype(jnp.float32)
            (_, losses), gradient = self.twin(kind)(logits)
            self.answers[kind, dtype] = losses, gradient
        return self.answers[kind, dtype]

    def check(self, name, losses, gradient, kind, tolerance) -> None:
        dtype = "bf16" if gradient.dtype == jnp.bfloat16 else "f32"
        expected_losses, expected = self.expected(kind, dtype)
        apart = jnp.max(jnp.abs(gradient.astype(jnp.float32) - expected)) * self.shape[0]
        relative = jnp.max(jnp.abs(losses / expected_losses - 1))
        self.judge(name, float(jnp.maximum(apart, relative)), tolerance)

    def judge(self, name: str, error: float, tolerance: float) -> None:
        self.errors[name] = error
        if not error <= tolerance:  # NaN is wrong as well
            raise ArithmeticError(f"off by {error:.1e}")

    # ---- Run -----------------------------------------------------------------------------

    def run(self, seconds: float, rounds: tuple[int, int], some: frozenset[str]) -> None:
        """`some`: the only programs to run, or none to run them all."""
        self.floors = floor.Floor(self.problem.logits.nbytes)
        for name, build in self.builders().items():
            if some and name not in some:
                continue
            try:
                self.calls[name] = build(name)
            except ImportError as error:
                self.notes[name] = f"not here: {error}"
            except ArithmeticError as error:
                self.notes[name] = f"WRONG: {error}"
            except Exception as error:  # whatever a peer does is data
                self.notes[name] = f"fails: {type(error).__name__}: {error}".splitlines()[0]
            if name in self.notes and not self.notes[name].startswith("not here"):
                print(f"{self.shape} {name}: {self.notes[name]}", file=sys.stderr, flush=True)
        self.answers.clear()  # gradients, each as large as the logits
        interleave(self.calls, seconds, rounds)

    def release(self) -> None:
        """The arrays: the next shape needs the memory."""
        self.num_bytes = self.problem.logits.nbytes
        self.milliseconds = {name: call.milliseconds for name, call in self.calls.items()}
        del self.calls, self.problem, self.problems, self.floors, self.twins
        self.__dict__.pop("operands", None)

    def medians(self) -> dict[str, float]:
        found = {name: float(np.median(ms)) for name, ms in self.milliseconds.items()}
        if {"ours, with h @ W", "h @ W alone"} <= found.keys():
            found["ours, less h @ W"] = found["ours, with h @ W"] - found["h @ W alone"]
        return found

    def rows(self) -> list[dict[str, Any]]:
        result = []
        times = self.milliseconds | {f"{name}, memory kept": ms for name, ms in self.kept.items()}
        for name in dict.fromkeys([*self.builders(), *self.memory, *times]):
            row = dict(zip(FIELDS, self.shape, strict=False)) | {"program": name}
            if name in times:
                ms = times[name]
                row |= {"median_ms": f"{np.median(ms):.4f}", "min_ms": f"{min(ms):.4f}"}
                row |= {"max_ms": f"{max(ms):.4f}", "samples": len(ms)}
            if name in self.errors:
                row["max_error"] = f"{self.errors[name]:.2g}"
            if name in self.memory:
                row["rss_growth_over_logits"] = f"{self.memory[name]['growth']:.4f}"
                row["temp_over_logits"] = f"{self.memory[name]['temp']:.4f}"
            result.append(row | {"note": self.notes.get(name, "")})
        return result


# ---- All of it -----------------------------------------------------------------------------


def measure_memory(tables: list[Table], quick: bool) -> None:
    """Each in a process of its own; those that are no goal on one shape alone."""
    large = [table for table in tables if table.num_bytes >= MEMORY_FROM]
    for i, table in enumerate(large):
        which = {name: name for name in ("ours", "ours, TDT", "strong", "strong, TDT")}
        if i == 0 and not quick:
            which |= {"autodiff scan": "autodiff", "remat scan": "remat", "our pure JAX": "twin"}
        for name, key in which.items():
            try:
                table.memory[name] = memory.measure(table.shape, key)
            except subprocess.CalledProcessError as error:
                print(f"memory of {name}: {error}", file=sys.stderr)


def main() -> None:
    results = pathlib.Path(__file__).with_name("results")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute: does everything run?")
    parser.add_argument("--out", type=pathlib.Path, default=results)
    parser.add_argument("--seconds", type=float, help="of rounds, a shape")
    arguments = parser.parse_args()
    quick, out = arguments.quick, arguments.out
    seconds = arguments.seconds or (1.5 if quick else 20.0)
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    text: list[str] = []

    def say(*lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        text.extend(lines)

    say("$ python benchmarks/cpu.py" + " --quick" * quick, *machine(), "")
    tables = []
    for shape in QUICK_SHAPES if quick else SHAPES:
        tables.append(Table(shape))
        some = QUICK_PROGRAMS if quick and len(tables) > 1 else frozenset()
        tables[-1].run(seconds, (3, 5 if quick else 25), some)
        tables[-1].release()
        print(f"{shape}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    say("value_and_grad, ms: median [min,max] of interleaved rounds. Durations 2, 4, 8, float32,")
    say("logits that stay the caller's, if nothing else is said; TDT: durations 0 to 4.", "")
    say(*table_of_times(tables), "")
    measure_memory(tables, quick)
    for table in tables:
        table.kept = kept.measure(table.shape, seconds / 4)
    say("Ratios of these medians, and memory", "", *table_of_ratios(tables), "")
    say("Growth: of the resident set of a fresh process to its peak, gradient (1.00) included.")
    say(f"Where the logits are below {MEMORY_FROM >> 20} MiB it tells of other things.", "")
    settings = " ".join(f"{key}={value}" for key, value in kept.SETTINGS.items())
    say(f"In a process that keeps its memory ({settings}), ms and ratios", "")
    say(*table_of_kept(tables), "")
    if not quick:
        say(f"Largest error of a float32 gradient against float64 at {precision.SHAPE},")
        say(f"goal {PRECISION_GOAL:.0e}:")
        say(*(f"  {name:24}{error:.1e}" for name, error in precision.measure().items()), "")
    write_csv(FIELDS, [row for table in tables for row in table.rows()], out / "cpu.csv")
    say(*scaling.run(quick, out), "")
    say(f"{time.monotonic() - start:.0f} s in all")
    (out / "cpu.txt").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
