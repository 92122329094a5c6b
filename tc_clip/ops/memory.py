"""Memory of the process on CPUs: what one step frees is used by the next."""

import ctypes
import os
import sys
from collections.abc import Callable

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # names of glibc's <malloc.h>, without the M_ before them
# Variables of the C library: if a user has set one, nothing is changed.
_SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors, and return whether it does.

    By default the C library returns large blocks to the system and requests them again a moment later, and the system
    clears every page: a million page faults in a training step on a CPU (docs/benchmarks.md has the cost). Only glibc
    has a setting for it, for the main thread; other C libraries are left as they are.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SET_BY_USER):
        return False
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Return kept but unused memory to the system, between two kinds of work."""
    malloc_trim = _of_libc("malloc_trim") if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def _of_libc(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, or None if it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None)
