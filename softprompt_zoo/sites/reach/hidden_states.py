"""What an attention module reads, for branches that want it: models hand an attention function no hidden states.

A hook in front of each attention module puts them into the state of the call that goes in. It is there only while the
model has a prompt that wants them. The state is copied, not changed: it is shared by all layers, and recomputed ones
see it again.
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
    """Put the hooks on a stack's attention modules, or take them off.

    Args:
        stack: The stack; its modules are changed.
        is_wanted: Whether a prompt wants hidden states.
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
