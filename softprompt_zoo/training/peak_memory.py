"""Measure peak memory."""

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator

import torch

EVERY = 0.01
"""Seconds between two samples. Our choice."""


class Peak:
    """Peak memory above the level at the start, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak memory of the block.

    On a CUDA device, this is what torch allocates there, to the byte; otherwise, it is what the process holds in main
    memory, sampled every 10 ms, so that a shorter peak may be missed. Freed memory is returned to the system first.
    """
    gc.collect()
    with _on_accelerator() if torch.cuda.is_available() else _in_main_memory() as peak:
        yield peak


@contextlib.contextmanager
def _on_accelerator() -> Iterator[Peak]:
    peak, start = Peak(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    yield peak
    peak.bytes = torch.cuda.max_memory_allocated() - start


@contextlib.contextmanager
def _in_main_memory() -> Iterator[Peak]:
    import psutil

    _give_back()
    held = psutil.Process().memory_info
    peak, start, is_over = Peak(), held().rss, threading.Event()

    def watch() -> None:
        while not is_over.wait(EVERY):
            peak.bytes = max(peak.bytes, held().rss - start)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()
        peak.bytes = max(peak.bytes, held().rss - start)


def _give_back() -> None:
    """Return freed memory to the system, if the C library can; otherwise, it would hide new allocations."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
