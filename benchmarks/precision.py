"""The float32 gradients' largest error, against float64, at the longest utterance of the table.

    python benchmarks/precision.py [--shape 1,1000,101,512]      prints JSON

A process of its own, because float64 is a setting of the whole of JAX.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp

from programs import BIG_BLANKS, Shape, make_problem

SHAPE: Shape = (1, 1000, 101, 512)


def measure(shape: Shape = SHAPE) -> dict[str, float]:
    """Runs this file."""
    command = [sys.executable, __file__, "--shape", ",".join(map(str, shape))]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers: Any = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    parser.add_argument("--shape", type=numbers, default=SHAPE)
    shape = parser.parse_args().shape
    problem = make_problem(shape)
    found = {}
    for which in ("ours", "twin", "strong"):  # traced as a user's float32 is
        _, found[which] = jax.jit(problem.step(which, BIG_BLANKS))(problem.logits)
    jax.config.update("jax_enable_x64", True)
    exact = jax.jit(problem.step("twin", BIG_BLANKS))(problem.logits.astype(jnp.float64))[1]
    assert exact.dtype == jnp.float64
    errors = {
        which: float(jnp.max(jnp.abs(gradient - exact))) * shape[0]
        for which, gradient in found.items()
    }
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
