"""Does every way to use many devices compute the right numbers on each device's own utterances?

Each cell of the matrix, a way to use devices times what is asked of the loss, is compared with
one device, and its compiled program is read: the kernels get the utterances of one device, and
nothing of the logits' size travels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from cases import Case, Implementation
from meshes import (
    BATCH,
    DATA,
    DEVICES,
    OF_EACH_TRANSDUCER,
    Loss,
    P,
    asked,
    assert_expected,
    assert_local,
    assert_only_reduces,
    batch,
    choose,
    collectives,
    compiled_text,
    joint_loss_by,
    kernel_calls,
    loss_by,
    mesh_of,
    place,
    shard_map,
)


@pytest.fixture(autouse=True)
def transducer(request: pytest.FixtureRequest) -> None:
    choose(getattr(request, "param", "multiblank"))


# ---- the ways --------------------------------------------------------------------------


class Program(NamedTuple):
    """A jitted step, what it is called with, and what its compiled program may look like."""

    step: Any
    operands: tuple[Any, ...]
    local: tuple[int, ...] = (BATCH // DEVICES,)  # batch dimensions of the kernels' logits
    all_reduces: int = 1  # of a gradient; losses need none


def sharded(mesh: Mesh = DATA, *axes: Any) -> tuple[Any, Any]:
    weights, case = batch()
    return place(weights, mesh=mesh), place(case, *(axes or ("data",)), mesh=mesh)


def split(*leading: int) -> Case:
    """The batch as several batch dimensions."""
    return Case(*(x.reshape(*leading, -1, *x.shape[1:]) for x in batch()[1]))


def by_jit(quantity: str, loss: Loss) -> Program:
    return Program(jax.jit(asked(quantity, loss)), sharded())


def by_jit_over_two_axes(quantity: str, loss: Loss) -> Program:
    mesh = mesh_of(data=4, model=2)
    return Program(jax.jit(asked(quantity, loss)), sharded(mesh, ("data", "model")))


def by_jit_of_two_batch_dims(quantity: str, loss: Loss) -> Program:
    """`[4, 4, T, U+1, V]`, each over a mesh axis of its own, which is reduced on its own."""
    mesh = mesh_of(data=4, model=2)
    operands = place(batch()[0], mesh=mesh), place(split(4), "data", "model", mesh=mesh)
    return Program(jax.jit(asked(quantity, loss)), operands, (1, 2), all_reduces=2)


def by_shard_map(quantity: str, loss: Loss) -> Program:
    mapped = shard_map(loss, DATA, (P(), P("data")), P("data"))
    return Program(jax.jit(asked(quantity, mapped)), sharded())


def by_grad_inside_shard_map(quantity: str, loss: Loss) -> Program:
    """The weights are the same everywhere: their gradient is the sum over the devices."""
    assert quantity == "value_and_grad"

    def local(weights: jax.Array, case: Case) -> Any:
        def share(weights: jax.Array, logits: jax.Array) -> jax.Array:
            return loss(weights, case._replace(logits=logits)).sum() / BATCH

        value, gradients = jax.value_and_grad(share, argnums=(0, 1))(weights, case.logits)
        return jax.lax.psum(value, "data"), gradients

    mapped = shard_map(local, DATA, (P(), P("data")), (P(), (P(), P("data"))))
    return Program(jax.jit(mapped), sharded())


def by_partial_shard_map(quantity: str, loss: Loss) -> Program:
    """Manual over one axis of the mesh; along the other one nothing is sharded."""
    mesh = mesh_of(data=4, model=2)
    mapped = shard_map(loss, mesh, (P(), P("data")), P("data"), axis_names={"data"})
    return Program(jax.jit(asked(quantity, mapped)), sharded(mesh), (4,))


def by_partial_shard_map_of_a_sharded_batch(quantity: str, loss: Loss) -> Program:
    """Manual over one axis of the mesh, and the partitioner splits the batch over the other."""
    mesh = mesh_of(data=4, model=2)
    mapped = shard_map(loss, mesh, (P(), P("data")), P("data"), axis_names={"data"})
    operands = sharded(mesh, ("data", "model"))
    # The weights' gradient is reduced over each axis in turn.
    return Program(jax.jit(asked(quantity, mapped)), operands, all_reduces=3)


def by_pmap(quantity: str, loss: Loss) -> Program:
    operands = batch()[0], split(DEVICES)
    if quantity == "losses":
        return Program(jax.pmap(loss, in_axes=(None, 0)), operands)

    def step(weights: jax.Array, case: Case) -> Any:
        value, (by_weights, by_logits) = asked(quantity, loss)(weights, case)
        value, by_weights = jax.lax.pmean((value, by_weights), "devices")
        return value, (by_weights, by_logits / DEVICES)

    axes: dict[str, Any] = {"in_axes": (None, 0), "out_axes": (None, (None, 0))}
    return Program(jax.pmap(step, axis_name="devices", **axes), operands)


def by_pmap_of_vmap(quantity: str, loss: Loss) -> Program:
    return by_pmap(quantity, jax.vmap(loss, in_axes=(None, 0)))


def by_jit_of_vmap(quantity: str, loss: Loss) -> Program:
    return by_jit(quantity, jax.vmap(loss, in_axes=(None, 0)))


def by_jit_of_checkpoint(quantity: str, loss: Loss) -> Program:
    return by_jit(quantity, jax.checkpoint(loss))


def by_jit_of_scan(quantity: str, loss: Loss) -> Program:
    def scanned(weights: jax.Array, case: Case) -> jax.Array:
        return jax.lax.scan(lambda _, one: (None, loss(weights, one)), None, case)[1]

    operands = place(batch()[0]), place(split(2), None, "data")
    return Program(jax.jit(asked(quantity, scanned)), operands, (1,), all_reduces=2)


def by_accumulation(quantity: str, loss: Loss) -> Program:
    """Two halves of the batch one after the other, the gradients added up; one all-reduce."""
    assert quantity == "value_and_grad"

    def step(weights: jax.Array, case: Case) -> Any:
        def add(total: Any, half: Case) -> Any:
            value, (by_weights, by_logits) = asked(quantity, loss)(weights, half)
            return jax.tree.map(jnp.add, total, (value / 2, by_weights / 2)), by_logits / 2

        zeros = jnp.zeros((), weights.dtype), jnp.zeros_like(weights)
        (value, by_weights), by_logits = jax.lax.scan(add, zeros, case)
        return value, (by_weights, by_logits)

    operands = place(batch()[0]), place(split(2), None, "data")
    return Program(jax.jit(step), operands, (1,))


SHARDY = getattr(jax.config, "jax_use_shardy_partitioner", True)
WAYS = [
    by_jit,
    by_jit_over_two_axes,
    by_jit_of_two_batch_dims,
    by_shard_map,
    by_partial_shard_map,
    pytest.param(
        by_partial_shard_map_of_a_sharded_batch,
        marks=pytest.mark.xfail(
            not SHARDY, strict=True, reason="older JAX's GSPMD gathers the batch inside"
        ),
    ),
    by_pmap,
    by_pmap_of_vmap,
    by_jit_of_vmap,
    by_jit_of_checkpoint,
    by_jit_of_scan,
]
WAYS_TO_A_GRADIENT = [by_grad_inside_shard_map, by_accumulation]


@pytest.mark.parametrize("way", WAYS)
def test_losses_on_many_devices(way: Callable[..., Program]) -> None:
    program = way("losses", loss_by("ffi"))
    text = compiled_text(program.step, *program.operands)
    assert_local(text, program.local, "losses")
    assert_only_reduces(text, 0)
    assert_expected(program.step(*program.operands), "losses")


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("way", [*WAYS, *WAYS_TO_A_GRADIENT])
def test_gradients_on_many_devices(way: Callable[..., Program]) -> None:
    """The value, the weights' gradient, which is reduced, and the features', which is not."""
    program = way("value_and_grad", loss_by("ffi"))
    text = compiled_text(program.step, *program.operands)
    assert_local(text, program.local, "value_and_grad")
    assert_only_reduces(text, program.all_reduces)
    assert_expected(program.step(*program.operands), "value_and_grad")


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize(
    "way", [by_shard_map, by_grad_inside_shard_map, by_partial_shard_map, by_pmap]
)
def test_gradients_of_the_twin_on_many_devices(way: Callable[..., Program]) -> None:
    program = way("value_and_grad", loss_by("xla"))
    text = compiled_text(program.step, *program.operands)
    assert kernel_calls(text) == []
    assert_only_reduces(text, program.all_reduces)
    assert_expected(program.step(*program.operands), "value_and_grad")


# ---- the loss of a joint -----------------------------------------------------------------


def assert_chunks_are_local(program: Program, text: str) -> None:
    batch = len(program.local)
    for call in kernel_calls(text):
        assert call.operands[0][:batch] == program.local
        frames = 5 if call.stage.startswith("lattice") else 2
        assert call.operands[0][batch:-1] == (frames, 4)
    # Of the weights' gradient, of the value, and of how many chunks there are.
    assert collectives(text).keys() <= {"all-reduce"}


@pytest.mark.parametrize("way", WAYS)
def test_losses_of_a_joint_on_many_devices(way: Callable[..., Program]) -> None:
    program = way("losses", joint_loss_by("ffi"))
    assert_chunks_are_local(program, compiled_text(program.step, *program.operands))
    assert_expected(program.step(*program.operands), "losses")


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("way", [*WAYS, *WAYS_TO_A_GRADIENT])
def test_gradients_of_a_joint_on_many_devices(way: Callable[..., Program]) -> None:
    program = way("value_and_grad", joint_loss_by("ffi"))
    assert_chunks_are_local(program, compiled_text(program.step, *program.operands))
    assert_expected(program.step(*program.operands), "value_and_grad")


@pytest.mark.parametrize("implementation", ["ffi", "xla"])
@pytest.mark.parametrize("way", [by_shard_map, by_grad_inside_shard_map, by_pmap])
def test_weights_of_a_joint_are_reduced_once(
    way: Callable[..., Program], implementation: Implementation
) -> None:
    """Where the devices are programmed one by one: after the loop over the chunks, not in it."""
    program = way("value_and_grad", joint_loss_by(implementation))
    text = compiled_text(program.step, *program.operands)
    assert_only_reduces(text, program.all_reduces)
    assert_expected(program.step(*program.operands), "value_and_grad")
