"""Which models are used without their prompts: within a context, and in no other thread or task."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator

import torch


class _Thread(threading.local):
    def __init__(self) -> None:
        self.hosts: tuple[object, ...] = ()


_CONTEXT: contextvars.ContextVar[tuple[object, ...]] = contextvars.ContextVar("softprompt_disabled", default=())
_THREAD = _Thread()
"""The same once more: a compiled forward cannot read a context variable, and compiles anew when this changes."""


@contextlib.contextmanager
def disable(host: object) -> Iterator[None]:
    """Disable the prompts of a model within the context; may be nested.

    Args:
        host: The model's prompts.

    Yields:
        Nothing.
    """
    _CONTEXT.set((*_CONTEXT.get(), host))
    _THREAD.hosts = (*_THREAD.hosts, host)
    try:
        yield
    finally:
        # One entry less, rather than the state before: contexts need not be left in the order they were entered.
        _CONTEXT.set(_without(_CONTEXT.get(), host))
        _THREAD.hosts = _without(_THREAD.hosts, host)


def is_disabled(host: object) -> bool:
    """Say whether the prompts of a model are disabled where this is called."""
    return host in (_THREAD.hosts if torch.compiler.is_compiling() else _CONTEXT.get())


def _without(hosts: tuple[object, ...], host: object) -> tuple[object, ...]:
    place = hosts.index(host)
    return hosts[:place] + hosts[place + 1 :]
