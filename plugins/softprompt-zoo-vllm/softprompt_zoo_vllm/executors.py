"""How a bank is read: immediately if it is a local folder, in threads if reading has to wait for a store."""

import concurrent.futures
from collections.abc import Callable
from typing import Any, Protocol

THREADS = 8


class Executor(Protocol):
    """Runs calls."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> concurrent.futures.Future[Any]:
        """Run a call, now or soon."""


class AtOnce:
    """Runs a call immediately when it is submitted."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> concurrent.futures.Future[Any]:
        """Run a call; the returned future is done."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


def executor_for(is_local: bool) -> Executor:
    """Return the executor for reading a bank.

    Args:
        is_local: Whether it is a local folder.
    """
    return AtOnce() if is_local else concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="soft-prompts")
