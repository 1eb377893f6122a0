"""Finds which forward of a prompted model is running when one of its stacks is entered."""

import functools
import inspect
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn

from softprompt_zoo.backbone.replaced_forward import is_prompted
from softprompt_zoo.errors import UnsupportedError


def check_entry(prompts: Any) -> None:
    """Refuse to run a stack for a model whose own forward was called directly, bypassing the prompted one.

    A stack may be called by itself. But a method taken from the model before the prompt was attached would call it
    without the trained head, the first label and the methods' own losses.

    Args:
        prompts: The model's prompts.

    Raises:
        UnsupportedError: If the model's forward is running, and the prompted one is not.
    """
    if torch.compiler.is_compiling():
        return
    kind = None
    for code, owner in _running(prompts):
        plain, prompted = _codes(owner)
        if code in prompted:
            return
        kind = owner if code in plain else kind
    if kind is not None:
        raise UnsupportedError(
            f"the forward of {kind.__name__} was called without its prompts, so its trained head, first label and own "
            "loss would be left out; call the model, or take model.forward (for torch.compile, say) after attaching "
            "the prompt"
        )


def _running(prompts: Any) -> Iterator[tuple[CodeType, Any]]:
    """Yield the running methods of the prompts' model, innermost first, each with the model's class."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if isinstance(owner, nn.Module) and owner._modules.get("prompts") is prompts:
            yield frame.f_code, type(owner)
        frame = frame.f_back


@functools.cache
def _codes(kind: Any) -> tuple[set[CodeType], set[CodeType]]:
    """Return the code of a class's forwards without prompts, and with them."""
    functions = _forwards(kind)
    plain = {inspect.unwrap(function).__code__ for function in functions if not is_prompted(function)}
    return plain, {function.__code__ for function in functions if is_prompted(function)}


def _forwards(kind: Any) -> list[Any]:
    """List the forwards that a class and its base classes define."""
    return [vars(owner)["forward"] for owner in kind.__mro__ if "forward" in vars(owner)]
