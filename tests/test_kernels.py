"""Do the kernels compute what their pure-JAX twin does, in every dtype and shape?"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from cases import Array, Case, Implementation, assert_close, losses_and_gradients, random_case

OPTIONS: dict[str, Any] = {"sigma": 0.05, "fastemit_lambda": 0.01, "clamp": 0.5}

# Losses and gradients: 1e-5 where the arithmetic is float32, and one rounding for short logits.
TOLERANCES = {
    "float64": (1e-12, 1e-12),
    "float32": (1e-5, 1e-5),
    "bfloat16": (1e-5, 1e-5 + float(jnp.finfo("bfloat16").eps)),
    "float16": (1e-5, 1e-5 + float(jnp.finfo("float16").eps)),
}

# Name: batch, T, U, V, big-blank durations; below that of TDT, all durations, which count in V.
SHAPES = {
    "small": ((2,), 5, 3, 8, (2, 4)),
    "odd classes": ((3,), 9, 4, 37, (2, 3, 4)),
    "many classes": ((2,), 3, 2, 1027, (2,)),
    "no class but the blank": ((2,), 4, 0, 1, ()),
    "one class beside the blank": ((2,), 4, 2, 2, ()),
    "one class beside the blanks": ((2,), 6, 3, 3, (2,)),
    "one frame": ((3,), 1, 4, 6, (2, 3)),
    "no labels": ((3,), 7, 0, 6, (2, 3)),
    "one node": ((), 1, 0, 5, ()),
    "more labels than frames": ((2,), 3, 20, 6, (2,)),
    "no batch dimension": ((), 6, 3, 7, (3,)),
    "several batch dimensions": ((2, 1, 3), 4, 2, 6, (2,)),
    "no utterances": ((0,), 4, 2, 6, (2,)),
}
TDT_SHAPES = {
    "TDT": ((2,), 5, 3, 8, (0, 1, 2)),
    "TDT, odd classes": ((3,), 9, 4, 37, (0, 1, 2, 3, 4)),
    "TDT, many classes": ((2,), 3, 2, 1027, (4, 0, 1)),
    "TDT, a vector and a half of durations": ((2,), 14, 3, 27, tuple(range(12))),
    "TDT, no class but the blank": ((2,), 4, 0, 3, (1, 2)),
    "TDT, one duration": ((2,), 4, 2, 7, (1,)),
    "TDT, one frame": ((3,), 1, 4, 9, (0, 1, 2)),
    "TDT, no labels": ((3,), 7, 0, 8, (3, 1)),
    "TDT, more labels than frames": ((2,), 3, 20, 9, (0, 1)),
    "TDT, several batch dimensions": ((2, 1, 3), 4, 2, 9, (0, 2, 1)),
    "TDT, no utterances": ((0,), 4, 2, 8, (0, 1)),
}


@functools.cache
def utterances(name: str) -> tuple[Case, Array, dict[str, Any]]:
    """Logits that every dtype can hold, cotangents, options."""
    is_tdt = name in TDT_SHAPES
    batch, T, U, V, durations = (TDT_SHAPES if is_tdt else SHAPES)[name]
    options = {**OPTIONS, "durations" if is_tdt else "big_blank_durations": durations}
    no_labels = range(max(1, V - len(durations) - 1), V) if is_tdt else None
    case = random_case(6, batch, T, U, V, blanks=no_labels)
    logits = case.logits.astype("bfloat16").astype("float16").astype("float64")
    cotangents = np.random.default_rng(7).normal(size=batch)
    return case._replace(logits=logits), cotangents, options


@functools.cache
def twins(name: str) -> tuple[Array, Array]:
    case, cotangents, options = utterances(name)
    return losses_and_gradients(case, cotangents, **options, implementation="xla")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [*SHAPES, *TDT_SHAPES])
def test_kernels_against_their_twin_in_float64(shape: str, dtype: str) -> None:
    case, cotangents, options = utterances(shape)
    short = case._replace(logits=case.logits.astype(dtype))
    losses, gradients = losses_and_gradients(short, cotangents, **options, implementation="ffi")
    assert losses.dtype == ("float64" if dtype == "float64" else "float32")
    assert gradients.dtype == dtype
    assert_close(losses, twins(shape)[0], TOLERANCES[dtype][0])
    assert_close(gradients, twins(shape)[1], TOLERANCES[dtype][1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", ["small", "TDT"])
def test_twin_in_every_dtype(shape: str, dtype: str) -> None:
    case, cotangents, options = utterances(shape)
    short = case._replace(logits=case.logits.astype(dtype))
    losses, gradients = losses_and_gradients(short, cotangents, **options, implementation="xla")
    assert losses.dtype == "float32"
    assert gradients.dtype == dtype
    assert_close(losses, twins(shape)[0], TOLERANCES[dtype][0])
    assert_close(gradients, twins(shape)[1], TOLERANCES[dtype][1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "durations",
    [{"big_blank_durations": (2, 4, 8)}, {"durations": (0, 1, 2, 3, 4)}],
    ids=["multiblank", "TDT"],
)
def test_errors_are_at_most_twice_the_references_own(durations: dict[str, Any], dtype: str) -> None:
    case = random_case(8, (8,), 60, 15, 33, dtype=dtype, blanks=range(27, 33))
    options: dict[str, Any] = {**OPTIONS, **durations}
    exact = Case(case.logits.astype("float64"), *case[1:])
    exact_results = losses_and_gradients(exact, **options, implementation="xla")

    def errors(implementation: Implementation) -> list[float]:
        results = losses_and_gradients(case, **options, implementation=implementation)
        pairs = zip(results, exact_results, strict=True)
        return [np.max(np.abs(a.astype("float64") - b)) for a, b in pairs]

    for ffi, xla in zip(errors("ffi"), errors("xla"), strict=True):
        assert ffi <= 2 * xla
