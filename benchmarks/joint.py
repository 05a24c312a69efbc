"""The loss of a joint network, a chunk of frames at a time, beside all logits at once.

    python benchmarks/joint.py [--quick] [--out DIR]      joint.csv and joint.png
    python benchmarks/joint.py --huge                     logits of 59 GB, and the resident set
    python benchmarks/joint.py --large                    what a GPU trains with, in bfloat16

A training step, `value_and_grad` by the params and both inputs of the joint: what is timed takes
turns, in a new order each round, and the gradients are compared first. `whole` is
`multiblank_rnnt_loss` of all logits; `chunked` is `multiblank_rnnt_joint_loss` with its own choice
of chunks; `remat` is pure JAX, a scan over as long chunks under `jax.checkpoint`. The temporary
memory is XLA's own count. The joint is `tanh(encoded + predicted) @ W + b`, float32.
"""

import argparse
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import memory
import rivals
from jax_mbrnnt import multiblank_rnnt_joint_loss, multiblank_rnnt_loss
from programs import BIG_BLANKS
from tables import dress, write_csv
from timing import Call, interleave


class Size(NamedTuple):
    """Of a joint's logits, and the width that it makes them of."""

    B: int
    T: int
    U: int
    V: int
    H: int

    @property
    def logits(self) -> int:
        return self.B * self.T * (self.U + 1) * self.V

    @property
    def bytes(self) -> int:  # in float32
        return 4 * self.logits


BASE = Size(B=4, T=200, U=40, V=512, H=64)
VALUES = {
    "B": [1, 2, 4, 8],
    "T": [50, 100, 200, 400, 800],
    "U": [10, 20, 40, 80, 160],
    "V": [64, 128, 256, 512, 1024, 2048, 4096],
    "H": [16, 64, 256, 640],
    "C": [1, 2, 5, 10, 20, 50, 100, 200],  # frames a chunk, instead of the default
}
QUICK_BASE = Size(B=2, T=50, U=10, V=64, H=16)
QUICK_VALUES = {"B": [1, 2], "V": [32, 64], "C": [5, 50]}
HUGE = Size(B=8, T=1500, U=300, V=4096, H=64)
LARGE = Size(B=16, T=400, U=100, V=1024, H=640)
LARGE_CHUNKS = [1, 3, 7, 14, 28]
PROGRAMS = ("whole", "chunked", "remat")
FIELDS = ["axis", "value", *Size._fields, "chunk_frames", "program", "median_ms", "min_ms"]
FIELDS += ["max_ms", "temp_over_logits", "temp_minus_chunk_over_logits"]
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of the gradients, relative to the largest


def joint(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
    hidden = jnp.tanh(encoded[:, :, None] + predicted[:, None])
    return hidden @ params["kernel"] + params["bias"]


def make_operands(size: Size, dtype: str = "float32") -> tuple[Any, ...]:
    """The params and the joint's inputs, then what the loss takes beside them."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "kernel": 2 * jax.random.normal(keys[0], (size.H, size.V), dtype) / size.H**0.5,
        "bias": jnp.zeros(size.V, dtype),
    }
    encoded = jax.random.normal(keys[1], (size.B, size.T, size.H), dtype)
    predicted = jax.random.normal(keys[2], (size.B, size.U + 1, size.H), dtype)
    most = size.V - len(BIG_BLANKS) - 1
    labels = jax.random.randint(keys[3], (size.B, size.U), 0, most)
    lengths = jnp.full(size.B, size.T), jnp.full(size.B, size.U)
    return params, encoded, predicted, labels, *lengths


def chunk_frames_of(operands: tuple[Any, ...]) -> int:
    """As many as the loss takes by default."""
    seen = []

    def seeing(params: Any, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        seen.append(encoded.shape[1])
        return joint(params, encoded, predicted)

    jax.eval_shape(functools.partial(multiblank_rnnt_joint_loss, seeing), *operands)
    return seen[-1]


def compile_step(program: str, operands: tuple[Any, ...], chunk_frames: int | None = None) -> Any:
    options: dict[str, Any] = {"big_blank_durations": BIG_BLANKS}
    if program == "whole":
        loss = lambda *x: multiblank_rnnt_loss(joint(*x[:3]), *x[3:], **options)  # noqa: E731
    elif program == "chunked":
        options["chunk_frames"] = chunk_frames
        loss = functools.partial(multiblank_rnnt_joint_loss, joint, **options)
    else:
        model = rivals.multiblank(BIG_BLANKS)
        chunk_frames = chunk_frames or chunk_frames_of(operands)
        loss = functools.partial(rivals.remat_joint, joint, model=model, chunk_frames=chunk_frames)
    step = jax.value_and_grad(lambda *x: loss(*x).mean(), argnums=(0, 1, 2))
    return jax.jit(step).lower(*operands).compile()


def compare(programs: dict[str, Any], operands: tuple[Any, ...]) -> None:
    expected = jax.tree.leaves(programs["whole"](*operands))
    for name, program in programs.items():
        for actual, e in zip(jax.tree.leaves(program(*operands)), expected, strict=True):
            error = float(jnp.max(jnp.abs(actual - e)) / jnp.max(jnp.abs(e)))
            if not error <= TOLERANCE[str(operands[1].dtype)]:
                raise AssertionError(f"{name}: a gradient is off by {error:.1e}")


def measure_size(size: Size, chunk_frames: int | None, seconds: float) -> dict[str, dict[str, str]]:
    operands = make_operands(size)
    programs = {name: compile_step(name, operands, chunk_frames) for name in PROGRAMS}
    compare(programs, operands)
    calls = {name: Call(program, lambda: operands) for name, program in programs.items()}
    interleave(calls, seconds, (3, 9))
    chunk_frames = chunk_frames or chunk_frames_of(operands)
    results = {}
    for name, call in calls.items():
        temporary = programs[name].memory_analysis().temp_size_in_bytes
        chunk = 0 if name == "whole" else size.bytes // size.T * chunk_frames
        times = np.median(call.milliseconds), min(call.milliseconds), max(call.milliseconds)
        numbers = *times, temporary / size.bytes, (temporary - chunk) / size.bytes
        names = FIELDS[FIELDS.index("median_ms") :]
        results[name] = dict(zip(names, (f"{x:.4f}" for x in numbers), strict=True))
        results[name]["chunk_frames"] = str(chunk_frames)
    return results


def measure(quick: bool) -> list[dict[str, str]]:
    base, values = (QUICK_BASE, QUICK_VALUES) if quick else (BASE, VALUES)
    done: dict[Any, dict[str, dict[str, str]]] = {}  # the base is on every axis
    rows = []
    print(f"{'size':40}{'logits, MB':>11}" + "".join(f"{p + ', ms':>13}" for p in PROGRAMS), end="")
    print("   temporary memory over logits")
    for axis, points in values.items():
        for value in points:
            chunk_frames = value if axis == "C" else None
            size = base if axis == "C" else base._replace(**{axis: value})
            key = size, chunk_frames
            if key not in done:
                done[key] = measure_size(*key, 0.3 if quick else 3)
                print(describe(size, done[key]), flush=True)
            for program, numbers in done[key].items():
                row = {"axis": axis, "value": value, **size._asdict()}
                row |= {"program": program, **numbers}
                rows.append({key: str(x) for key, x in row.items()})
    return rows


def describe(size: Size, results: dict[str, dict[str, str]]) -> str:
    name = ", ".join(f"{key} {value}" for key, value in size._asdict().items())
    name += f", C {results['chunked']['chunk_frames']}"
    line = f"{name:40}{size.bytes / 2**20:11.1f}"
    line += "".join(f"{float(results[p]['median_ms']):13.1f}" for p in PROGRAMS)
    return (
        line + "   " + "  ".join(f"{float(results[p]['temp_over_logits']):.3f}" for p in PROGRAMS)
    )


def draw(rows: list[dict[str, str]], base: Size, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    looks = {
        "whole": ("all logits, kernels", "#666666", "^", "--"),
        "chunked": ("chunks, this package", "#0072B2", "o", "-"),
        "remat": ("chunks, strong pure JAX", "#D55E00", "s", "-"),
    }
    titles = {"B": "batch B", "T": "frames T", "U": "labels U", "V": "classes V", "H": "width H"}
    titles["C"] = "frames a chunk C"
    names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, axes = plt.subplots(
        2, len(names), figsize=(15, 6), sharey="row", sharex="col", layout="constrained"
    )
    for column, axis in enumerate(names):
        mine = [row for row in rows if row["axis"] == axis]
        ticks = sorted({int(row["value"]) for row in mine})
        for plot, field in zip(axes[:, column], ("median_ms", "temp_bytes"), strict=True):
            for name, (label, colour, marker, line) in looks.items():
                points = [row for row in mine if row["program"] == name]
                x = [int(row["value"]) for row in points]
                y = [float(row["median_ms"]) for row in points]
                if field == "temp_bytes":
                    sizes = [Size(*(int(row[key]) for key in Size._fields)) for row in points]
                    ratios = [float(row["temp_over_logits"]) for row in points]
                    y = [s.bytes * r / 2**20 for s, r in zip(sizes, ratios, strict=True)]
                plot.plot(x, y, line, color=colour, marker=marker, markersize=4.5, label=label)
            dress(plot, ticks)
        axes[-1, column].set_xlabel(titles[axis])
    axes[0, 0].set_ylabel("value and gradient, ms")
    axes[1, 0].set_ylabel("temporary memory, MiB")
    figure.suptitle(
        "Joint and multi-blank loss (2, 4, 8), float32; around "
        + ", ".join(f"{key} = {value}" for key, value in base._asdict().items()),
        fontsize=11,
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def compute_huge(size: Size) -> None:
    """A step whose logits no machine at hand has the memory for."""
    operands = make_operands(size)
    program = compile_step("chunked", operands)
    memory.start()
    begin = time.perf_counter()
    value, gradients = jax.block_until_ready(program(*operands))
    seconds = time.perf_counter() - begin
    finite = all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(gradients))
    name = ", ".join(f"{key} = {x}" for key, x in size._asdict().items())
    print(
        f"{name}: logits of {size.bytes / 1e9:.1f} GB, chunks of {chunk_frames_of(operands)} frames"
    )
    print(f"loss {float(value):.3f}, gradients {'finite' if finite else 'NOT FINITE'}")
    temporary = program.memory_analysis().temp_size_in_bytes
    print(f"{seconds:.0f} s, temporaries {temporary / 1e9:.3f} GB", end=", ")
    print(f"largest resident set {memory.resident('VmHWM') / 1e9:.3f} GB")


def measure_large(size: Size, chunks: list[int], seconds: float) -> None:
    """The step of a GPU: time over chunks, then with a batch that is 20 times as large."""
    operands = make_operands(size, "bfloat16")
    programs = {"all logits": compile_step("whole", operands)}
    for frames in [*chunks, None]:
        name = f"chunks of {frames or f'{chunk_frames_of(operands)} (default)'}"
        programs[name] = compile_step("chunked", operands, frames)
    compare({"whole": programs["all logits"], **programs}, operands)
    calls = {name: Call(program, lambda: operands) for name, program in programs.items()}
    interleave(calls, seconds, (3, 50))
    whole = np.median(calls["all logits"].milliseconds)
    print(f"{size}, bfloat16: logits of {2 * size.logits / 2**20:.0f} MiB")
    print(f"{'':24}{'ms':>8}{'[min, max]':>18}{'/ all':>8}{'temporaries, MiB':>19}")
    for name, call in calls.items():
        ms = np.median(call.milliseconds)
        spread = f"[{min(call.milliseconds):.1f}, {max(call.milliseconds):.1f}]"
        temporary = programs[name].memory_analysis().temp_size_in_bytes / 2**20
        print(f"{name:24}{ms:8.1f}{spread:>18}{ms / whole:8.2f}{temporary:19.0f}")

    large = size._replace(B=20 * size.B)
    operands = make_operands(large, "bfloat16")
    call = Call(compile_step("chunked", operands), lambda: operands)
    interleave({"chunked": call}, seconds / 4, (2, 5))
    print(
        f"B = {large.B}, by default: {np.median(call.milliseconds):.1f} ms; logits would be "
        f"{2 * large.logits / 2**30:.1f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."))
    arguments = parser.parse_args()
    if arguments.huge:
        compute_huge(QUICK_BASE if arguments.quick else HUGE)
        return
    if arguments.large:
        size, chunks = (QUICK_BASE, [1, 5]) if arguments.quick else (LARGE, LARGE_CHUNKS)
        measure_large(size, chunks, 1 if arguments.quick else 20)
        return
    rows = measure(arguments.quick)
    write_csv(FIELDS, rows, arguments.out / "joint.csv")
    draw(rows, QUICK_BASE if arguments.quick else BASE, arguments.out / "joint.png")


if __name__ == "__main__":
    main()
