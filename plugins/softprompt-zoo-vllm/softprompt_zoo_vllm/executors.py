"""Where a bank is read: at once for a folder of this machine, in threads for one that has to be waited for."""

import concurrent.futures
from collections.abc import Callable
from typing import Any, Protocol

THREADS = 8


class Executor(Protocol):
    """Runs calls."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> concurrent.futures.Future[Any]:
        """Run a call, now or soon."""


class AtOnce:
    """Runs a call while it is submitted."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> concurrent.futures.Future[Any]:
        """Run a call; the future is done."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def executor_for(is_local: bool) -> Executor:
    """Return what runs a bank's reads.

    Args:
        is_local: Whether it is a folder of this machine.
    """
    return AtOnce() if is_local else concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="soft-prompts")
