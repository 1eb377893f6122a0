"""Finds out whether a stack that has an argument for a cache of keys and values uses it: an encoder may discard it."""

from typing import Any

from softprompt_zoo.sites.reach.cache_probe import run_on_view
from softprompt_zoo.sites.reach.reach import Look
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.trial.built_alike import built, remember

_FOUND: dict[Any, bool] = {}


def uses_cache(stack: Stack) -> bool:
    """Run a stack without its weights on a cache that records whether it is used. The stack is not changed.

    Args:
        stack: The only stack of a model.

    Returns:
        Whether it passes keys and values to a cache that it is given, and so also reads what is in it.
    """
    if not stack.cache_argument:
        return False
    key = stack.embedding.weight.shape, built(stack.module)  # type: ignore[union-attr]
    if key in _FOUND:
        return _FOUND[key]
    look = Look(stack.module, stack.embedding, stack.cache_argument, is_alone=True, is_idle=True)
    found = bool(run_on_view(look))
    if key[1] is not None:
        remember(_FOUND, key, found)
    return found
