"""Objects that are a module but for some attributes, made for one call: how state reaches code that hands none on."""

from typing import Any

from torch import nn


def view(module: nn.Module, **replaced: Any) -> Any:
    """Make a view of a module.

    Args:
        module: The module. Not changed.
        **replaced: Attributes, children among them, that the view has instead of the module's.

    Returns:
        An object of the module's class that shares everything else with it.
    """
    made = object.__new__(type(module))
    made.__dict__ = {**module.__dict__, **replaced}  # an attribute of the instance stands before a child module
    return made
