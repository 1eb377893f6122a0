"""The context of a forward: the `generate` that runs it, and whether the model's prompts are disabled.

Both apply to one thread or task only.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from softprompt_zoo.sites.call import DecodingState
from softprompt_zoo.sites.request import Request


@dataclasses.dataclass
class Generation:
    """A `generate` that is running."""

    prompts: object
    """The model's prompts."""
    request: Request
    """What it was called with."""
    is_checked: bool = True
    """Whether this was checked against the rows of its text."""
    decoding: DecodingState | None = None
    """The prompts as they were built; the first forward creates it, and all others continue with it."""
    text_length: int | None = None
    """Tokens of the text that it continues; `None` if no prompt needs to know."""


CURRENT: contextvars.ContextVar[Generation | None] = contextvars.ContextVar("softprompt_generation", default=None)


def running(prompts: object) -> Generation | None:
    """Return the `generate` that is running a model in this context.

    Args:
        prompts: The model's prompts.

    Returns:
        What is known about it; `None` outside of one, or while compiling, when a context variable cannot be read.
    """
    generation = None if torch.compiler.is_compiling() else CURRENT.get()
    return generation if generation is not None and generation.prompts is prompts else None


@dataclasses.dataclass(eq=False)
class _Entered:
    """A context that was entered."""

    prompts: object
    is_open: bool = True
    """Whether nobody has left it yet."""


DISABLED: contextvars.ContextVar[tuple[_Entered, ...]] = contextvars.ContextVar("softprompt_disabled", default=())


class _Here:
    """The prompts that are disabled in this context, for a compiled forward, which cannot read a context variable.

    Its guards look attributes up again at every call, and so recompile when the answer changes. The answer differs
    between tasks, just as a `threading.local` has a different `__dict__` in each thread.
    """

    __slots__ = ()

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return {"prompts": _disabled()}

    def __getattr__(self, name: str) -> Any:
        if name == "prompts":
            return _disabled()
        raise AttributeError(name)


_HERE = _Here()


@contextlib.contextmanager
def disable(prompts: object) -> Iterator[None]:
    """Disable the prompts of a model within the context; may be nested, and left in another thread or task.

    Args:
        prompts: The model's prompts.

    Yields:
        Nothing.
    """
    entered = _Entered(prompts)
    token = DISABLED.set((*(each for each in DISABLED.get() if each.is_open), entered))
    try:
        yield
    finally:
        # Remove one entry rather than restore the state before: contexts may be left in any order.
        left = tuple(each for each in DISABLED.get() if each is not entered)
        try:
            DISABLED.reset(token)
        except ValueError:  # it was entered in another context, where nothing can be set from here
            entered.is_open = False
        DISABLED.set(left)


def is_disabled(prompts: object) -> bool:
    """Return whether the prompts of a model are disabled in this context."""
    if torch.compiler.is_compiling():
        return prompts in _HERE.prompts
    return bool(DISABLED.get()) and prompts in _disabled()


def _disabled() -> tuple[object, ...]:
    return tuple([entered.prompts for entered in DISABLED.get() if entered.is_open])
