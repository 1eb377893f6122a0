"""Views of modules with some attributes replaced, made for one call: they carry state through code that passes none."""

from typing import Any

from torch import nn

from softprompt_zoo.backbone.replaced_forward import bound_to_view, check_view
from softprompt_zoo.sites.call import CALL_KEYWORD, Call


def view(module: nn.Module, **replaced: Any) -> Any:
    """Make a view of a module.

    Args:
        module: The module. Not changed.
        **replaced: Attributes, including children, that the view has instead of the module's.

    Returns:
        An object of the module's class that shares everything else with the module.
    """
    made = object.__new__(type(module))
    # An instance attribute takes precedence over a child module.
    made.__dict__ = {**module.__dict__, **bound_to_view(module, made), **replaced}
    return made


def with_call(model: Any, module: nn.Module, call: Call) -> Any:
    """Pass the call to a module inside a model that does not forward keywords.

    Args:
        model: The object that the model's forward is to take as `self`. Not changed.
        module: The module of a stack.
        call: The prompts of this forward.

    Returns:
        A view of the model; the model itself if it is the module.
    """
    path = next((name for name, child in model.named_modules() if child is module), "")
    return _with_child(model, path.split("."), _WithCall(module, call)) if path else model


def _with_child(module: Any, path: list[str], child: Any) -> Any:
    """Return a view of a module with a submodule replaced."""
    name, *rest = path
    if not rest:
        return view(module, **{name: child})
    between = getattr(module, name)
    check_view(between)
    return view(module, **{name: _with_child(between, rest, child)})


class _WithCall:
    """Replaces a stack that must get the call as an argument."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self._module = module
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._module(*args, **{**kwargs, CALL_KEYWORD: self._call})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
