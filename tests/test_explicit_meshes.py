"""On meshes of `AxisType.Explicit` types say how arrays lie: results follow, misfits are errors."""

import re
from typing import Any

import jax
import numpy as np
import pytest

from cases import criterion, random_case
from meshes import (
    BATCH,
    DEVICES,
    OF_EACH_TRANSDUCER,
    OPTIONS,
    STAGES,
    VERSION,
    P,
    asked,
    assert_close_trees,
    assert_costs_and_gradients,
    assert_local,
    assert_only_reduces,
    batch,
    choose,
    collectives,
    compiled_text,
    cost_and_grad,
    expected,
    explicit,
    joint_loss_by,
    loss_by,
    place,
    typed,
)


@pytest.fixture(autouse=True)
def transducer(request: pytest.FixtureRequest) -> None:
    choose(getattr(request, "param", "multiblank"))


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("quantity", STAGES)
@pytest.mark.parametrize("axes", [("data",), ("model",), (("data", "model"),)], ids=str)
def test_explicit_mesh(quantity: str, axes: tuple[Any, ...]) -> None:
    reference = expected()[quantity]  # outside of the mesh
    with explicit(data=4, model=2) as mesh:
        operands = typed(mesh, *axes)
        step = jax.jit(asked(quantity, loss_by("ffi")))
        text = compiled_text(step, *operands)
        devices = {"data": 4, "model": 2}.get(axes[0], DEVICES)
        assert_local(text, (BATCH // devices,), quantity)
        assert_only_reduces(text, int(quantity == "value_and_grad"))
        assert_close_trees(step(*operands), reference)


@pytest.mark.parametrize("way", ["batched", "vmap"])
def test_in_place_on_an_explicit_mesh(way: str) -> None:
    """Under `shard_map` there is nothing to split, and so XLA keeps the CUDA kernels' aliases."""
    reference = expected()["value_and_grad"]
    loss = loss_by("ffi")
    if way == "vmap":
        loss = jax.vmap(loss, in_axes=(None, 0))
    with explicit(data=DEVICES) as mesh:
        operands = typed(mesh, "data")
        step = jax.jit(asked("value_and_grad", loss))
        assert_close_trees(step(*operands), reference)
        jaxpr = str(step.trace(*operands).jaxpr)
    for stage in ("lattice", "logit_gradients"):
        (call,) = re.findall(rf"shard_map\[(?:(?!shard_map\[).)*mbrnnt_{stage}\[", jaxpr, re.DOTALL)
        assert call


@pytest.mark.xfail(
    VERSION < (0, 7), strict=True, reason="older JAX has no rule for scatter-add on such a mesh"
)
def test_twin_on_an_explicit_mesh() -> None:
    reference = expected()["value_and_grad"]
    with explicit(data=DEVICES) as mesh:
        operands = typed(mesh, "data")
        step = jax.jit(asked("value_and_grad", loss_by("xla")))
        text = compiled_text(step, *operands)
        assert_only_reduces(text, 1)
        assert_close_trees(step(*operands), reference)


def test_types_on_an_explicit_mesh() -> None:
    """The results carry the batch's sharding in their types, also where nothing is jitted."""
    case = batch()[1]
    model = criterion(**OPTIONS, implementation="ffi")
    with explicit(data=DEVICES) as mesh:
        losses, gradients = model.cost_and_grad(*place(case, "data", mesh=mesh))
        assert jax.typeof(losses).sharding.spec == P("data")
        assert tuple(jax.typeof(gradients).sharding.spec) == ("data", None, None, None)


@pytest.mark.parametrize("spec", [(None, "data"), (None, None, "data"), (None, None, None, "data")])
def test_explicitly_sharded_core_is_a_type_error(spec: tuple[Any, ...]) -> None:
    """Of frames, labels and classes an utterance needs all: what to do is up to the caller."""
    case = random_case(72, (2,), 8, 7, 8, dtype=np.float32)
    model = criterion(**OPTIONS, implementation="ffi")
    with explicit(data=DEVICES) as mesh:
        logits = place(case.logits, *spec, mesh=mesh)
        rest = place(tuple(case[1:]), mesh=mesh)
        with pytest.raises(TypeError, match=r"only batch dimensions .* reshard"):
            jax.jit(model.cost_and_grad)(logits, *rest)


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("axes", [("data",), (("data", "model"),)], ids=str)
def test_joint_on_an_explicit_mesh(axes: tuple[Any, ...]) -> None:
    reference = expected()["value_and_grad"]  # outside of the mesh
    with explicit(data=4, model=2) as mesh:
        operands = typed(mesh, *axes)
        step = jax.jit(asked("value_and_grad", joint_loss_by("ffi")))
        assert collectives(compiled_text(step, *operands)).keys() <= {"all-reduce"}
        assert_close_trees(step(*operands), reference)


def test_replicated_labels_on_an_explicit_mesh() -> None:
    case = batch()[1]
    with explicit(data=DEVICES) as mesh:
        operands = place(case.logits, "data", mesh=mesh), *place(tuple(case[1:]), mesh=mesh)
        text = compiled_text(cost_and_grad(), *operands)
        assert_local(text, (2,), "value_and_grad")
        assert collectives(text) == {}
        results = jax.tree.map(np.asarray, cost_and_grad()(*operands))
    assert_costs_and_gradients(results, case)


def test_replicated_logits_with_sharded_labels_on_an_explicit_mesh() -> None:
    case = batch()[1]
    with explicit(data=DEVICES) as mesh:
        operands = place(case.logits, mesh=mesh), *place(tuple(case[1:]), "data", mesh=mesh)
        with pytest.raises(TypeError, match=r"sharded over the batch as .* reshard"):
            jax.jit(cost_and_grad())(*operands)
