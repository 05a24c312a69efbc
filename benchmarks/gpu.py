"""Times `value_and_grad` of the losses beside peers and the floor, as a user calls it.

    python benchmarks/gpu.py [--csv FILE] [--bandwidth TB/s] [--espnet DIR] [--seconds N]
    python benchmarks/gpu.py --shapes small       a minute on a CPU: does everything run?

Every gradient is compared with pure JAX's before it is timed. The floor is three passes over the
logits at the bandwidth of a copy: read forward, read and written backward. A peer that is missing,
fails or does not fit is data. One process for each shape, so that a crash costs that shape alone.
"""

import argparse
import csv
import functools
import gc
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peers
from gpu_cases import CASES, DESIGN, SMALL
from jax_mbrnnt import TDT
from programs import Kind, Shape
from timing import Flush, Program, copy_bandwidth

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
HIDDEN = 64  # of the matrix product in front: narrow, so that the loss is not lost beside it
# Absolute, on the gradient of one utterance; a peer's may be as far off as its arithmetic is.
TOLERANCE = {"f32": 2e-4, "bf16": 1e-2, "peer": 2e-2}
OURS = ("donated", "plain", "behind product")
COLUMNS = (*OURS, "pure JAX", "scan", "torchaudio", "ESPnet")
FIELDS = ["B", "T", "U+1", "V", "dtype", "transducer", "durations", "program", "median_ms"]
FIELDS += ["min_ms", "max_ms", "floor_ms", "times_floor", "goal_ms", "temp_over_logits"]
FIELDS += ["total_over_logits", "peak_over_logits", "max_error", "note"]


@jax.jit
def difference(got: jax.Array, expected: jax.Array) -> jax.Array:
    """The largest; NaN if there is one, which XLA's maximum may lose but a sum does not."""
    apart = jnp.abs(got.astype(jnp.float32) - expected.astype(jnp.float32))
    return jnp.where(jnp.isnan(jnp.sum(apart)), jnp.nan, jnp.max(apart))


def product(hidden: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return hidden @ kernel + bias


class Case:
    """One shape, dtype and transducer: its programs, their memory, errors and times."""

    def __init__(self, shape: Shape, dtype: str, kind: Kind, arguments) -> None:
        self.shape, self.dtype, self.kind, self.arguments = shape, dtype, kind, arguments
        ours = kind.ours
        self.is_tdt = isinstance(ours, TDT)
        self.durations = ours.durations if self.is_tdt else ours.big_blank_durations
        batch, frames, columns, classes = shape
        scores = classes + kind.model.durations
        keys = jax.random.split(jax.random.key(0), 4)
        normal = functools.partial(jax.random.normal, dtype=DTYPES[dtype])
        self.operands = (
            normal(keys[0], (batch, frames, columns, HIDDEN)),
            normal(keys[1], (HIDDEN, scores)) * DTYPES[dtype](2 / HIDDEN**0.5),
            normal(keys[2], (scores,)),
        )
        self.labels = jax.random.randint(keys[3], (batch, columns - 1), 0, classes - 4)
        self.lengths = jnp.full(batch, frames), jnp.full(batch, columns - 1)
        self.bytes = batch * frames * columns * scores * DTYPES[dtype](0).dtype.itemsize
        self.programs: dict[str, Program] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, str] = {}

    @functools.cached_property
    def flush(self) -> Flush:
        return Flush()

    # ---- What is timed ------------------------------------------------------------------

    def loss(self, logits: jax.Array, which: str) -> tuple[jax.Array, jax.Array]:
        """The mean, and every utterance's."""
        batch = logits.shape[0]
        operands = (logits, self.labels[:batch], *(a[:batch] for a in self.lengths))
        name = {"scan": "autodiff", "pure JAX": "twin"}.get(which, "ours")
        losses = self.kind.loss(name)(*operands)
        return losses.mean(), losses

    def step(self, which: str) -> Callable[[jax.Array], Any]:
        return jax.value_and_grad(functools.partial(self.loss, which=which), has_aux=True)

    def attempt(self, name: str, build: Callable[[str], None]) -> None:
        try:
            build(name)
        except ImportError as error:
            self.notes[name] = f"not here: {error}"
        except Exception as error:  # whatever a peer does is data
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            out_of_memory = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
            self.notes[name] = f"{'OOM' if out_of_memory else 'fails'}: {text}"
            traceback.print_exc()
        if name in self.notes:
            self.programs.pop(name, None)
            print(f"{self.title} {name}: {self.notes[name]}", file=sys.stderr, flush=True)

    def compile(self, name: str, function: Callable[..., Any], *operands: Any, **jit: Any) -> Any:
        program = jax.jit(function, **jit).lower(*operands).compile()
        memory = program.memory_analysis()
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes
        total += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        self.facts[name] = {
            "temp_over_logits": memory.temp_size_in_bytes / self.bytes,
            "total_over_logits": total / self.bytes,
        }
        return program

    def check(self, name: str, losses: jax.Array, gradient: jax.Array, tolerance: float) -> None:
        """Against pure JAX in float32, on the utterances that it was asked about."""
        expected_losses, expected = self.expected
        some = expected.shape[0]
        got = gradient[:some].astype(jnp.float32) * gradient.shape[0]
        error = float(difference(got, expected))
        relative = float(difference(losses[:some] / expected_losses, jnp.ones(some)))
        self.facts.setdefault(name, {})["max_error"] = np.maximum(error, relative)
        if not (error <= tolerance and relative <= tolerance):  # NaN is wrong as well
            self.notes[name] = f"WRONG: gradient off by {error:.1e}, loss by {relative:.1e}"

    def build_behind_product(self, name: str) -> None:
        def of_operands(*operands):
            return self.loss(product(*operands), "ffi")

        step = jax.value_and_grad(of_operands, argnums=(0, 1, 2), has_aux=True)
        program = self.compile(name, step, *self.operands)
        (_, losses), gradients = jax.block_until_ready(program(*self.operands))
        self.behind = losses, gradients
        stats = jax.local_devices()[0].memory_stats() or {}
        if self.arguments.fresh and "peak_bytes_in_use" in stats:
            # Of the whole process, so it says something of the first program alone. What is
            # there for the other programs does not count.
            peak = stats["peak_bytes_in_use"] - self.logits.nbytes - self.expected[1].nbytes
            self.facts[name]["peak_over_logits"] = peak / self.bytes
            self.arguments.fresh = False

        def queue():
            self.flush()
            return program(*self.operands)

        self.programs[name] = Program(queue, lambda: self.flush())

        def alone(*operands):
            logits, pull_back = jax.vjp(product, *operands)
            return pull_back(logits)

        alone_program = self.compile("product alone", alone, *self.operands)

        def queue_alone():
            self.flush()
            return alone_program(*self.operands)

        self.programs["product alone"] = Program(queue_alone, lambda: self.flush())

    def build_plain(self, name: str, which: str = "ffi", kind: str = "") -> None:
        program = self.compile(name, self.step(which), self.logits)
        (_, losses), gradient = program(self.logits)
        self.check(name, losses, gradient, TOLERANCE[kind or self.dtype])
        if name == "plain" and name not in self.notes and "behind product" in self.programs:
            self.check_behind_product(losses, gradient)

        def queue():
            self.flush()
            return program(self.logits)

        self.programs[name] = Program(queue, lambda: self.flush())

    def check_behind_product(self, losses: jax.Array, gradient: jax.Array) -> None:
        """The gradients behind the product from the checked one; products may be in TF32."""
        pull_back = jax.jit(lambda cotangent, *operands: jax.vjp(product, *operands)[1](cotangent))
        expected = pull_back(gradient, *self.operands)
        got_losses, got = self.behind
        errors = [float(difference(got_losses / losses, jnp.ones_like(losses)))]
        for a, b in zip(got, expected, strict=True):
            errors.append(float(difference(a, b) / difference(b, jnp.zeros_like(b))))
        self.facts["behind product"]["max_error"] = error = float(np.max(errors))
        if not error <= TOLERANCE["peer"]:
            self.notes["behind product"] = f"WRONG: off by {error:.1e} of the largest"
        del self.behind

    def build_donated(self, name: str) -> None:
        """The gradient may take the logits' place; every call needs logits to lose."""
        copy = jax.jit(jnp.copy)
        program = self.compile(name, self.step("ffi"), self.logits, donate_argnums=0)
        (_, losses), gradient = program(copy(self.logits))
        self.check(name, losses, gradient, TOLERANCE[self.dtype])
        self.programs[name] = Program(lambda: program(copy(self.logits)), lambda: copy(self.logits))

    def build_torch(self, name: str) -> None:
        labels = np.asarray(self.labels)
        if name == "torchaudio":
            step = peers.torchaudio_rnnt(self.logits, labels)
        else:
            step = peers.espnet_multiblank(
                self.arguments.espnet, self.logits, labels, self.durations
            )
        jax.block_until_ready(self.logits)
        results = step()
        peers.wait()
        self.check(name, *(jnp.from_dlpack(a) for a in results), TOLERANCE["peer"])
        flush = peers.flush(self.flush.buffer.nbytes, results[0].device)
        del results

        def queue():
            flush()
            return step()

        self.programs[name] = Program(queue, flush, lambda _: peers.wait())

    # ---- In what order ------------------------------------------------------------------

    @property
    def title(self) -> str:
        durations = "TDT" if self.is_tdt else ",".join(map(str, self.durations)) or "none"
        return f"{','.join(f'{n:>4}' for n in self.shape)} {self.dtype:4} {durations:5}"

    def run(self, deadline: float) -> None:
        """Builds and checks everything, then times it interleaved."""
        self.logits = jax.jit(product)(*self.operands)
        some = self.logits[: 1 if self.bytes > 1 << 32 else 2].astype(jnp.float32)
        (_, losses), gradient = jax.jit(self.step("pure JAX"))(some)
        self.expected = losses, gradient * some.shape[0]
        groups: dict[str, dict[str, Callable[[str], None]]] = {
            "ours": {
                "behind product": self.build_behind_product,
                "plain": self.build_plain,
                "donated": self.build_donated,
            },
            "torch": {},
            "jax": {"pure JAX": functools.partial(self.build_plain, which="pure JAX", kind="peer")},
        }
        if self.dtype == "f32":  # the one that all peers know
            if not self.is_tdt:
                groups["torch"]["ESPnet" if self.durations else "torchaudio"] = self.build_torch
            groups["jax"]["scan"] = functools.partial(self.build_plain, which="scan", kind="peer")
        for group, programs in groups.items():
            for name, build in programs.items():
                if group not in self.arguments.groups:
                    continue
                if group == "ours" or time.monotonic() < deadline - 2:
                    self.attempt(name, build)
                else:
                    self.notes[name] = "no time"
        self.time(deadline)

    def time(self, deadline: float) -> None:
        for name in list(self.programs):
            self.attempt(name, lambda name: self.programs[name].warm_up())
        for i in range(self.arguments.rounds):
            for name in list(self.programs):
                if i < 3 or time.monotonic() < deadline:
                    self.attempt(name, lambda name: self.programs[name].time())

    # ---- What comes out -----------------------------------------------------------------

    def report(self) -> str:
        """Writes the rows; returns the line of the table."""
        floor = 3e3 * self.bytes / (self.arguments.bandwidth * 1e12)
        _, *goals = DESIGN.get(self.shape, ([], None, None))
        goal = goals[self.dtype == "bf16"]
        medians = {name: float(np.median(p.milliseconds)) for name, p in self.programs.items()}
        with open(self.arguments.csv, "a", newline="") as file:
            rows = csv.DictWriter(file, FIELDS)
            for name in dict.fromkeys([*self.programs, *self.notes]):
                row = dict(zip(FIELDS, [*self.shape, self.dtype], strict=False))
                row |= {"transducer": type(self.kind.ours).__name__}
                row |= {"durations": " ".join(map(str, self.durations)) or "none"}
                row |= {"program": name, "floor_ms": f"{floor:.4f}", "goal_ms": goal}
                facts = self.facts.get(name, {})
                row |= {key: f"{value:.3g}" for key, value in facts.items()}
                if name in medians:
                    ms = self.programs[name].milliseconds
                    row |= {"median_ms": f"{medians[name]:.4f}", "min_ms": f"{min(ms):.4f}"}
                    row |= {"max_ms": f"{max(ms):.4f}"}
                    row |= {"times_floor": f"{medians[name] / floor:.3f}"}
                rows.writerow(row | {"note": self.notes.get(name, "")})

        def cell(name: str) -> str:
            if name in self.notes or name not in medians:
                return self.notes.get(name, "-").split(":")[0]
            ms = medians[name]
            if name == "behind product":
                ms -= medians.get("product alone", 0)
            return f"{ms:.3f}" + (f" {ms / floor:.2f}x" if name in OURS else "")

        goal_text = "-" if goal is None else f"{goal:.2f}"
        temp = self.facts.get("behind product", {}).get("temp_over_logits")
        memory = "-" if temp is None else f"{temp:.2f}"
        cells = [*(f"{cell(name):>15}" for name in OURS), f"{memory:>6}"]
        cells += [f"{cell(name):>11}" for name in COLUMNS[3:]]
        return f"{self.title} {goal_text:>5} {floor:7.3f}" + "".join(cells)


def run_shape(arguments: argparse.Namespace) -> int:
    """In a process of its own: the cases of one shape. 1 if a program of ours is not right."""
    if arguments.shapes == "design" and jax.default_backend() != "gpu":
        sys.exit("the shapes of the design need a GPU")
    arguments.fresh = True
    arguments.bandwidth = arguments.bandwidth or copy_bandwidth()
    end = time.monotonic() + arguments.seconds
    cases = [CASES[i] for i in arguments.cases]
    failures = 0
    for i, (dtype, kind) in enumerate(cases):
        left = end - time.monotonic()
        case = Case(arguments.shape, dtype, kind, arguments)
        case.run(time.monotonic() + left / (len(cases) - i))
        print(case.report(), flush=True)
        failures += len(case.notes.keys() & set(OURS))
        del case  # and with the cycles of its closures the arrays that they hold
        gc.collect()
    return min(failures, 1)


def jobs(which: str) -> list[tuple[Shape, list[int], str]]:
    """Shapes, indices into CASES and groups of programs: a process each, the last matter least.

    With large logits the pools of JAX and PyTorch, which keep what they once had, do not fit
    beside each other: then each case and PyTorch gets a process of its own.
    """
    if which == "small":
        return [(shape, cases, "ours torch jax") for shape, cases in SMALL.items()]
    large = {shape: cases for shape, (cases, *_) in DESIGN.items() if np.prod(shape) > 2e9}
    found = [
        (shape, cases, "ours torch jax")
        for shape, (cases, *_) in DESIGN.items()
        if shape not in large
    ]
    found += [(shape, [i], "ours jax") for shape, cases in large.items() for i in cases]
    return found + [(shape, [i], "torch") for shape in large for i in (0, 2)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=["design", "small"], default="design")
    parser.add_argument("--csv", type=pathlib.Path, default=pathlib.Path("gpu.csv"))
    parser.add_argument("--bandwidth", type=float, help="of a copy, TB/s; measured if not given")
    parser.add_argument("--espnet", type=pathlib.Path, help="a checkout of ESPnet")
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=21)
    numbers = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    parser.add_argument("--shape", type=numbers, help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=numbers, help=argparse.SUPPRESS)
    parser.add_argument("--groups", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shape is not None:
        return run_shape(arguments)

    arguments.csv.write_text(",".join(FIELDS) + "\n")
    print("value_and_grad, ms (x: times the floor); medians, cache flushed. Goal: of an H200.")
    print(
        "behind product: with h @ W + b and its gradient, less those; temp: of it, over the logits"
    )
    head = f"{'   B,   T, U+1,   V':31}{'goal':>5}{'floor':>8}"
    head += "".join(f"{name:>15}" for name in OURS) + f"{'temp':>6}"
    print(head + "".join(f"{name:>11}" for name in COLUMNS[3:]), flush=True)
    # Memory is taken as it is needed, so that PyTorch gets its own.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.95"
    # The products are subtracted. Looking for the fastest way to compute them, in every process,
    # takes longer than all that is measured; cuBLAS has a good guess.
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    todo = jobs(arguments.shapes)
    failures = 0
    end = time.monotonic() + arguments.seconds
    for i, (shape, cases, groups) in enumerate(todo):
        share = (1 + len(cases)) / sum(1 + len(later) for _, later, _ in todo[i:])
        seconds = max(5.0, (end - time.monotonic()) * share)
        command = [sys.executable, *sys.argv, "--shape", ",".join(map(str, shape))]
        command += ["--cases", ",".join(map(str, cases)), "--groups", groups]
        command += ["--seconds", str(seconds - 4)]
        try:
            status = subprocess.run(command, env=environment, timeout=seconds + 15).returncode
        except subprocess.TimeoutExpired:
            status = "out of time"
        if status != 0:
            failures += 1
            print(f"{','.join(map(str, shape))}, cases {cases}: ended with {status}", flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
