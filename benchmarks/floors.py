"""The least that a pass over the logits costs on a CPU, on as many threads as XLA takes.

NumPy reads, copies and takes exponentials at the speed of memory, and lets go of the interpreter
meanwhile.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

KINDS = ("read", "copy", "copy to fresh memory", "exponential")


def num_threads() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


class Floor:
    """Two buffers that were touched before, as large as the logits, and passes over them."""

    def __init__(self, num_bytes: int) -> None:
        self.source = np.full(num_bytes // 4, 0.5, np.float32)
        self.target = np.full(num_bytes // 4, 0.5, np.float32)
        self.threads = ThreadPoolExecutor(num_threads())

    def milliseconds(self, kind: str, num_bytes: int) -> float:
        source, target = self.source[: num_bytes // 4], self.target[: num_bytes // 4]
        start = time.perf_counter()
        match kind:
            case "read":
                self._spread(np.bitwise_or.reduce, source[: len(source) // 2 * 2].view(np.uint64))
            case "copy":
                self._spread(np.copyto, target, source)
            case "exponential":
                self._spread(np.exp, source, target)
            case "copy to fresh memory":  # of the operating system, in huge pages; and given back
                fresh = np.empty_like(source)
                self._spread(np.copyto, fresh, source)
                del fresh
        return 1e3 * (time.perf_counter() - start)

    def _spread(self, work: Callable[..., object], *arrays: np.ndarray) -> None:
        parts = [np.array_split(array, num_threads()) for array in arrays]
        list(self.threads.map(work, *parts))
