"""Threads at once, each of which gets to the bit what it would get alone.

On a Python without a GIL they truly run at once.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from cases import Array, criterion, random_case
from jax_mbrnnt import greedy_decode

THREADS, TIMES = 8, 2
OPTIONS: list[dict[str, Any]] = [{"big_blank_durations": (2, 3)}, {"durations": (0, 1, 2)}]


def at_once(work: Callable[[int], list[Array]]) -> None:
    expected = [work(i) for i in range(THREADS)]
    start = threading.Barrier(THREADS)

    def together(i: int) -> list[list[Array]]:
        start.wait()
        return [work(i) for _ in range(TIMES)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(together, range(THREADS)))
    for runs, alone in zip(found, expected, strict=True):
        for results in runs:
            jax.tree.map(np.testing.assert_array_equal, results, alone)
    assert any(not np.array_equal(expected[0][0], other[0]) for other in expected[1:])


def test_tracing_and_compiling(implementation: str) -> None:
    """Of losses that differ, anew each time."""

    def work(i: int) -> list[Array]:
        case = random_case(i, T=4 + i % 3)
        loss = criterion(**OPTIONS[i % 2], implementation=implementation)
        step = jax.jit(jax.value_and_grad(lambda logits: loss(logits, *case[1:]).sum()))
        return [np.asarray(x) for x in step(case.logits)]

    at_once(work)


def test_one_program() -> None:
    """Large enough that its kernels are shared out among XLA's threads."""
    loss = criterion(big_blank_durations=(2, 4))
    step = jax.jit(jax.value_and_grad(lambda case: loss(*case).sum(), allow_int=True))
    cases = [random_case(i, (4,), 60, 20, 64, dtype=np.float32) for i in range(THREADS)]

    def work(i: int) -> list[Array]:
        value, gradients = step(cases[i])
        return [np.asarray(value), np.asarray(gradients.logits)]

    at_once(work)


def test_searches() -> None:
    def work(i: int) -> list[Array]:
        encoded = np.random.default_rng(i).normal(size=(2, 9, 8)).astype(np.float32)
        found = greedy_decode(
            criterion(**OPTIONS[i % 2]),
            lambda frame, prediction: frame + prediction,
            lambda labels, state: (state, state),
            encoded,
            np.full(2, 9, np.int32),
            initial_state=np.zeros((2, 8), np.float32),
            max_labels=20,
        )
        return [np.asarray(x) for x in jax.tree.leaves(found)]

    at_once(work)
