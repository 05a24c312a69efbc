"""The float32 gradients' largest error, against float64, at the longest utterance of the table.

    python benchmarks/precision.py [--shape 1,1000,101,512]      prints JSON

A process of its own, because float64 is a setting of the whole of JAX.
"""

import argparse
import json

import jax
import jax.numpy as jnp

import apart
from programs import BIG_BLANKS, Shape, make_problem

SHAPE: Shape = (1, 1000, 101, 512)


def measure(shape: Shape = SHAPE) -> dict[str, float]:
    """Runs this file."""
    return apart.run(__file__, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=apart.parse_shape, default=SHAPE)
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
