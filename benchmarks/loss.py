"""Times `value_and_grad` of the loss beside its rivals and its floor, interleaved in one run.

    python benchmarks/loss.py [--repeats 20]

The logits come out of a matrix product, as in a train step, and the product alone is timed too:
a loss costs what its step takes beyond that. All losses and gradients are compared before any is
timed. Memory is XLA's temporary memory of the step, in multiples of the logits.
"""

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import rivals
from jax_mbrnnt import multiblank_rnnt_loss

SHAPES = [(4, 100, 21, 29), (8, 200, 41, 128), (4, 200, 41, 1024)]
DURATIONS = (2, 4, 8)
HIDDEN = 16  # a narrow joint, so that the loss is not lost beside it

ours = functools.partial(multiblank_rnnt_loss, big_blank_durations=DURATIONS)
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "kernels": functools.partial(ours, implementation="ffi"),
    "our pure JAX": functools.partial(ours, implementation="xla"),
    "scan, autodiff": functools.partial(rivals.autodiff_scan, big_blank_durations=DURATIONS),
}


def measure(shape: tuple[int, int, int, int], repeats: int) -> None:
    batch, frames, columns, classes = shape
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (batch, frames, columns, HIDDEN))
    kernel = jax.random.normal(keys[1], (HIDDEN, classes))
    labels = jax.random.randint(keys[2], (batch, columns - 1), 0, classes - len(DURATIONS) - 1)
    lengths = jnp.full(batch, frames), jnp.full(batch, columns - 1)
    logits = hidden @ kernel

    def step(loss: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return jax.value_and_grad(lambda k: loss(hidden @ k, labels, *lengths).mean())

    programs = {name: jax.jit(step(loss)).lower(kernel).compile() for name, loss in LOSSES.items()}
    expected, expected_gradient = programs["our pure JAX"](kernel)
    for name, program in programs.items():
        value, gradient = program(kernel)
        np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)
        scale = np.abs(expected_gradient).max()
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4 * scale, err_msg=name)

    memory = {
        name: program.memory_analysis().temp_size_in_bytes / logits.nbytes
        for name, program in programs.items()
    }
    product = jax.jit(jax.value_and_grad(lambda k: jnp.sum((hidden @ k) ** 2)))
    programs["matrix product alone"] = product.lower(kernel).compile()

    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(kernel))
            times[name].append(1e3 * (time.perf_counter() - start))

    ours_ms = np.median(times["kernels"])
    print(f"\n(B, T, U+1, V) = {shape}, logits {logits.nbytes / 2**20:.0f} MiB")
    print(f"{'':22}{'median ms':>10}{'min':>8}{'max':>8}{'/ kernels':>11}{'temp / logits':>15}")
    for name, ms in times.items():
        row = f"{name:22}{np.median(ms):10.1f}{min(ms):8.1f}{max(ms):8.1f}"
        row += f"{np.median(ms) / ours_ms:11.2f}"
        print(row + (f"{memory[name]:15.2f}" if name in memory else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, durations {DURATIONS}, float32"
    )
    for shape in SHAPES:
        measure(shape, repeats)


if __name__ == "__main__":
    main()
