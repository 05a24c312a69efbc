"""The loss of a joint network, a chunk of frames at a time, beside all logits at once.

A training step, `value_and_grad` by the params and both inputs of the joint; the gradients are
compared first. `whole` is `multiblank_rnnt_loss` of all logits; `chunked` is
`multiblank_rnnt_joint_loss` with its own choice of chunks (C frames); `remat` is pure JAX, a scan
over as long chunks under `jax.checkpoint`. The temporary memory is XLA's own count. The joint is
`tanh(encoded + predicted) @ W + b` of width H, float32.

--huge is one step of logits of 59 GB, --large what a GPU trains with, in bfloat16.
"""

import argparse
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from jax_mbrnnt import multiblank_rnnt_joint_loss, multiblank_rnnt_loss

from . import memory, rivals
from .problems import BIG_BLANKS, DTYPES, SHAPES, Shape
from .results import Panel, Ratio, Report, Row, draw, lines_by_problem, lines_of, lines_of_ratios
from .timing import Call, interleave

WIDTH = 64
VALUES = {
    "B": [1, 2, 4, 8],
    "T": [50, 100, 200, 400, 800],
    "U": [10, 20, 40, 80, 160],
    "V": [64, 128, 256, 512, 1024, 2048, 4096],
    "H": [16, 64, 256, 640],
    "C": [1, 2, 5, 10, 20, 50, 100, 200],  # frames a chunk, instead of the default
}
QUICK_VALUES = {"B": [1, 2], "V": [32, 64], "C": [5, 10]}
LARGE_CHUNKS = (1, 3, 7, 14, 28)
NAMES = {
    "chunked": "chunks, this package",
    "remat": "chunks, strong pure JAX",
    "whole": "all logits, kernels",
}
TOLERANCE = {"f32": 1e-4, "bf16": 3e-2}  # of the gradients, relative to the largest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--large", action="store_true")


def joint(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    hidden = jnp.tanh(encoded[:, :, None] + predicted[:, None])
    return hidden @ params["kernel"] + params["bias"]


class Steps:
    """A size's training steps: what they are given, compiled, compared."""

    def __init__(self, shape: Shape, width: int, dtype: str = "f32") -> None:
        self.shape, self.width, self.dtype = shape, width, dtype
        keys = jax.random.split(jax.random.key(0), 4)
        normal = functools.partial(jax.random.normal, dtype=DTYPES[dtype])
        params = {
            "kernel": 2 * normal(keys[0], (width, shape.V)) / width**0.5,
            "bias": jnp.zeros(shape.V, DTYPES[dtype]),
        }
        self.operands = (
            params,
            normal(keys[1], (shape.B, shape.T, width)),
            normal(keys[2], (shape.B, shape.U + 1, width)),
            jax.random.randint(keys[3], (shape.B, shape.U), 0, shape.V - len(BIG_BLANKS) - 1),
            jnp.full(shape.B, shape.T),
            jnp.full(shape.B, shape.U),
        )
        self.num_bytes = shape.nodes * shape.V * DTYPES[dtype](0).dtype.itemsize
        self.programs: dict[str, Any] = {}

    def default_chunk(self) -> int:
        """As many frames as the loss takes by default."""
        seen = []

        def seeing(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
            seen.append(encoded.shape[1])
            return joint(params, encoded, predicted)

        jax.eval_shape(functools.partial(multiblank_rnnt_joint_loss, seeing), *self.operands)
        return seen[-1]

    def compile(self, name: str, program: str, chunk_frames: int | None = None) -> None:
        match program:
            case "whole":

                def loss(*x):
                    logits = joint(*x[:3])
                    return multiblank_rnnt_loss(logits, *x[3:], big_blank_durations=BIG_BLANKS)

            case "chunked":
                options = {"big_blank_durations": BIG_BLANKS, "chunk_frames": chunk_frames}
                loss = functools.partial(multiblank_rnnt_joint_loss, joint, **options)
            case "remat":
                options = {"model": rivals.multiblank(BIG_BLANKS)}
                options["chunk_frames"] = chunk_frames or self.default_chunk()
                loss = functools.partial(rivals.remat_joint, joint, **options)
        step = jax.value_and_grad(lambda *x: loss(*x).mean(), argnums=(0, 1, 2))
        self.programs[name] = jax.jit(step).lower(*self.operands).compile()

    def compare(self) -> None:
        """All with the first."""
        found = (jax.tree.leaves(program(*self.operands)) for program in self.programs.values())
        expected = next(found)
        for name, results in zip([*self.programs][1:], found, strict=True):
            for actual, e in zip(results, expected, strict=True):
                error = float(jnp.max(jnp.abs(actual - e)) / jnp.max(jnp.abs(e)))
                if not error <= TOLERANCE[self.dtype]:
                    raise AssertionError(f"{name}: a gradient is off by {error:.1e}")

    def measure(self, seconds: float, rounds: tuple[int, int], case: str = "") -> list[Row]:
        calls = {name: Call(p, lambda: self.operands) for name, p in self.programs.items()}
        interleave(calls, seconds, rounds)
        where = self.shape.where | {"case": case}
        rows = [Row.of_call(name, call, **where) for name, call in calls.items()]
        for name in calls:
            temporary = self.temporary(name)
            rows.append(Row(name, "temporaries / logits", temporary / self.num_bytes, **where))
            rows.append(Row(name, "temporaries, MiB", temporary / 2**20, **where))
        return rows

    def temporary(self, name: str) -> int:
        return self.programs[name].memory_analysis().temp_size_in_bytes


def measure_all(report: Report, quick: bool) -> None:
    base = SHAPES["tiny" if quick else "joint"]
    done: dict[Any, list[Row]] = {}  # the base is on every axis
    panels = {}
    for axis, values in (QUICK_VALUES if quick else VALUES).items():
        on_axis = []
        for value in values:
            shape = base._replace(**{axis: value}) if axis in "BTUV" else base
            width = value if axis == "H" else WIDTH
            chunk = value if axis == "C" else None
            key = shape, width, chunk
            if key not in done:
                steps = Steps(shape, width)
                steps.compile("whole", "whole")
                steps.compile("chunked", "chunked", chunk)
                steps.compile("remat", "remat", chunk)
                steps.compare()
                case = f"H {width}, C {chunk or steps.default_chunk()}"
                done[key] = steps.measure(0.3 if quick else 3, (3, 9), case)
                report.add(done[key])
                print(f"{shape.sizes()}, {case}: done", file=sys.stderr, flush=True)
            on_axis += [(value, row) for row in done[key]]
        panels[axis] = on_axis
    report.say(*lines_by_problem(report.rows, "ms"), "")
    report.say(*lines_by_problem(report.rows, "temporaries / logits"))
    quantities = {"ms": "value and gradient, ms", "temporaries, MiB": "temporary memory, MiB"}
    picture = [
        [Panel(axis, name, lines(rows, q)) for axis, rows in panels.items()]
        for q, name in quantities.items()
    ]
    title = "Joint and multi-blank loss (2, 4, 8), float32; around B,T,U,V = "
    draw(report, f"{title}{base.sizes()}, H = {WIDTH}", picture)


def lines(on_axis: list[tuple[int, Row]], quantity: str) -> dict[str, list[tuple[float, float]]]:
    return {
        label: [(x, r.median) for x, r in on_axis if (r.program, r.quantity) == (name, quantity)]
        for name, label in NAMES.items()
    }


def measure_huge(report: Report, quick: bool) -> None:
    """A step whose logits no machine at hand has the memory for."""
    steps = Steps(SHAPES["tiny" if quick else "joint-huge"], WIDTH)
    steps.compile("chunked", "chunked")
    memory.start()
    begin = time.perf_counter()
    value, gradients = jax.block_until_ready(steps.programs["chunked"](*steps.operands))
    seconds = time.perf_counter() - begin
    finite = all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(gradients))
    report.say(
        f"B,T,U,V = {steps.shape.sizes()}, H = {WIDTH}: logits of {steps.num_bytes / 1e9:.1f} GB, "
        f"chunks of {steps.default_chunk()} frames",
        f"loss {float(value):.3f}, gradients {'finite' if finite else 'NOT FINITE'}",
        f"{seconds:.0f} s, temporaries {steps.temporary('chunked') / 1e9:.3f} GB, "
        f"largest resident set {memory.resident('VmHWM') / 1e9:.3f} GB",
    )


def measure_large(report: Report, quick: bool) -> None:
    """The step of a GPU: time over chunks, then with a batch that is 20 times as large."""
    shape, width = SHAPES["tiny" if quick else "conformer-batch"], 16 if quick else 640
    seconds = 1 if quick else 20
    steps = Steps(shape, width, "bf16")
    steps.compile("whole", "whole")
    for frames in (1, 5) if quick else LARGE_CHUNKS:
        steps.compile(f"chunks of {frames}", "chunked", frames)
    default = f"chunks of {steps.default_chunk()}, the default"
    steps.compile(default, "chunked")
    steps.compare()
    rows = steps.measure(seconds, (3, 50), f"H {width}, bf16")
    report.add(rows)
    ratios = [Ratio(f"{name} / whole", name, ["whole"]) for name in [*steps.programs][1:]]
    report.say(*lines_of(rows, "ms"), "", *lines_of_ratios(rows, ratios), "")
    report.say(*lines_of(rows, "temporaries, MiB"))
    large = Steps(shape._replace(B=20 * shape.B), width, "bf16")
    large.compile(default, "chunked")
    rows = large.measure(seconds / 4, (2, 5), f"H {width}, bf16")
    report.add(rows)
    gib = large.num_bytes / 2**30
    report.say("", f"logits would be {gib:.1f} GiB", *lines_of(rows, "ms"))


def run(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.huge or arguments.large:
        report.name += "_huge" if arguments.huge else "_large"
        (measure_huge if arguments.huge else measure_large)(report, arguments.quick)
    else:
        measure_all(report, arguments.quick)
