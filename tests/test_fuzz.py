"""Do random lattices of every kind give what path enumeration gives?"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cases import (
    Array,
    Case,
    Implementation,
    assert_close,
    compiled_lattice,
    losses_and_gradients,
    random_case,
    valid_cells,
)
from enumeration import lattice, transducers
from jax_mbrnnt import Arc, multiblank_arcs, tdt_arcs

T, U, V = 4, 2, 5
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["ffi", "xla"])

# Every entry is compiled once for each implementation.
OPTIONS: list[dict[str, Any]] = [
    {"blank_id": 2, "big_blank_durations": (2,), "fastemit_lambda": 0.5},
    {"big_blank_durations": (3, 2), "clamp": 0.2},
    {"blank_id": 0, "sigma": -0.05},
    {"durations": (1, 0), "sigma": 0.05, "fastemit_lambda": 0.5, "clamp": 0.2},
    {"durations": (2, 0, 1), "blank_id": 0},
]
ARCS: list[tuple[Arc, ...]] = [
    multiblank_arcs((2, 4)),
    tdt_arcs((0, 1, 3)),
    (Arc(2, True), Arc(0, True), Arc(3, False), Arc(1, False)),
]

log_weights = st.floats(-5, 5) | st.sampled_from([-np.inf, -1e3, -40.0, 40.0])
litter = st.sampled_from([0.0, np.nan, np.inf, -np.inf])


@st.composite
def utterances(draw: st.DrawFn) -> Case:
    """One utterance of any length in a lattice of T by U, with something in the padding."""
    logits = draw(arrays(np.float64, (T, U + 1, V), elements=log_weights))
    labels = draw(arrays(np.int32, (U,), elements=st.integers(0, V - 1)))
    lengths = np.int32(draw(st.integers(0, T))), np.int32(draw(st.integers(0, U)))
    case = Case(logits, labels, *lengths)
    logits[~valid_cells(case)] = draw(litter)
    labels[lengths[1] :] = -7
    return case


@IMPLEMENTATIONS
@settings(max_examples=200)
@given(case=utterances(), options=st.sampled_from(OPTIONS))
def test_random_utterances(
    implementation: Implementation, case: Case, options: dict[str, Any]
) -> None:
    losses, gradients = losses_and_gradients(case, **options, implementation=implementation)
    expected_losses, expected_gradients = transducers(*case, **options)
    assert_close(losses, expected_losses, 1e-10)
    assert_close(gradients, expected_gradients, 1e-10)


@st.composite
def lattices(draw: st.DrawFn) -> tuple[tuple[Arc, ...], Array, np.int32, np.int32]:
    arcs = draw(st.sampled_from(ARCS))
    arc_log_probs = draw(arrays(np.float64, (T, U + 1, len(arcs)), elements=log_weights))
    return arcs, arc_log_probs, np.int32(draw(st.integers(0, T))), np.int32(draw(st.integers(0, U)))


@IMPLEMENTATIONS
@settings(max_examples=200)
@given(lattices())
def test_random_lattices(implementation: Implementation, drawn: Any) -> None:
    arcs, arc_log_probs, T, U = drawn
    loss, gradient, posteriors = compiled_lattice(arcs, implementation)(arc_log_probs, T, U)
    expected_log_likelihood, expected_posteriors = lattice(arc_log_probs, int(T), int(U), arcs)
    assert_close(loss, -expected_log_likelihood, 1e-10)
    assert_close(posteriors, expected_posteriors, 1e-10)
    assert_close(gradient, -expected_posteriors, 1e-10)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.lists(st.integers(0, 3), max_size=2),
    T=st.integers(0, 6),
    U=st.integers(0, 3),
    labels=st.integers(0, 70),
    durations=st.lists(st.integers(2, 7), max_size=4, unique=True),
    tdt_durations=st.none()
    | st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True).filter(any),
    later_classes=st.integers(0, 2),
    dtype=st.sampled_from(["float32", "float64"]),
    fastemit_lambda=st.sampled_from([0.0, 0.5]),
    clamp=st.sampled_from([0.0, 0.1]),
)
def test_random_shapes_and_options_of_the_kernels(
    seed: int,
    batch: list[int],
    T: int,
    U: int,
    labels: int,
    durations: list[int],
    tdt_durations: list[int] | None,
    later_classes: int,
    dtype: str,
    fastemit_lambda: float,
    clamp: float,
) -> None:
    """Every example compiles, which the kernels do quickly."""
    options: dict[str, Any] = {"fastemit_lambda": fastemit_lambda, "clamp": clamp}
    if tdt_durations is None:
        options["blank_id"] = labels + len(durations)
        options["big_blank_durations"] = tuple(durations)
        no_labels = [*range(labels, labels + len(durations) + 1)]
        V = labels + len(no_labels) + later_classes
    else:
        options["blank_id"] = labels
        options["durations"] = tuple(tdt_durations)
        V = labels + 1 + later_classes + len(tdt_durations)
        no_labels = [labels, *range(V - len(tdt_durations), V)]
    if labels + later_classes == 0:
        U = 0
    case = random_case(seed, tuple(batch), T, U, V, dtype=dtype, blanks=no_labels if U else ())
    losses, gradients = losses_and_gradients(case, **options, implementation="ffi")
    expected_losses, expected_gradients = transducers(*case, **options)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert_close(losses, expected_losses, tolerance)
    assert_close(gradients, expected_gradients, tolerance)
