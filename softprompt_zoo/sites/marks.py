"""What the attention modules of a prompted stack are told of themselves: which layers they are, and their window."""

from typing import Any

from torch import nn

from softprompt_zoo.backbone import Site, Stack
from softprompt_zoo.sites.state import CallState, Capture

_SITES = "_softprompt_sites"
_WINDOW = "_softprompt_window"


def mark_sites(stack: Stack) -> None:
    """Tell each attention module which site it is, or which ones if layers share it, and its window."""
    for name, modules in stack.attentions.items():
        for module, shape in zip(modules, stack.shapes.get(name, ()), strict=True):
            setattr(module, _SITES, tuple(Site(name, layer) for layer, other in enumerate(modules) if other is module))
            setattr(module, _WINDOW, shape.window)


def unmark_sites(stack: Stack) -> None:
    """Undo `mark_sites`."""
    for modules in stack.attentions.values():
        for module in modules:
            module.__dict__.pop(_SITES, None)
            module.__dict__.pop(_WINDOW, None)


def marked_sites(module: nn.Module) -> tuple[Site, ...]:
    """Return the sites of a module, in the order of its layers; none if it is not marked."""
    return getattr(module, _SITES, ())


def marked_window(module: nn.Module) -> int | None:
    """Return the width of a module's sliding window; `None` without one."""
    return getattr(module, _WINDOW, None)


def calling_site(module: Any, state: CallState | Capture) -> Site | None:
    """Return which layer calls: a module that layers share is called by them in turn. `None` if it is not marked."""
    sites = marked_sites(module)
    if len(sites) < 2:
        return sites[0] if sites else None
    visit = state.visits.get(id(module), 0)
    state.visits[id(module)] = visit + 1
    return sites[visit]
