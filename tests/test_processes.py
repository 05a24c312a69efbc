"""Does a data-parallel train step over several processes give what one process gives?

Two processes of two CPU devices each, as `jax.distributed` starts them on a cluster, and one
poisoned utterance in the second process's share of the batch.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cases import Case, assert_close, losses_and_gradients, random_case
from jax_mbrnnt import MultiblankRNNT, _ffi

PROCESSES, DEVICES_EACH = 2, 2
BATCH, T, U, V = 8, 5, 3, 8
SICK = 6  # of the last device, in the second process
OPTIONS: dict[str, Any] = {"big_blank_durations": (2, 3), "sigma": 0.05}
MODEL = MultiblankRNNT(**OPTIONS, implementation="ffi")
TIMEOUT = 120  # seconds; a step takes a few


def batch(poison: str) -> tuple[np.ndarray, Case]:
    """Weights, and a case whose logits are features: they are yet to be multiplied by them."""
    case = random_case(80, (BATCH,), T, U, V, dtype=np.float32)
    case.logit_lengths[SICK], case.label_lengths[SICK] = T, U
    if poison == "label":
        case.labels[SICK, 1] = V
    elif poison == "features":
        case.logits[SICK, 2, 1, 3] = np.nan
    else:
        assert poison == "none"
    noise = np.random.default_rng(81).normal(scale=0.1, size=(V, V))
    return np.asarray(np.eye(V) + noise, np.float32), case


# ---- three ways to average over the utterances that are not poisoned -------------------------


def plain(weights: jax.Array, case: Case) -> jax.Array:
    return MODEL(case.logits @ weights, *case[1:]).mean()


def masked_losses(weights: jax.Array, case: Case) -> jax.Array:
    """A trap: the value is right, but a poisoned utterance's gradient is NaN, and times 0 still."""
    losses = MODEL(case.logits @ weights, *case[1:])
    healthy = ~jnp.isnan(losses)
    return jnp.where(healthy, losses, 0).sum() / healthy.sum()


def without_poisoned(weights: jax.Array, case: Case) -> jax.Array:
    """The loss itself says who is poisoned. They become dummies: lengths of 0, whose loss and
    gradient are 0 whatever the labels and logits hold, and features of 0, because the weights'
    gradient multiplies the logits' by them, and 0 times NaN is NaN.
    """
    logits = jax.lax.stop_gradient(case.logits @ weights)
    healthy = ~jnp.isnan(MODEL.score_forward(logits, *case[1:]))
    features = jnp.where(healthy[:, None, None, None], case.logits, 0)
    lengths = (jnp.where(healthy, x, 0) for x in case[2:])
    losses = MODEL(features @ weights, case.labels, *lengths)
    return losses.sum() / healthy.sum()


AVERAGES = {"plain": plain, "masked losses": masked_losses, "without poisoned": without_poisoned}


# ---- the processes ---------------------------------------------------------------------


def worker(port: str, process: str) -> None:
    """One of the processes: prints what it finds as JSON."""
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, int(process))
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def place(x: Any, *axes: str) -> jax.Array:
        """Every process brings its own part of the batch."""
        share = np.split(x, PROCESSES)[int(process)] if axes else x
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_process_local_data(sharding, share, x.shape)

    def local_losses(losses: jax.Array) -> dict[str, Any]:
        shards = losses.addressable_shards
        return {str(s.index[0].start or 0): np.asarray(s.data).tolist() for s in shards}

    found: dict[str, Any] = {"devices": [jax.device_count(), jax.local_device_count()]}
    for poison in ("none", "label", "features"):
        weights, case = batch(poison)
        operands = place(weights), Case(*(place(x, "data") for x in case))
        # Nothing is jitted here: values on other processes cannot be checked, and are not.
        logits = operands[1].logits @ operands[0]
        found[f"losses, {poison}"] = local_losses(MODEL(logits, *operands[1][1:]))
        for name, average in AVERAGES.items():
            step = jax.jit(jax.value_and_grad(average))
            program = step.lower(*operands).compile()
            value, gradient = program(*operands)
            text = str(program.as_text())
            found[f"{name}, {poison}"] = {
                "value": float(value),
                "gradient": np.asarray(gradient).tolist(),
                "gathers": len(re.findall("all-gather|all-to-all|collective-permute", text)),
                "kernels": text.count(_ffi.TARGETS["logit_gradients"]),
                "local": f"f32[{BATCH // 4},{T},{U + 1},{V}]" in text,
            }
    print(json.dumps(found))


def run_workers() -> list[dict[str, Any]]:
    """Starts the processes, and ends them, come what may."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": path.strip(os.pathsep),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES_EACH}",
    }
    program = f"import sys, {__name__} as test; test.worker(*sys.argv[1:])"
    with contextlib.ExitStack() as stack:
        workers = []
        for i in range(PROCESSES):
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(port), str(i)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            workers.append(process)
        outputs = [process.communicate(timeout=TIMEOUT) for process in workers]
        for process, (_, errors) in zip(workers, outputs, strict=True):
            assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_workers()


# ---- one process -----------------------------------------------------------------------


def reference(keep: Callable[[int], bool]) -> tuple[Any, Any]:
    """Mean and its gradient over some utterances: the twin in float64, on one device."""
    weights, case = batch("none")
    kept = [i for i in range(BATCH) if keep(i)]
    case = Case(*(x[kept] for x in case))
    features = case.logits.astype(np.float64)
    losses, gradients = losses_and_gradients(
        case._replace(logits=features @ weights), implementation="xla", **OPTIONS
    )
    return losses, np.einsum("btuv,btuw->vw", features, gradients) / len(kept)


def test_all_devices_are_seen(found: list[dict[str, Any]]) -> None:
    assert [one["devices"] for one in found] == [[PROCESSES * DEVICES_EACH, DEVICES_EACH]] * 2


@pytest.mark.parametrize("average", AVERAGES)
def test_train_step(found: list[dict[str, Any]], average: str) -> None:
    """Without poison all averages are one and the same, and every process has the result."""
    losses, gradient = reference(lambda _: True)
    for one in found:
        assert_close(one[f"{average}, none"]["value"], losses.mean(), 1e-5)
        assert_close(one[f"{average}, none"]["gradient"], gradient, 1e-5)


@pytest.mark.parametrize("average", AVERAGES)
def test_kernels_stay_local(found: list[dict[str, Any]], average: str) -> None:
    for one in found:
        step = one[f"{average}, label"]
        assert step["local"]
        assert step["kernels"] >= 1
        assert step["gathers"] == 0


@pytest.mark.parametrize("poison", ["label", "features"])
def test_other_utterances_are_untouched(found: list[dict[str, Any]], poison: str) -> None:
    def losses(kind: str) -> np.ndarray:
        shards = {int(k): v for one in found for k, v in one[f"losses, {kind}"].items()}
        return np.concatenate([shards[start] for start in sorted(shards)])

    healthy, sick = losses("none"), losses(poison)
    assert healthy.shape == (BATCH,)
    assert np.flatnonzero(np.isnan(sick)).tolist() == [SICK]
    np.testing.assert_array_equal(np.delete(sick, SICK), np.delete(healthy, SICK))


@pytest.mark.parametrize("poison", ["label", "features"])
def test_poison_reaches_the_plain_mean(found: list[dict[str, Any]], poison: str) -> None:
    """On every process alike: none of them goes on while another one stops."""
    for one in found:
        assert np.isnan(one[f"plain, {poison}"]["value"])
        assert np.all(np.isnan(one[f"plain, {poison}"]["gradient"]))


@pytest.mark.parametrize("poison", ["label", "features"])
def test_masking_the_losses_is_not_enough(found: list[dict[str, Any]], poison: str) -> None:
    losses, _ = reference(lambda i: i != SICK)
    for one in found:
        step = one[f"masked losses, {poison}"]
        assert_close(step["value"], losses.mean(), 1e-5)
        assert np.all(np.isnan(step["gradient"]))


@pytest.mark.parametrize("poison", ["label", "features"])
def test_train_step_without_the_poisoned(found: list[dict[str, Any]], poison: str) -> None:
    """What works: `score_forward` tells who is poisoned, then lengths and features of 0."""
    losses, gradient = reference(lambda i: i != SICK)
    for one in found:
        step = one[f"without poisoned, {poison}"]
        assert_close(step["value"], losses.mean(), 1e-5)
        assert_close(step["gradient"], gradient, 1e-5)
