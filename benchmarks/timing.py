"""How programs are timed. On a GPU: several calls at a time, each on an empty cache."""

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class Program:
    """Something to time: what `queue` adds to `beside`, which empties the cache."""

    queue: Callable[[], Any]
    beside: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    milliseconds: list[float] = dataclasses.field(default_factory=list)
    calls: int = 1

    def time(self) -> None:
        """One sample, of as many calls as make the host's share small."""
        self.milliseconds.append((self._time(self.queue) - self._time(self.beside)) / self.calls)

    def warm_up(self) -> None:
        self._time(self.beside)
        self._time(self.queue)
        self.calls = int(np.clip(20 / self._time(self.queue), 1, 10))

    def _time(self, queue: Callable[[], Any]) -> float:
        start = time.perf_counter()
        for _ in range(self.calls):
            results = None  # before the next call allocates its own
            results = queue()
        self.wait(results)
        return 1e3 * (time.perf_counter() - start)


class Flush:
    """Reads a buffer larger than the cache. (One that was written would be written back later.)"""

    def __init__(self) -> None:
        megabytes = 256 if jax.default_backend() == "gpu" else 4
        self.buffer = jnp.ones(megabytes << 18)
        self.read = jax.jit(jnp.sum)

    def __call__(self) -> jax.Array:
        return self.read(self.buffer)


def copy_bandwidth() -> float:
    """TB/s read plus written, for want of a better number than XLA's copy."""
    x = jnp.ones(1 << (28 if jax.default_backend() == "gpu" else 22)) * jnp.pi
    copy = jax.jit(jnp.copy)
    program = Program(lambda: copy(x), lambda: None)
    program.warm_up()
    for _ in range(10):
        program.time()
    return 2 * x.nbytes / np.median(program.milliseconds) * 1e-9


# ---- On the CPU: one call at a time, every program once a round ---------------------------


@dataclasses.dataclass
class Call:
    """Something to time: `run(*prepare())`, of which the preparation does not count."""

    run: Callable[..., Any]
    prepare: Callable[[], tuple[Any, ...]]
    milliseconds: list[float] = dataclasses.field(default_factory=list)
    calls: int = 1
    most: int = 1 << 30

    def once(self) -> float:
        operands = jax.block_until_ready(self.prepare())
        start = time.perf_counter()
        results = jax.block_until_ready(self.run(*operands))
        milliseconds = 1e3 * (time.perf_counter() - start)
        del results  # before the next program allocates its own
        return milliseconds

    def warm_up(self) -> None:
        """Finds how many calls make a sample: one cannot be told from noise if it is short."""
        self.once()
        milliseconds = self.once()
        self.calls = int(np.clip(10 / milliseconds, 1 if milliseconds > 100 else 3, 10))
        if milliseconds > 1000:
            self.most = 3  # samples; it would take the time of all the others

    def sample(self) -> None:
        # The median within a sample as well: the first call finds the cache of other programs.
        if len(self.milliseconds) < self.most:
            self.milliseconds.append(float(np.median([self.once() for _ in range(self.calls)])))


class Pass(Call):
    """One whose clock is its own: `run` returns milliseconds."""

    def once(self) -> float:
        return self.run(*self.prepare())


def interleave(calls: dict[str, Call], seconds: float, rounds: tuple[int, int]) -> None:
    """Rounds until the time is spent, of at least and at most so many, shuffled each."""
    shuffle = random.Random(0)
    names = list(calls)
    for call in calls.values():
        call.warm_up()
    end = time.monotonic() + seconds
    for i in range(rounds[1]):
        if i >= rounds[0] and time.monotonic() > end:
            break
        shuffle.shuffle(names)
        for name in names:
            calls[name].sample()
