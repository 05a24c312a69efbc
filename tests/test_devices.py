"""Does the loss stay on the devices of its utterances, and run where there is no kernel?"""

import os
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cases import Case, Implementation, assert_close, losses_and_gradients, random_case
from jax_mbrnnt import MultiblankRNNT

OPTIONS: dict[str, Any] = {"big_blank_durations": (2, 3), "sigma": 0.05, "fastemit_lambda": 0.1}


def sharding(*axes: str) -> NamedSharding:
    """Over all devices along the leading dimension, or over none."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    return NamedSharding(mesh, PartitionSpec(*axes))


def test_batch_sharded_step_stays_local(implementation: Implementation) -> None:
    """The weights' gradient is reduced over the devices; logits never travel."""
    case = random_case(65, (16,), dtype=np.float32)
    model = MultiblankRNNT(**OPTIONS, implementation=implementation)

    def mean(weights: jax.Array, case: Case) -> jax.Array:
        return model(case.logits @ weights, *case[1:]).mean()

    step = jax.jit(jax.value_and_grad(mean))
    weights = jnp.eye(8, dtype=jnp.float32)
    operands = jax.device_put(weights, sharding()), jax.device_put(case, sharding("data"))
    program = step.lower(*operands).compile().as_text() or ""
    assert "all-reduce" in program
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program
    for actual, alone in zip(step(*operands), step(weights, case), strict=True):
        assert_close(actual, alone, 1e-5)


def test_results_are_sharded_as_the_logits_are(implementation: Implementation) -> None:
    case = random_case(66, (16,))
    options: dict[str, Any] = {**OPTIONS, "implementation": implementation}
    sharded = jax.device_put(case, sharding("data"))
    losses, gradients = jax.jit(MultiblankRNNT(**options).cost_and_grad)(*sharded)
    assert losses.sharding.spec[0] == gradients.sharding.spec[0] == "data"
    expected_losses, expected_gradients = losses_and_gradients(case, **options)
    assert_close(losses, expected_losses, 1e-14)
    assert_close(gradients, expected_gradients, 1e-14)


def test_without_64_bits() -> None:
    """JAX as most people run it, with warnings as errors."""
    program = """
        import warnings
        import jax, numpy as np
        from jax_mbrnnt import MultiblankRNNT
        warnings.simplefilter("error")
        logits = np.zeros((2, 4, 3, 5), np.float32)
        labels = np.ones((2, 2), np.int32)
        for implementation in ("ffi", "xla"):
            model = MultiblankRNNT(big_blank_durations=(2,), implementation=implementation)
            losses, gradients = model.cost_and_grad(logits, labels)
            assert losses.dtype == gradients.dtype == "float32"
            total, autodiff = jax.value_and_grad(lambda x: model(x, labels).sum())(logits)
            np.testing.assert_allclose(total, losses.sum(), rtol=1e-6)
            np.testing.assert_allclose(autodiff, gradients, rtol=0, atol=1e-6)
            assert np.all(np.isnan(jax.jit(model)(logits, labels - 2)))
        print("done")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "done\n", result.stderr
