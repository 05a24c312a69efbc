"""The C library's allocator, from which XLA has the memory of every step on a CPU."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, for the next step to take.

    glibc hands large blocks back to the system and asks for them anew, and the system clears and
    maps every page of them again: of the spoken words' training on two cores a sixth of the time.
    To be called before there are threads. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # No block is mapped by itself,
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)  # nothing is cut off the end of the heap,
        mallopt(_ARENA_MAX, 1)  # and all threads share the one heap that large blocks fit into.
