"""`value_and_grad` of the losses beside floors, rivals and peers: on a GPU, or else on the CPU.

Multi-blank with durations 2, 4, 8 and float32, if nothing else is said; a TDT has durations 0 to 4.
Every gradient is compared with pure JAX's before it is timed. A peer that is missing, fails or does
not fit is data. On the CPU all programs of a shape take turns; then come memory, the same in a
process that keeps its memory, and precision. On a GPU those of a shape, transducer and dtype do.
"""

import argparse
import dataclasses
import gc
import itertools
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from . import apart, memory
from .loss_programs import Programs, label
from .problems import DTYPES, KINDS, SHAPES, Problem, Shape, shapes_of
from .results import Ratio, Report, Row, lines_of, lines_of_ratios
from .timing import copy_bandwidth

MEMORY_FROM = 16 << 20  # bytes of logits; below, the resident set tells of other things
# glibc reads these when a process starts: it keeps what is freed (docs/cpu.md).
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
KEPT_PROGRAMS = ("read", "copy", "ours", "strong")
LARGE = 2e9  # logits; the pools of JAX and PyTorch, which keep what they had, do not fit beside
GROUPS = ("ours", "jax", "torch")
VARIANTS = [(kind, dtype) for kind in KINDS for dtype in DTYPES]
# Memory is taken as it is needed, so that PyTorch gets its own. The products are subtracted:
# looking for the fastest way to compute them, in every process, takes longer than all that is
# measured; cuBLAS has a good guess.
GPU_SETTINGS = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 "
    "--xla_gpu_enable_triton_gemm=false",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, help="of rounds: a shape (CPU), or all (GPU)")
    parser.add_argument("--bandwidth", type=float, help="of a GPU's copy, TB/s; else measured")
    parser.add_argument("--espnet", type=pathlib.Path, metavar="CHECKOUT", help="a peer on a GPU")
    parser.add_argument("--as-gpu", action="store_true", help="with --quick: a GPU's way, anywhere")


def run(report: Report, arguments: argparse.Namespace) -> int:
    # Asked elsewhere: this process would keep what it takes of a GPU's memory.
    if arguments.as_gpu or apart.call(backend) == "gpu":
        return run_on_gpu(report, arguments)
    return run_on_cpu(report, arguments.quick, arguments.seconds or (1 if arguments.quick else 20))


# ---- In a process of its own ---------------------------------------------------------------


def backend() -> str:
    return jax.default_backend()


def measure(
    shape: str,
    variants: Sequence[tuple[str, str]],
    seconds: float,
    rounds: tuple[int, int],
    groups: Sequence[str] = GROUPS,
    only: Sequence[str] = (),
    sizes: dict[str, int] | None = None,
    gpu: bool = False,
    bandwidth: float = 0,
    espnet: str | None = None,
    case: str = "",
) -> list[dict]:
    """Rows of the programs of a shape, whose `sizes` may be others; all take turns.

    `seconds` are those of the rounds; on a GPU, of everything.
    """
    of = SHAPES[shape]._replace(**(sizes or {}))
    deadline = time.monotonic() + seconds if gpu else math.inf
    programs = Programs(of, gpu, groups, only, espnet, deadline)
    for kind, dtype in variants:
        programs.build(KINDS[kind], dtype)
    programs.time(min(seconds, deadline - time.monotonic()), rounds)
    rows = [*programs.rows()]
    for kind, dtype in variants if gpu else ():
        num_bytes = programs.problem(KINDS[kind], dtype).logits.nbytes
        floor = 3e3 * num_bytes / (bandwidth * 1e12)
        rows.append(Row(label("floor", KINDS[kind], dtype), "ms", floor))
    return [dataclasses.asdict(row) | of.where | {"case": case} for row in rows]


def measure_each(
    shape: str, variants: Sequence[tuple[str, str]], seconds: float, bandwidth: float, **rest
) -> list[dict]:
    """The same of one variant after the other, on a GPU."""
    end = time.monotonic() + seconds
    bandwidth = bandwidth or copy_bandwidth()
    rows = []
    for i, variant in enumerate(variants):
        share = (end - time.monotonic()) / (len(variants) - i)
        rows += measure(shape, [variant], share, gpu=True, bandwidth=bandwidth, **rest)
        gc.collect()  # closures hold arrays, in cycles
    return rows


def precision(shape: str) -> dict[str, float]:
    """The float32 gradients' largest error against float64, which is a setting of all of JAX."""
    errors = {}
    for kind in ("multi-blank", "TDT"):
        problem = Problem(SHAPES[shape], KINDS[kind])
        found = {}
        for which in ("ours", "our pure JAX", "strong"):  # traced as a user's float32 is
            _, gradient = jax.jit(problem.step(which))(problem.logits)
            found[label(which, KINDS[kind], "f32")] = gradient
        jax.config.update("jax_enable_x64", True)
        logits = problem.logits.astype(jnp.float64)
        _, exact = jax.jit(problem.step("our pure JAX"))(logits)
        assert exact.dtype == jnp.float64
        for name, gradient in found.items():
            errors[name] = float(jnp.max(jnp.abs(gradient - exact))) * problem.shape.B
        jax.config.update("jax_enable_x64", False)
    return errors


# ---- On the CPU ------------------------------------------------------------------------------


def run_on_cpu(report: Report, quick: bool, seconds: float) -> int:
    shapes = [SHAPES["tiny-tdt"]] if quick else shapes_of("cpu")
    common = {"variants": VARIANTS, "rounds": (3, 5 if quick else 25)}
    for shape in shapes:
        found = apart.call(measure, shape=shape.name, seconds=seconds, **common)
        report.add(Row(**row) for row in found)
        print(f"{shape.name}: done", file=sys.stderr, flush=True)
    say_times(report, report.rows, CPU_RATIOS)

    for i, shape in enumerate([SHAPES["few-pieces"]] if quick else shapes):
        if 4 * shape.nodes * shape.V >= MEMORY_FROM:
            report.add(rows_of_memory(shape, every=i == 1, quick=quick))
    report.say("", "Growth of the resident set of a fresh process to its peak, gradient (1.00)")
    report.say("included; goals 1.05, of a TDT 1.06", *lines_of(report.rows, "growth / logits"))

    only = [label(p, KINDS[kind], dtype) for p in KEPT_PROGRAMS for kind, dtype in VARIANTS]
    kept = []
    for shape in shapes:
        found = apart.call(
            measure,
            environment=KEPT,
            shape=shape.name,
            seconds=seconds / 4,
            only=only,
            case="kept",
            **common,
        )
        kept += [Row(**row) for row in found]
    report.add(kept)
    settings = " ".join(f"{key}={value}" for key, value in KEPT.items())
    report.say("", f"In a process that keeps its memory ({settings})")
    say_times(report, kept, CPU_RATIOS)

    longest = "tiny-tdt" if quick else "conformer-40s"
    for name, error in apart.call(precision, shape=longest).items():
        report.add([Row(name, "error against float64", error, shape=longest)])
    report.say("", "Largest error of a float32 gradient; goal 1e-4")
    report.say(*lines_of(report.rows, "error against float64"))
    return failures(report.rows)


def rows_of_memory(shape: Shape, every: bool, quick: bool) -> list[Row]:
    """Each in a process of its own; those that are no goal on one shape alone."""
    kinds = ["TDT"] if quick else ["multi-blank", "TDT"]
    programs = [(which, kind) for which in ("ours", "strong") for kind in kinds]
    if every and not quick:
        rivals = ("autodiff scan", "remat scan", "our pure JAX")
        programs += [(which, "multi-blank") for which in rivals]
    rows = []
    for which, kind in programs:
        name = label(which, KINDS[kind], "f32")
        try:
            grown = apart.call(memory.growth, shape=shape.name, kind=kind, which=which)
            rows.append(Row(name, "growth / logits", grown, **shape.where))
        except subprocess.CalledProcessError as error:
            rows.append(Row(name, "growth / logits", note=f"fails: {error}", **shape.where))
    return rows


def _cpu_ratios() -> list[Ratio]:
    ratios = []
    for kind, dtype in VARIANTS:
        ours, strong = (label(x, KINDS[kind], dtype) for x in ("ours", "strong"))
        ratios.append(Ratio(f"{ours} / strong", ours, [strong], 0.5))
    for dtype in DTYPES:
        ours, tdt = (label("ours", KINDS[kind], dtype) for kind in ("multi-blank", "TDT"))
        ratios.append(Ratio(f"{tdt} / multi-blank", tdt, [ours], 1.25))
        floor = [label(x, KINDS["multi-blank"], dtype) for x in ("read", "copy")]
        ratios.append(Ratio(f"{ours} / (read + copy)", ours, floor, 1.5))
    return [
        *ratios,
        Ratio("ours, donated / (read + copy)", "ours, donated", ["read", "copy"]),
        Ratio("ours / (read + copy to fresh memory)", "ours", ["read", "copy to fresh memory"]),
        Ratio("ours / (read + copy by XLA)", "ours", ["read by XLA", "copy by XLA"]),
        Ratio("bf16 / f32, ours", "ours, bf16", ["ours"]),
        *(
            Ratio(f"ours, RNN-T / {peer}", "ours, RNN-T", [f"{peer}, RNN-T"], 1 / 3)
            for peer in ("torchaudio", "warp-transducer")
        ),
    ]


CPU_RATIOS = _cpu_ratios()


# ---- On a GPU --------------------------------------------------------------------------------


def run_on_gpu(report: Report, arguments: argparse.Namespace) -> int:
    """A process for each shape, so that a crash costs that shape alone."""
    shapes = shapes_of("quick" if arguments.quick else "gpu")
    jobs = list(gpu_jobs(shapes))
    end = time.monotonic() + (arguments.seconds or (120 if arguments.quick else 200))
    broken = 0
    for i, (shape, variants, groups) in enumerate(jobs):
        share = (1 + len(variants)) / sum(1 + len(later) for _, later, _ in jobs[i:])
        seconds = max(5.0, (end - time.monotonic()) * share)
        try:
            found = apart.call(
                measure_each,
                environment=GPU_SETTINGS,
                timeout=seconds + 15,
                shape=shape.name,
                variants=variants,
                groups=groups,
                seconds=seconds - 4,  # to start takes the rest
                rounds=(3, 3 if arguments.quick else 21),
                bandwidth=arguments.bandwidth or 0,
                espnet=arguments.espnet and str(arguments.espnet.resolve()),
            )
        except subprocess.CalledProcessError as error:
            report.say("", f"{shape.name}, {variants}: ended with {error.returncode}")
            broken = 1
        except subprocess.TimeoutExpired:
            report.say("", f"{shape.name}, {variants}: out of time")
            broken = 1
        else:
            rows = [Row(**row) for row in found]
            report.add(rows)
            report.say("", *lines_of(rows, "ms"))  # at once: what comes later may be stopped
    report.say("", "All. Floor: three passes over the logits at the bandwidth of a copy")
    say_times(report, report.rows, GPU_RATIOS)
    for quantity in ("temporaries / logits", "peak / logits"):
        report.say("", *lines_of(report.rows, quantity))
    report.say("", "Goals of an H200, ms (float32, bfloat16): ")
    report.say(*(f"  {s.name:20}{s.goal_f32:7.2f}{s.goal_bf16:7.2f}" for s in shapes))
    return broken or failures(report.rows)


def gpu_jobs(shapes: Sequence[Shape]):
    """Shapes, variants and groups of programs: a process each, the last matter least."""
    large = {s.name for s in shapes if s.nodes * s.V > LARGE}
    later = []
    for shape in shapes:
        variants = list(itertools.product(shape.transducers, shape.dtypes))
        if shape.name not in large:
            yield shape, variants, GROUPS
        else:
            later += [(shape, [variant], ("ours", "jax")) for variant in variants]
            later += [(shape, [v], ("torch",)) for v in variants if v[1] == "f32"]
    yield from sorted(later, key=lambda job: "torch" in job[2])


GPU_RATIOS = [
    Ratio(f"{label(x, kind, d)} / floor", label(x, kind, d), [label("floor", kind, d)])
    for x in ("ours, donated", "ours", "ours, less h @ W")
    for kind in KINDS.values()
    for d in DTYPES
]


# ---- Both ------------------------------------------------------------------------------------


def say_times(report: Report, rows: Sequence[Row], ratios: Sequence[Ratio]) -> None:
    report.say(*lines_of(rows, "ms"), "", *lines_of_ratios(rows, ratios))


def failures(rows: Sequence[Row]) -> int:
    """1 if a program of ours is not right."""
    return int(any(row.note and row.program.startswith("ours") for row in rows))
