"""Is `MultiblankRNNT` the functions with their options kept, and fit to be a static argument?"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from cases import Implementation, assert_close, compiled, losses_and_gradients, random_case
from jax_mbrnnt import (
    MultiblankRNNT,
    arc_posteriors,
    multiblank_arcs,
    multiblank_rnnt_loss,
)

OPTIONS: dict[str, Any] = {
    "blank_id": 6,
    "big_blank_durations": (2, 3),
    "sigma": 0.05,
    "fastemit_lambda": 0.01,
    "clamp": 0.4,
}


@pytest.fixture
def model(implementation: Implementation) -> MultiblankRNNT:
    return MultiblankRNNT(**OPTIONS, implementation=implementation)


def test_call_and_score_forward_give_the_losses(
    model: MultiblankRNNT, implementation: Implementation
) -> None:
    case = random_case(50)
    losses = multiblank_rnnt_loss(*case, **OPTIONS, implementation=implementation)
    np.testing.assert_array_equal(model(*case), losses)
    assert_close(model.score_forward(*case), losses, 1e-14)


def test_cost_and_grad_is_what_autodiff_gives(implementation: Implementation) -> None:
    case = random_case(51)
    expected = losses_and_gradients(case, **OPTIONS, implementation=implementation)
    cost_and_grad = compiled("cost_and_grad", **OPTIONS, implementation=implementation)
    losses, gradients = cost_and_grad(*case)
    assert_close(losses, expected[0], 1e-14)
    assert_close(gradients, expected[1], 1e-14)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_of_cost_and_grad(model: MultiblankRNNT, dtype: str) -> None:
    losses, gradients = jax.eval_shape(model.cost_and_grad, *random_case(52, dtype=dtype))
    assert (losses.dtype, gradients.dtype) == ("float32", dtype)


def test_posteriors_are_the_lattices(model: MultiblankRNNT, implementation: Implementation) -> None:
    case = random_case(53)
    expected = arc_posteriors(
        model.arc_log_probs(*case), *case[2:], arcs=model.arcs, implementation=implementation
    )
    assert_close(model.posteriors(*case), expected, 1e-14)


def test_lengths_may_be_omitted() -> None:
    model = MultiblankRNNT(**OPTIONS, implementation="ffi")
    case = random_case(54, ragged=False)
    for method in (model, model.score_forward, model.cost_and_grad, model.posteriors):
        jax.tree.map(np.testing.assert_array_equal, method(*case[:2]), method(*case))


def test_arcs() -> None:
    assert MultiblankRNNT(**OPTIONS).arcs == multiblank_arcs((2, 3))


def test_frozen_equal_and_hashable() -> None:
    model = MultiblankRNNT(**OPTIONS)
    assert model == MultiblankRNNT(**OPTIONS)
    assert hash(model) == hash(MultiblankRNNT(**OPTIONS))
    assert model != dataclasses.replace(model, sigma=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.sigma = 0.1  # type: ignore[misc]


def test_durations_of_a_config_file_are_hashable_too() -> None:
    """TOML, YAML and JSON know lists only."""
    options: dict[str, Any] = {**OPTIONS, "big_blank_durations": [2, 3]}
    assert hash(MultiblankRNNT(**options)) == hash(MultiblankRNNT(**OPTIONS))


def test_static_argument_traces_once_for_each_value() -> None:
    traces = []

    @functools.partial(jax.jit, static_argnames="model")
    def losses(case: Any, model: MultiblankRNNT) -> jax.Array:
        traces.append(model)
        return model(*case)

    case = random_case(55)
    losses(case, model=MultiblankRNNT(**OPTIONS))
    losses(case, model=MultiblankRNNT(**OPTIONS))
    assert len(traces) == 1
    losses(case, model=MultiblankRNNT())
    assert len(traces) == 2
