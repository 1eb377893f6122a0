"""Marks that tell the attention modules of a prompted stack which layers they are."""

from typing import NamedTuple

from torch import nn

from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.stack_facts import StackFacts

MARK = "_softprompt_mark"
"""Attribute of an attention module that holds its `Mark`."""


class Mark(NamedTuple):
    """The layers that a module implements, and its window."""

    sites: tuple[AttentionLayer, ...]
    """Several if layers share it, in their order."""
    window: int | None
    """Width of its sliding window; `None` if there is none."""


def mark_sites(stack: StackFacts) -> None:
    """Mark the attention modules of a stack."""
    for name, modules in stack.attentions.items():
        for module, shape in zip(modules, stack.shapes.get(name, ()), strict=True):
            sites = tuple(AttentionLayer(name, layer) for layer, other in enumerate(modules) if other is module)
            setattr(module, MARK, Mark(sites, shape.window))


def unmark_sites(stack: StackFacts) -> None:
    """Undo `mark_sites`."""
    for modules in stack.attentions.values():
        for module in modules:
            module.__dict__.pop(MARK, None)


def mark_of(module: nn.Module) -> Mark | None:
    """Return a module's mark; `None` if it has none."""
    return module.__dict__.get(MARK)
