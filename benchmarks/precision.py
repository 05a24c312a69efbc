"""The float32 gradients' largest error, against float64, at the longest utterance of the table.

    python benchmarks/precision.py [--shape 1,1000,101,512]      prints JSON

A process of its own, because float64 is a setting of the whole of JAX.
"""

import argparse
import json

import jax
import jax.numpy as jnp

import apart
from programs import MULTIBLANK, TDT_0_TO_4, Shape, make_problem

SHAPE: Shape = (1, 1000, 101, 512)


def measure(shape: Shape = SHAPE) -> dict[str, float]:
    """Runs this file."""
    return apart.run(__file__, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=apart.parse_shape, default=SHAPE)
    shape = parser.parse_args().shape
    errors = {}
    for suffix, kind in {"": MULTIBLANK, ", TDT": TDT_0_TO_4}.items():
        problem = make_problem(shape, kind)
        found = {}
        for which in ("ours", "twin", "strong"):  # traced as a user's float32 is
            _, found[which + suffix] = jax.jit(problem.step(which))(problem.logits)
        jax.config.update("jax_enable_x64", True)
        exact = jax.jit(problem.step("twin"))(problem.logits.astype(jnp.float64))[1]
        assert exact.dtype == jnp.float64
        for name, gradient in found.items():
            errors[name] = float(jnp.max(jnp.abs(gradient - exact))) * shape[0]
        jax.config.update("jax_enable_x64", False)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
