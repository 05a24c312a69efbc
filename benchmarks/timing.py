"""How programs are timed: every one once a round, rounds in a new order each."""

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class Call:
    """Something to time on the host's clock: `run(*prepare())`, without the preparation."""

    run: Callable[..., Any]
    prepare: Callable[[], tuple[Any, ...]] = tuple
    wait: Callable[[Any], Any] = jax.block_until_ready
    milliseconds: list[float] = dataclasses.field(default_factory=list)
    calls: int = 1  # of a sample
    most: int = 1 << 30  # samples

    def once(self) -> float:
        operands = self.prepare()
        self.wait(operands)
        start = time.perf_counter()
        results = self.run(*operands)
        self.wait(results)
        milliseconds = 1e3 * (time.perf_counter() - start)
        del results  # before the next program allocates its own
        return milliseconds

    def warm_up(self) -> None:
        """Finds how many calls make a sample: one cannot be told from noise if it is short."""
        self.once()
        milliseconds = self.once()
        self.calls = int(np.clip(10 / milliseconds, 1 if milliseconds > 100 else 3, 10))
        if milliseconds > 1000:
            self.most = 3  # it would take the time of all the others

    def sample(self) -> None:
        # The median within a sample as well: the first call finds the cache of other programs.
        if len(self.milliseconds) < self.most:
            self.milliseconds.append(float(np.median([self.once() for _ in range(self.calls)])))

    def median(self) -> float:
        return float(np.median(self.milliseconds))


class Pass(Call):
    """One whose clock is its own: `run` returns milliseconds."""

    def once(self) -> float:
        return self.run(*self.prepare())


class Queued(Call):
    """On a GPU: so many calls at a time that the host's share is small.

    Each is behind its preparation, which empties the cache; as many preparations alone are taken
    off.
    """

    def warm_up(self) -> None:
        self._queue(with_run=False)
        self._queue(with_run=True)
        self.calls = int(np.clip(20 / self._queue(with_run=True), 1, 10))

    def sample(self) -> None:
        both, beside = self._queue(with_run=True), self._queue(with_run=False)
        self.milliseconds.append((both - beside) / self.calls)

    def _queue(self, with_run: bool) -> float:
        start = time.perf_counter()
        for _ in range(self.calls):
            results = None  # before the next call allocates its own
            results = self.prepare()
            if with_run:
                results = self.run(*results)
        self.wait(results)
        return 1e3 * (time.perf_counter() - start)


def interleave(
    calls: dict[str, Call],
    seconds: float,
    rounds: tuple[int, int],
    fail: Callable[[str, Exception], None] | None = None,
) -> None:
    """Rounds until the time is spent, of at least and at most so many, shuffled each.

    A program that fails is told to `fail`, and runs no more.
    """
    shuffle = random.Random(0)
    names = list(calls)

    def each(step: Callable[[Call], None]) -> None:
        for name in list(names):
            try:
                step(calls[name])
            except Exception as error:
                if fail is None:
                    raise
                names.remove(name)
                fail(name, error)

    each(lambda call: call.warm_up())
    end = time.monotonic() + seconds
    for i in range(rounds[1]):
        if i >= rounds[0] and time.monotonic() > end:
            break
        shuffle.shuffle(names)
        each(lambda call: call.sample())


class Flush:
    """Reads a buffer larger than a GPU's cache. (One that was written would be written later.)"""

    def __init__(self) -> None:
        megabytes = 256 if jax.default_backend() == "gpu" else 4
        self.buffer = jnp.ones(megabytes << 18)
        self.read = jax.jit(jnp.sum)

    def before(self, *operands: Any) -> tuple[Any, ...]:
        self.read(self.buffer)
        return operands


def copy_bandwidth() -> float:
    """TB/s of a GPU, read plus written, for want of a better number than XLA's copy."""
    x = jnp.ones(1 << (28 if jax.default_backend() == "gpu" else 22)) * jnp.pi
    call = Queued(jax.jit(jnp.copy), lambda: (x,))
    interleave({"copy": call}, 0, (10, 10))
    return 2 * x.nbytes / call.median() * 1e-9
