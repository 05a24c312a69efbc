"""How a GPU's programs are timed from the host: several calls at a time, each on an empty cache."""

import dataclasses
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
    """Fills a buffer larger than the cache."""

    def __init__(self) -> None:
        megabytes = 256 if jax.default_backend() == "gpu" else 4
        self.buffer = jnp.ones(megabytes << 18)
        self.fill = jax.jit(lambda x: x + 1, donate_argnums=0)

    def __call__(self) -> jax.Array:
        self.buffer = self.fill(self.buffer)
        return self.buffer


def copy_bandwidth() -> float:
    """TB/s read plus written, for want of a better number than XLA's copy."""
    x = jnp.ones(1 << (28 if jax.default_backend() == "gpu" else 22)) * jnp.pi
    copy = jax.jit(jnp.copy)
    program = Program(lambda: copy(x), lambda: None)
    program.warm_up()
    for _ in range(10):
        program.time()
    return 2 * x.nbytes / np.median(program.milliseconds) * 1e-9
