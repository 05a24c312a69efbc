"""The floors of a CPU: what one pass over the logits costs, whoever makes it (`floor.cc`)."""

import ctypes
import os
import pathlib
import subprocess
import tempfile

import numpy as np


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
    pointer, size, threads = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.floor_read.argtypes = [pointer, size, threads, pointer]
    library.floor_copy.argtypes = [pointer, pointer, size, threads]
    library.floor_exponential.argtypes = [pointer, pointer, size, threads]
    library.floor_fresh_copy.argtypes = [pointer, size, threads]
    for kind in ("read", "copy", "exponential", "fresh_copy"):
        getattr(library, f"floor_{kind}").restype = ctypes.c_double
    return library


class Floor:
    """Two buffers, as large as the logits, and passes over them."""

    def __init__(self, num_bytes: int) -> None:
        self.library = load()
        self.source = np.full(num_bytes // 4, 0.5, np.float32)  # both are touched here
        self.target = np.full(num_bytes // 4, 0.5, np.float32)
        self.sink = ctypes.c_uint64()

    def milliseconds(self, kind: str, num_bytes: int) -> float:
        source, target = self.source.ctypes.data, self.target.ctypes.data
        match kind:
            case "read":
                sink = ctypes.byref(self.sink)
                return self.library.floor_read(source, num_bytes, num_threads(), sink)
            case "copy":
                return self.library.floor_copy(source, target, num_bytes, num_threads())
            case "exponential":
                return self.library.floor_exponential(source, target, num_bytes, num_threads())
            case "fresh copy":
                return self.library.floor_fresh_copy(source, num_bytes, num_threads())
        raise ValueError(kind)
