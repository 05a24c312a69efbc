"""For tests of many devices: meshes, a batch and what is expected of it, compiled programs read."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cases import (
    Case,
    Implementation,
    assert_close,
    criterion,
    losses_and_gradients,
    random_case,
)
from jax_mbrnnt import _ffi

P = PartitionSpec
VERSION = tuple(int(part) for part in jax.__version__.split(".")[:2])
TRANSDUCERS: dict[str, dict[str, Any]] = {
    "multiblank": {"big_blank_durations": (2, 3), "sigma": 0.05},
    "TDT": {"durations": (0, 1, 3), "sigma": 0.05},
}
DEVICES, BATCH, CORE = 8, 16, (5, 4, 8)
TOLERANCE = 1e-5  # of float32 against the twin in float64
OPTIONS: dict[str, Any] = {}
OF_EACH_TRANSDUCER = pytest.mark.parametrize("transducer", TRANSDUCERS, indirect=True)


def choose(transducer: str) -> None:
    """Which the tests are about; multi-blank where they do not say.

    To JAX transducers differ in attributes and shapes alone.
    """
    OPTIONS.clear()
    OPTIONS.update(TRANSDUCERS[transducer])


# ---- reading programs ------------------------------------------------------------------

TRAVELS = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")
TARGETS = {target: name for name, target in _ffi.TARGETS.items()}


class Call(NamedTuple):
    """A kernel call of a compiled program."""

    stage: str
    operands: tuple[tuple[int, ...], ...]  # shapes


def kernel_calls(program: str) -> list[Call]:
    calls = []
    for line in program.splitlines():
        target = re.search(r'custom_call_target="(\w+)"', line)
        if target is None or target[1] not in TARGETS:
            continue
        layouts = line.split("operand_layout_constraints={")[1].split("}}")[0]
        shapes = re.findall(r"\w+\[([\d,]*)\]", layouts)
        operands = tuple(tuple(int(n) for n in shape.split(",") if n) for shape in shapes)
        calls.append(Call(TARGETS[target[1]], operands))
    return calls


def collectives(program: str) -> dict[str, int]:
    kinds = (*TRAVELS, "all-reduce")
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in kinds}
    return {kind: count for kind, count in found.items() if count}


def compiled_text(step: Any, *operands: Any) -> str:
    return str(step.lower(*operands).compile().as_text())


STAGES = {
    "losses": ["arc_log_probs", "lattice_score"],
    "value_and_grad": ["arc_log_probs", "lattice", "logit_gradients"],
}


def assert_local(program: str, local: tuple[int, ...], quantity: str) -> None:
    """Of every stage each device gets its own utterances, whole."""
    calls = kernel_calls(program)
    assert sorted({call.stage for call in calls}) == STAGES[quantity]
    for call in calls:
        assert call.operands[0][:-1] == (*local, *CORE[:-1]), call


def assert_only_reduces(program: str, all_reduces: int) -> None:
    """Older XLA does not combine the all-reduces of the value and of the weights' gradient."""
    if VERSION < (0, 8):
        all_reduces *= 2
    found = collectives(program)
    assert found.pop("all-reduce", 0) <= all_reduces
    assert found == {}


# ---- meshes ----------------------------------------------------------------------------


def mesh_of(**sizes: int) -> Mesh:
    assert jax.device_count() == DEVICES
    return Mesh(np.array(jax.devices()).reshape(*sizes.values()), tuple(sizes))


DATA = mesh_of(data=DEVICES)


def place(case: Any, *axes: Any, mesh: Mesh = DATA) -> Any:
    """Every operand with its leading dimensions over the axes."""
    return jax.device_put(case, NamedSharding(mesh, P(*axes)))


def shard_map(f: Any, mesh: Mesh, in_specs: Any, out_specs: Any, **options: Any) -> Any:
    return jax.shard_map(
        f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=True, **options
    )


@contextlib.contextmanager
def explicit(**sizes: int) -> Iterator[Mesh]:
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes)
    )
    use = getattr(jax, "set_mesh", None) or getattr(jax.sharding, "use_mesh")  # noqa: B009
    with use(mesh):
        yield mesh


def typed(mesh: Mesh, *axes: Any) -> tuple[Any, Any]:
    weights, case = batch()
    return place(weights, mesh=mesh), place(case, *axes, mesh=mesh)


# ---- what is computed ------------------------------------------------------------------


@functools.cache
def batch() -> tuple[jax.Array, Case]:
    """Weights, and a case whose logits are yet to be multiplied by them."""
    case = random_case(70, (BATCH,), *CORE[:1], CORE[1] - 1, CORE[2], dtype=np.float32)
    noise = np.random.default_rng(71).normal(scale=0.1, size=(CORE[2], CORE[2]))
    return jnp.asarray(np.eye(CORE[2]) + noise, jnp.float32), case


def expected() -> dict[str, Any]:
    return expected_of("TDT" if "durations" in OPTIONS else "multiblank")


@functools.cache
def expected_of(transducer: str) -> dict[str, Any]:
    """By the twin on one device, in float64."""
    weights, case = batch()
    w, x = np.asarray(weights, np.float64), case.logits.astype(np.float64)
    losses, gradients = losses_and_gradients(
        case._replace(logits=x @ w), implementation="xla", **TRANSDUCERS[transducer]
    )
    gradients = gradients / BATCH
    by_weights = np.einsum("btuv,btuw->vw", x, gradients)
    return {
        "losses": losses,
        "value_and_grad": (losses.mean(), (by_weights, gradients @ w.T)),
    }


def assert_close_trees(actual: Any, reference: Any) -> None:
    """Whichever way the batch is laid out in dimensions."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(reference), strict=True):
        assert_close(np.asarray(a).reshape(np.shape(e)), e, TOLERANCE)


def assert_expected(actual: Any, quantity: str) -> None:
    assert_close_trees(actual, expected()[quantity])


def asked(quantity: str, losses: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Losses, or their mean and its gradient by weights and features."""
    if quantity == "losses":
        return losses

    def mean(weights: jax.Array, logits: jax.Array, case: Case) -> jax.Array:
        return losses(weights, case._replace(logits=logits)).mean()

    def value_and_grad(weights: jax.Array, case: Case) -> Any:
        return jax.value_and_grad(mean, argnums=(0, 1))(weights, case.logits, case)

    return value_and_grad


def loss_by(implementation: Implementation) -> Callable[[jax.Array, Case], jax.Array]:
    model = criterion(**OPTIONS, implementation=implementation)
    return lambda weights, case: model(case.logits @ weights, *case[1:])


Loss = Callable[[jax.Array, Case], jax.Array]


def joint_loss_by(implementation: Implementation) -> Loss:
    """Chunks of 2 of the 5 frames; the frames' features are those of all nodes."""
    model = criterion(**OPTIONS, implementation=implementation)

    def joint(weights: jax.Array, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        return encoded @ weights + predicted[..., None, :, :]

    def losses(weights: jax.Array, case: Case) -> jax.Array:
        predicted = jnp.zeros_like(case.logits[..., 0, :, :1])
        operands = weights, case.logits, predicted, *case[1:]
        return model.joint_loss(joint, *operands, chunk_frames=2)

    return losses


def cost_and_grad() -> Any:
    return jax.jit(criterion(**OPTIONS, implementation="ffi").cost_and_grad)


def assert_costs_and_gradients(actual: Any, case: Case) -> None:
    wide = case._replace(logits=np.asarray(case.logits, np.float64))
    reference = losses_and_gradients(wide, implementation="xla", **OPTIONS)
    assert_close_trees(actual, reference)
