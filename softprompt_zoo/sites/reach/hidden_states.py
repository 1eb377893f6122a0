"""The input of an attention module, for branches that need it: models pass no hidden states to attention functions.

A pre-hook on each attention module adds them to the state of the call that is passed in. It is there only while the
model has a prompt that needs them. The state is copied, not changed, as it is shared by all layers, and recomputed
layers see it again.
"""

import dataclasses
from typing import Any

from torch import nn

from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.sites.stack_facts import StackFacts
from softprompt_zoo.sites.state import CallState

_HANDLE = "_softprompt_hidden"
"""Attribute of an attention module that holds the hook's handle."""


def show_hidden(stack: StackFacts, is_wanted: bool) -> None:
    """Add the hooks to a stack's attention modules, or remove them.

    Args:
        stack: The stack; its modules are changed.
        is_wanted: Whether a prompt needs hidden states.
    """
    modules: dict[int, Any] = {id(module): module for own in stack.attentions.values() for module in own}
    for module in modules.values():
        handle = module.__dict__.pop(_HANDLE, None)
        if handle is not None:
            handle.remove()
        if is_wanted:
            module.__dict__[_HANDLE] = module.register_forward_pre_hook(_note_hidden, with_kwargs=True)


def _note_hidden(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    state = kwargs.get(STATE_KEYWORD)
    if not isinstance(state, CallState) or not state.branches:
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    return args, {**kwargs, STATE_KEYWORD: dataclasses.replace(state, hidden=hidden)}
