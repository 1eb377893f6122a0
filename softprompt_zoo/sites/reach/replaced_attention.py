"""State for stacks that do not hand keywords down to their attention, which is off transformers' interface.

The stack's own forward runs on a view of the stack, made for one call, in which the attention modules are replaced
by the functions of `own_attention`. Nothing is written on modules.
"""

import functools
from typing import Any

from softprompt_zoo.backbone.backbone import Stack
from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.backbone.replaced_forward import check_view, note_prompted, rebind, restore
from softprompt_zoo.backbone.traits import carried_name
from softprompt_zoo.sites.reach.own_attention import FUNCTIONS
from softprompt_zoo.sites.reach.views import view
from softprompt_zoo.sites.state import CallState, Capture


def adopt(stack: Stack) -> None:
    """Let a stack with attention of its own take its state; others are left alone."""
    module: Any = stack.module
    if stack.is_carried and not hasattr(type(module), "_softprompt_carried"):
        base: Any = type(module)
        module.__class__ = _carrying_class(base)
        rebind(module, _carrying_function)


def release(stack: Stack) -> None:
    """Undo `adopt`."""
    module: Any = stack.module
    if "_softprompt_carried" in type(module).__dict__:
        restore(module)
    module.__class__ = type(module).__dict__.get("_softprompt_carried", type(module))


def run(module: Any, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a stack's own forward with the state that is among its arguments.

    Args:
        module: The stack's module.
        forward: Its own forward, which takes it as `self`.
        args: Positional arguments.
        kwargs: Keywords; the state is taken out.

    Returns:
        The stack's output.
    """
    state = kwargs.pop(STATE_KEYWORD, None)
    return forward(module if state is None else _view_of_stack(module, state), *args, **kwargs)


@functools.cache
def _carrying_class(base: Any) -> Any:
    """Make the subclass that an adopted stack gets; it answers to the name of its base."""

    def reduce(self: Any, protocol: Any) -> Any:
        return _rebuild, (base,), self.__dict__.copy()

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return base(*args, **kwargs) if args or kwargs else base.__new__(cls)

    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(
        base.__name__,
        (base,),
        {
            **names,
            "forward": _carrying_function(base.forward),
            "__new__": new,
            "__reduce_ex__": reduce,
            "_softprompt_carried": base,
        },
    )


def _carrying_function(function: Any) -> Any:
    """Make the forward that takes the state, of the class or of a function that took its place on a module."""

    @functools.wraps(function)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, function, args, kwargs)

    return note_prompted(forward)


def _rebuild(base: Any) -> Any:
    cls = _carrying_class(base)
    return cls.__new__(cls)


def _view_of_stack(module: Any, state: CallState | Capture) -> Any:
    layers = []
    for index, layer in enumerate(module.encoder.layer):
        for part in (layer, layer.attention):
            check_view(part)
        name: Any = carried_name(layer)
        attend = functools.partial(FUNCTIONS[name], getattr(layer.attention, name), state, index)
        layers.append(view(layer, attention=view(layer.attention, **{name: attend})))
    check_view(module.encoder)
    return view(module, encoder=view(module.encoder, layer=layers))
