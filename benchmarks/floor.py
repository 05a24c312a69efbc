"""The floors of a CPU: what one pass over the logits costs, whoever makes it (`floor.cc`)."""

import ctypes
import os
import pathlib
import subprocess
import tempfile

import numpy as np

KINDS = ("read", "copy", "exponential", "fresh copy")


def num_threads() -> int:
    """As many as XLA takes: the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def load() -> ctypes.CDLL:
    """Compiled for this very machine, by the system's compiler."""
    source = pathlib.Path(__file__).with_name("floor.cc")
    flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
    with tempfile.TemporaryDirectory() as directory:
        target = os.path.join(directory, "floor.so")
        subprocess.run([os.environ.get("CXX", "c++"), *flags, source, "-o", target], check=True)
        library = ctypes.CDLL(target)  # stays mapped without its file
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.floor_pass.argtypes = [ctypes.c_int, pointer, pointer, size, ctypes.c_int, pointer]
    library.floor_pass.restype = ctypes.c_double
    return library


class Floor:
    """Two buffers, as large as the logits, and passes over them."""

    def __init__(self, num_bytes: int) -> None:
        self.library = load()
        self.source = np.full(num_bytes // 4, 0.5, np.float32)  # both are touched here
        self.target = np.full(num_bytes // 4, 0.5, np.float32)
        self.sink = ctypes.c_uint64()

    def milliseconds(self, kind: str, num_bytes: int) -> float:
        return self.library.floor_pass(
            KINDS.index(kind),
            self.source.ctypes.data,
            self.target.ctypes.data,
            num_bytes,
            num_threads(),
            ctypes.byref(self.sink),
        )
