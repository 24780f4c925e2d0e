"""Bounds on the CPU time and the memory of reading a file."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded(size: int, seconds: float, memory: int) -> Iterator[None]:
    """Fails if the block takes `seconds` of CPU time, or `memory` bytes. `size`: of the file."""
    tracemalloc.start()
    began = time.thread_time()
    try:
        yield
    finally:
        took, (_, peak) = time.thread_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert took < seconds, f"{took:.3f} s of CPU for {size} bytes"
    assert peak < memory, f"{peak} bytes of memory for {size} bytes"
