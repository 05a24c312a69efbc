"""Shardings that do not fit, and utterances with a fault on one device of many."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from cases import Case, criterion, random_case
from meshes import (
    BATCH,
    CORE,
    DATA,
    OF_EACH_TRANSDUCER,
    OPTIONS,
    P,
    assert_costs_and_gradients,
    assert_local,
    batch,
    choose,
    collectives,
    compiled_text,
    cost_and_grad,
    kernel_calls,
    mesh_of,
    place,
    shard_map,
)


@pytest.fixture(autouse=True)
def transducer(request: pytest.FixtureRequest) -> None:
    choose(getattr(request, "param", "multiblank"))


# ---- shardings that do not fit ---------------------------------------------------------


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("axis", [1, 2, 3], ids=["T", "U", "V"])
def test_sharded_core_is_gathered_along_that_axis_alone(axis: int) -> None:
    """Under automatic sharding the logits of an utterance come together: one all-gather over the
    mesh axis that splits them. The batch stays where it is, and the gradient comes back whole.
    """
    case = random_case(73, (BATCH,), 6, 3, 8, dtype=np.float32)
    mesh = mesh_of(data=4, model=2)
    spec = ["data", None, None, None]
    spec[axis] = "model"
    operands = place(case.logits, *spec, mesh=mesh), *place(tuple(case[1:]), "data", mesh=mesh)
    text = compiled_text(cost_and_grad(), *operands)
    assert {call.operands[0][:3] for call in kernel_calls(text)} == {(4, 6, 4)}
    assert collectives(text) == {"all-gather": 1}
    (gathered,) = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    assert gathered == "4,6,4,8"
    assert_costs_and_gradients(cost_and_grad()(*operands), case)


def test_replicated_labels() -> None:
    """Labels and lengths on every device: each takes those of its own utterances."""
    case = batch()[1]
    operands = place(case.logits, "data"), *place(tuple(case[1:]))
    text = compiled_text(cost_and_grad(), *operands)
    assert_local(text, (2,), "value_and_grad")
    assert collectives(text) == {}
    results = cost_and_grad()(*operands)
    assert all(result.sharding.spec[0] == "data" for result in results)
    assert_costs_and_gradients(results, case)


def test_replicated_logits_with_sharded_labels() -> None:
    """All devices may compute all utterances then; the numbers are right."""
    case = batch()[1]
    operands = place(case.logits), *place(tuple(case[1:]), "data")
    assert_costs_and_gradients(cost_and_grad()(*operands), case)


def test_batch_that_the_devices_do_not_divide() -> None:
    """13 utterances on 8 devices, as a constraint inside `jit`: XLA pads to 2 on each. JAX has
    no such arrays outside of `jit`, so the gradient is gathered at the end, the logits are not.
    """
    case = random_case(74, (13,), *CORE[:1], CORE[1] - 1, CORE[2], dtype=np.float32)
    by_batch = NamedSharding(DATA, P("data"))

    @jax.jit
    def step(weights: jax.Array, case: Case) -> Any:
        logits = jax.lax.with_sharding_constraint(case.logits @ weights, by_batch)
        return cost_and_grad()(logits, *case[1:])

    operands = place(jnp.eye(CORE[2], dtype=jnp.float32)), place(case)
    text = compiled_text(step, *operands)
    assert_local(text, (2,), "value_and_grad")
    assert collectives(text) == {"all-gather": 2}  # of the losses and of the gradient
    assert_costs_and_gradients(step(*operands), case)


@OF_EACH_TRANSDUCER
def test_donated_logits_become_the_gradient_on_every_device() -> None:
    case = batch()[1]
    model = criterion(**OPTIONS, implementation="ffi")
    step = jax.jit(model.cost_and_grad, donate_argnums=0)
    donated = place(case, "data")
    text = compiled_text(step, *donated)
    assert "input_output_alias={ {1}: (0, {}, may-alias) }" in text.splitlines()[0]
    assert_local(text, (2,), "value_and_grad")
    assert collectives(text) == {}
    assert_costs_and_gradients(step(*donated), case)
    assert donated[0].is_deleted()


# ---- faults on one device --------------------------------------------------------------

SICK = 5  # on the third device


def with_fault(case: Case, fault: str) -> Case:
    logits, labels, logit_lengths, label_lengths = map(np.array, case)
    logit_lengths[SICK], label_lengths[SICK] = CORE[0], CORE[1] - 1
    if fault == "NaN":
        logits[SICK, 1, 1, 3] = np.nan
    elif fault == "+inf":
        logits[SICK, 1, 1, 3] = np.inf
    elif fault == "label":
        labels[SICK, 0] = CORE[2]
    elif fault == "negative label":
        labels[SICK, 2] = -1
    elif fault == "logit length":
        logit_lengths[SICK] = CORE[0] + 1
    elif fault == "label length":
        label_lengths[SICK] = -1
    else:
        assert fault == "none"
    return Case(logits, labels, logit_lengths, label_lengths)


FAULTS = ["NaN", "+inf", "label", "negative label", "logit length", "label length"]


def cost_and_grad_by_shard_map() -> Any:
    model = criterion(**OPTIONS, implementation="ffi")
    return jax.jit(shard_map(model.cost_and_grad, DATA, (P("data"),) * 4, P("data")))


@OF_EACH_TRANSDUCER
@pytest.mark.parametrize("step", [cost_and_grad, cost_and_grad_by_shard_map])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_stays_with_its_utterance(fault: str, step: Callable[[], Any]) -> None:
    case = batch()[1]
    healthy = step()(*place(with_fault(case, "none"), "data"))
    sick = step()(*place(with_fault(case, fault), "data"))
    others = np.arange(BATCH) != SICK
    for before, after in zip(healthy, sick, strict=True):
        assert np.all(np.isfinite(before))
        np.testing.assert_array_equal(np.asarray(after)[others], np.asarray(before)[others])
        assert np.all(np.isnan(np.asarray(after)[SICK]))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_and_the_mean(fault: str) -> None:
    """The reduced value says so; the gradients of the others' logits stay bit for bit."""
    case = batch()[1]
    model = criterion(**OPTIONS, implementation="ffi")
    step = jax.jit(jax.value_and_grad(lambda logits, *rest: model(logits, *rest).mean()))
    _, healthy = step(*place(with_fault(case, "none"), "data"))
    value, sick = step(*place(with_fault(case, fault), "data"))
    others = np.arange(BATCH) != SICK
    assert np.isnan(value)
    np.testing.assert_array_equal(np.asarray(sick)[others], np.asarray(healthy)[others])
    assert np.all(np.isnan(np.asarray(sick)[SICK]))
