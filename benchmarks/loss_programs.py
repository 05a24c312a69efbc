"""What loss.py times of a shape: each program built, and compared with pure JAX."""

import functools
import math
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import floors, peers
from .problems import DTYPES, KINDS, MULTIBLANK, RNNT, Kind, Problem, Shape, product
from .results import Row
from .timing import Call, Flush, Pass, Queued, interleave

# Absolute, on the gradient of one utterance's loss; a peer's arithmetic may be coarser, and
# logarithms in float32 lose digits over a thousand frames.
TOLERANCE = {"f32": 2e-4, "log domain": 1e-3, "bf16": 1e-2, "peer": 2e-2}


# Transducers and dtypes.
ALL = {(kind, dtype) for kind in KINDS for dtype in DTYPES}
FLOAT32 = {(kind, dtype) for kind, dtype in ALL if dtype == "f32"}
MULTIBLANKS = {(kind, dtype) for kind, dtype in ALL if kind == MULTIBLANK.name}
PLAIN = MULTIBLANKS & FLOAT32
RNNTS = {(RNNT.name, "f32")}
NONE: set[tuple[str, str]] = set()
# A program's name, the group that may be left out, the method that builds it, and of which
# transducers and dtypes it is there: on the CPU, on a GPU.
PROGRAMS = [
    ("read", "ours", "build_floor", MULTIBLANKS, NONE),
    ("copy", "ours", "build_floor", MULTIBLANKS, NONE),
    ("copy to fresh memory", "ours", "build_floor", PLAIN, NONE),
    ("exponential", "ours", "build_floor", PLAIN, NONE),
    ("read by XLA", "ours", "build_floor_of_xla", PLAIN, NONE),
    ("copy by XLA", "ours", "build_floor_of_xla", PLAIN, NONE),
    ("ours", "ours", "build_loss", ALL, ALL),
    ("ours, donated", "ours", "build_donated", PLAIN, ALL),
    ("ours, with h @ W", "ours", "build_behind_product", PLAIN, ALL),
    ("h @ W alone", "ours", "build_product", PLAIN, ALL),
    ("strong", "jax", "build_loss", ALL, NONE),
    ("autodiff scan", "jax", "build_loss", PLAIN, FLOAT32),
    ("remat scan", "jax", "build_loss", PLAIN, NONE),
    ("our pure JAX", "jax", "build_loss", PLAIN, ALL),
    ("torchaudio", "torch", "build_peer", RNNTS, RNNTS),
    ("warp-transducer", "torch", "build_peer", RNNTS, NONE),
    ("ESPnet", "torch", "build_peer", NONE, PLAIN),
]


def label(program: str, kind: Kind, dtype: str) -> str:
    """A program's name: multi-blank and float32 are not said."""
    kinds = [] if kind is MULTIBLANK else [kind.name]
    return ", ".join([program, *kinds, *([] if dtype == "f32" else [dtype])])


@jax.jit
def difference(got: jax.Array, expected: jax.Array) -> jax.Array:
    """The largest; NaN if there is one, which XLA's maximum may lose but a sum does not."""
    apart = jnp.abs(got.astype(jnp.float32) - expected.astype(jnp.float32))
    return jnp.where(jnp.isnan(jnp.sum(apart)), jnp.nan, jnp.max(apart))


class Programs:
    """Of one shape: `build` for each transducer and dtype, then `time` all, then `rows`."""

    def __init__(
        self,
        shape: Shape,
        gpu: bool,
        groups: Sequence[str],
        only: Sequence[str] = (),
        espnet: str | None = None,
        deadline: float = math.inf,
    ) -> None:
        self.shape, self.gpu, self.groups, self.only, self.espnet = shape, gpu, groups, only, espnet
        self.deadline = deadline  # beyond it, nothing of others is built
        self.calls: dict[str, Call] = {}
        self.notes: dict[str, str] = {}
        self.facts: list[Row] = []  # memory and errors
        self.problems: dict[tuple[str, str], Problem] = {}
        self.flush = Flush() if gpu else None

    def problem(self, kind: Kind, dtype: str) -> Problem:
        key = kind.name, dtype
        if key not in self.problems:
            self.problems[key] = Problem(self.shape, kind, dtype)
        return self.problems[key]

    # ---- Which -----------------------------------------------------------------------------

    def build(self, kind: Kind, dtype: str) -> None:
        problem = self.problem(kind, dtype)
        self.expected: tuple[jax.Array, jax.Array] | None = None
        if self.gpu:
            self.add_peak(problem)
        for program, group, build, on_cpu, on_gpu in PROGRAMS:
            name = label(program, kind, dtype)
            if (kind.name, dtype) not in (on_gpu if self.gpu else on_cpu):
                continue
            if group not in self.groups or (self.only and name not in self.only):
                continue
            if group != "ours" and time.monotonic() > self.deadline - 2:
                self.notes[name] = "no time"
                continue
            try:
                self.calls[name] = getattr(self, build)(program, problem)
            except Exception as error:  # whatever a peer does is data
                self.fail(name, error)
        self.expected = None  # a gradient as large as the logits

    def fail(self, name: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        self.calls.pop(name, None)
        if isinstance(error, ImportError):
            self.notes[name] = f"not here: {error}"
            return
        if isinstance(error, ArithmeticError):
            self.notes[name] = f"WRONG: {error}"
        elif "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
            self.notes[name] = f"OOM: {text}"
        else:
            self.notes[name] = f"fails: {text}"
            traceback.print_exception(error)
        print(f"{self.shape.name} {name}: {self.notes[name]}", file=sys.stderr, flush=True)

    # ---- What is timed -----------------------------------------------------------------------

    def call(self, program: Callable[..., Any], *operands: Any) -> Call:
        if self.flush is not None:
            return Queued(program, functools.partial(self.flush.before, *operands))
        return Call(program, lambda: operands)

    @functools.cached_property
    def floors(self) -> floors.Floor:
        return floors.Floor(self.problem(MULTIBLANK, "f32").logits.nbytes)

    def build_floor(self, kind: str, problem: Problem) -> Call:
        passes, num_bytes = self.floors, problem.logits.nbytes
        return Pass(lambda: passes.milliseconds(kind, num_bytes))

    def build_floor_of_xla(self, name: str, problem: Problem) -> Call:
        """As a user gets it: under `jit`, where a result as large as the logits is fresh memory."""
        function = {"read by XLA": jnp.sum, "copy by XLA": jnp.negative}[name]
        return self.call(jax.jit(function).lower(problem.logits).compile(), problem.logits)

    def build_loss(self, which: str, problem: Problem) -> Call:
        program = self.compile(which, problem, problem.step(which), problem.logits)
        (_, losses), gradient = program(problem.logits)
        precise = problem.dtype != "f32" or which == "ours"
        tolerance = TOLERANCE[problem.dtype if precise else "log domain"]
        self.check(which, problem, losses, gradient, tolerance)
        return self.call(program, problem.logits)

    def build_donated(self, name: str, problem: Problem) -> Call:
        """The gradient may take the logits' place; every call needs logits to lose."""
        copy = jax.jit(jnp.copy)
        step = problem.step("ours")
        program = self.compile(name, problem, step, problem.logits, donate_argnums=0)
        (_, losses), gradient = program(copy(problem.logits))
        self.check(name, problem, losses, gradient, TOLERANCE[problem.dtype])
        kind = Queued if self.gpu else Call
        return kind(program, lambda: (copy(problem.logits),))

    def build_behind_product(self, name: str, problem: Problem) -> Call:
        """As in a train step, where the logits are an intermediate result."""
        step = problem.step_behind_product("ours")
        program = self.compile(name, problem, step, *problem.operands)
        (_, losses), got = program(*problem.operands)
        (_, expected_losses), gradient = jax.jit(problem.step("ours"))(problem.logits)
        pull_back = jax.jit(lambda cotangent, *operands: jax.vjp(product, *operands)[1](cotangent))
        expected = pull_back(gradient, *problem.operands)
        errors = [float(difference(losses / expected_losses, jnp.ones_like(losses)))]
        for a, b in zip(got, expected, strict=True):
            errors.append(float(difference(a, b) / difference(b, jnp.zeros_like(b))))
        self.judge(name, problem, float(np.max(errors)), TOLERANCE["peer"])  # may be in TF32
        return self.call(program, *problem.operands)

    def build_product(self, name: str, problem: Problem) -> Call:
        def alone(*operands: jax.Array) -> Any:
            logits, pull_back = jax.vjp(product, *operands)
            return pull_back(logits)

        program = self.compile(name, problem, alone, *problem.operands)
        return self.call(program, *problem.operands)

    def build_peer(self, name: str, problem: Problem) -> Call:
        labels = np.asarray(problem.labels)
        jax.block_until_ready(problem.logits)
        match name:
            case "torchaudio":
                step = peers.torchaudio_rnnt(problem.logits, labels)
            case "warp-transducer":
                step = peers.warp_transducer(problem.logits, labels)
            case _:
                checkout = pathlib.Path(self.espnet) if self.espnet else None
                durations = problem.kind.ours.big_blank_durations
                step = peers.espnet_multiblank(checkout, problem.logits, labels, durations)
        losses, gradient = step()
        peers.wait()
        found = (jnp.from_dlpack(result) for result in (losses, gradient))
        self.check(name, problem, *found, TOLERANCE["peer"])
        if self.flush is None:
            return Call(lambda: (step(), None)[1])  # its results are not JAX's
        fill = peers.flush(self.flush.buffer.nbytes, gradient.device)
        return Queued(step, fill, lambda _: peers.wait())

    def time(self, seconds: float, rounds: tuple[int, int]) -> None:
        interleave(self.calls, seconds, rounds, self.fail)

    # ---- Right? And in which memory? ---------------------------------------------------------

    def compile(
        self, name: str, problem: Problem, function: Any, *operands: Any, **jit: Any
    ) -> Any:
        program = jax.jit(function, **jit).lower(*operands).compile()
        found = program.memory_analysis()
        temporary = found.temp_size_in_bytes
        total = found.argument_size_in_bytes + found.output_size_in_bytes
        total += temporary - found.alias_size_in_bytes
        of_bytes = {"temporaries / logits": temporary, "total / logits": total}
        for quantity, num_bytes in of_bytes.items():
            self.add_fact(name, problem, quantity, num_bytes / problem.logits.nbytes)
        return program

    def add_fact(self, name: str, problem: Problem, quantity: str, value: float) -> None:
        self.facts.append(Row(label(name, problem.kind, problem.dtype), quantity, value))

    def add_peak(self, problem: Problem) -> None:
        """Of the whole process, so it says something of its first program alone."""
        stats = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" not in stats or self.facts or len(self.problems) > 1:
            return
        step = jax.jit(problem.step_behind_product("ours"))
        jax.block_until_ready(step(*problem.operands))
        peak = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
        over = (peak - problem.logits.nbytes) / problem.logits.nbytes
        self.add_fact("ours, with h @ W", problem, "peak / logits", over)

    def check(
        self,
        name: str,
        problem: Problem,
        losses: jax.Array,
        gradient: jax.Array,
        tolerance: float,
    ) -> None:
        """Against pure JAX in float32: of all utterances, or of the first on a GPU."""
        if self.expected is None:
            some = self.shape.B if not self.gpu else 1 if problem.logits.nbytes > 1 << 32 else 2
            logits = problem.logits[:some].astype(jnp.float32)
            (_, expected_losses), expected = jax.jit(problem.step("our pure JAX"))(logits)
            self.expected = expected_losses, expected * some
        expected_losses, expected = self.expected
        some = len(expected)
        error = difference(gradient[:some].astype(jnp.float32) * len(gradient), expected)
        relative = difference(losses[:some] / expected_losses, jnp.ones(some))
        self.judge(name, problem, float(jnp.maximum(error, relative)), tolerance)

    def judge(self, name: str, problem: Problem, error: float, tolerance: float) -> None:
        self.add_fact(name, problem, "max error", error)
        if not error <= tolerance:  # NaN is wrong as well
            raise ArithmeticError(f"off by {error:.1e}")

    def rows(self) -> Iterator[Row]:
        for name in dict.fromkeys([*self.calls, *self.notes]):
            if name in self.calls:
                yield Row.of_call(name, self.calls[name])
            else:
                yield Row(name, note=self.notes[name], samples=0)
        for name, call in self.calls.items():
            if name.startswith("ours, with h @ W"):
                product_alone = self.calls.get(name.replace("ours, with h @ W", "h @ W alone"))
                if product_alone:
                    less = call.median() - product_alone.median()
                    yield Row(name.replace("with", "less"), "ms", less)
        yield from self.facts
