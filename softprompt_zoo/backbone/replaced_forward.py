"""A forward set on a module itself, overriding its class's: accelerate's hooks, torch.compile, patched methods.

Such a forward ultimately calls a method bound to the module. That method is replaced by the prompted one, inside its
wrappers, which keep working: hooks move tensors, compiled code is recompiled.
"""

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from torch import nn

from softprompt_zoo.errors import UnsupportedError

Wrap = Callable[[Any], Any]
"""Maps a function that takes the module as `self` to the prompted one."""

_PROMPTED: "weakref.WeakSet[Any]" = weakref.WeakSet()


class _Place(NamedTuple):
    """A place where one callable holds another."""

    value: Any
    write: Callable[[Any], object]


def note_prompted(function: Any) -> Any:
    """Mark a function as a prompted forward, whose `__wrapped__` is the one without prompts; return it."""
    _PROMPTED.add(function)
    return function


def is_replaced(module: nn.Module) -> bool:
    """Return whether a module has a forward set on itself."""
    return "forward" in module.__dict__


def check_forward(module: nn.Module) -> None:
    """Refuse a forward set on a module that prompts cannot be inserted into.

    Args:
        module: The module. Not changed.

    Raises:
        UnsupportedError: If it does not end in a method of this module, or takes no keywords although its class does.
    """
    if not is_replaced(module):
        return
    places = _innermost(module)
    kind: Any = type(module)
    if not places:
        raise UnsupportedError(
            f"model.forward of this {kind.__name__} was replaced by {_describe(module.__dict__['forward'])}, which "
            "holds no method of this very model (a deep copy may hold the original's), so prompts would be ignored; "
            "delete model.forward, attach the prompt, and then replace it again"
        )
    if _takes_keywords(kind.forward):
        for place in places:
            _check_keywords(kind, getattr(place.value, "__func__", place.value))


def _check_keywords(kind: type, function: Any) -> None:
    """Refuse a function that cannot pass prompts on."""
    if not _takes_keywords(function):
        raise UnsupportedError(
            f"model.forward of this {kind.__name__} was replaced by {_describe(function)}, which does not accept "
            "additional keywords, so prompts could not be passed on; let it accept **kwargs and pass them on to the "
            "model inside, or delete model.forward"
        )


def rebind(module: nn.Module, wrap: Wrap) -> None:
    """Make a forward set on the module end in the prompted one; a module without one is left alone.

    Args:
        module: The module, of a class that has the prompted forward. Changed in place.
        wrap: Makes the prompted function from the existing one.

    Raises:
        UnsupportedError: As `check_forward`. Nothing is changed.
    """
    if not is_replaced(module):
        return
    check_forward(module)
    places = [place for place in _innermost(module) if not is_prompted(place.value)]
    _write(module, places, lambda method: MethodType(wrap(method.__func__), module))


def restore(module: nn.Module) -> None:
    """Undo `rebind`, and take the prompted forward out of any later wrappers."""
    if is_replaced(module):
        places = [place for place in _innermost(module) if is_prompted(place.value)]
        _write(module, places, _without_prompts)


def bound_to_view(module: nn.Module, view: Any) -> dict[str, Any]:
    """Return the attributes that a view of a module needs for its forward to run on the view.

    Args:
        module: The module. Not changed.
        view: Its view.

    Returns:
        The attributes bound to the module, rebound to the view.
    """
    if not is_replaced(module):
        return {}
    rebound = {name: _rebound(value, module, view) for name, value in module.__dict__.items()}
    return {name: value for name, value in rebound.items() if value is not module.__dict__[name]}


def check_view(module: nn.Module) -> None:
    """Refuse a module whose views cannot be called, because its forward would run on the module itself.

    Raises:
        UnsupportedError: If its forward was replaced by something other than a method of it or an accelerate hook.
    """
    if is_replaced(module) and "forward" not in bound_to_view(module, object()):
        raise UnsupportedError(
            f"the forward of {type(module).__name__}, a module inside the model, was replaced by "
            f"{_describe(module.__dict__['forward'])}, so prompts would be ignored; delete that module's forward, or "
            "replace the whole model's"
        )


def _describe(value: Any) -> str:
    return f"{getattr(value, '__qualname__', None) or type(value).__qualname__!s}"


def _takes_keywords(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def is_prompted(value: Any) -> bool:
    """Return whether a callable is a prompted forward, bound or not."""
    function = value.__func__ if isinstance(value, MethodType) else value
    return isinstance(function, FunctionType) and function in _PROMPTED


def _without_prompts(value: Any) -> Any:
    if isinstance(value, MethodType):
        return MethodType(value.__func__.__wrapped__, value.__self__)  # type: ignore[attr-defined]
    return value.__wrapped__


def _write(module: nn.Module, places: list[_Place], change: Callable[[Any], Any]) -> None:
    values = [place.value for place in places]
    kept = [place for place in _entries(module.__dict__) if any(place.value == value for value in values)]
    for place in [*places, *kept]:  # accelerate stores the forward that it hooks on the module
        place.write(change(place.value))


def _innermost(module: nn.Module) -> list[_Place]:
    """Find where the module's own forward holds the methods it ends in: bound to the module, or prompted."""
    own = module.__dict__
    return _reached(module, _Place(own["forward"], functools.partial(own.__setitem__, "forward")), {})


def _reached(module: nn.Module, place: _Place, seen: dict[int, list[_Place]]) -> list[_Place]:
    value = place.value
    if is_prompted(value):
        return [place] if _ends_in(module, value) or isinstance(value, FunctionType) else []
    if id(value) not in seen:
        seen[id(value)] = []  # callables may hold each other
        seen[id(value)] = [found for kept in _kept(module, value) for found in _reached(module, kept, seen)]
    return seen[id(value)] or ([place] if _ends_in(module, value) else [])


def _ends_in(module: nn.Module, value: Any) -> bool:
    """Return whether a callable is a method bound to the module."""
    return isinstance(value, MethodType) and value.__self__ is module


def _kept(module: nn.Module, value: Any) -> Iterator[_Place]:
    """List what a callable may call."""
    if value is module:
        yield from _own_methods(module)
    elif isinstance(value, MethodType):
        yield from _kept(module, value.__func__)
        if value.__self__ is not module:
            yield from _kept(module, value.__self__)
    elif isinstance(value, FunctionType):
        yield from _of_function(module, value)
    elif isinstance(value, functools.partial):
        yield from _of_partial(value)
    elif not isinstance(value, type | nn.Module):
        yield from _entries(getattr(value, "__dict__", {}))


def _own_methods(module: nn.Module) -> Iterator[_Place]:
    kind: Any = type(module)
    for place in _entries(module.__dict__):
        method = place.value
        if isinstance(method, MethodType) and (method.__func__ is _plain_forward(kind) or is_prompted(method)):
            yield place


def _of_partial(value: Any) -> Iterator[_Place]:
    yield _Place(value.func, functools.partial(_set_part, value, -1))
    yield from (_Place(each, functools.partial(_set_part, value, i)) for i, each in enumerate(value.args))
    yield from _entries(value.keywords)
    yield from _entries(value.__dict__)


def _of_function(module: nn.Module, function: FunctionType) -> Iterator[_Place]:
    if _is_of_class(type(module), function):
        return  # it holds nothing of the module
    for cell in function.__closure__ or ():
        yield from _of_cell(cell)
    yield from _entries(function.__dict__)
    yield from _entries(function.__kwdefaults__ or {})


def _is_of_class(kind: type, function: FunctionType) -> bool:
    """Return whether a function is a method of a class or of one of its base classes."""
    return any(vars(owner).get(function.__name__) is function for owner in kind.__mro__)


def _of_cell(cell: Any) -> Iterator[_Place]:
    with contextlib.suppress(ValueError):  # not assigned yet
        if callable(cell.cell_contents):
            yield _Place(cell.cell_contents, functools.partial(setattr, cell, "cell_contents"))


def _entries(kept: Any) -> Iterator[_Place]:
    for name, value in list(kept.items()):
        if callable(value):
            yield _Place(value, functools.partial(kept.__setitem__, name))


def _plain_forward(kind: Any) -> Any:
    """Return the forward of a class, or, if it is prompted, that of the class without prompts."""
    function = kind.forward
    return function.__wrapped__ if is_prompted(function) else function


def _set_part(partial: Any, index: int, value: Any) -> None:
    """Change a partial in place: an argument of it, or, at -1, its function."""
    function, *args = [value if i == index else each for i, each in enumerate((partial.func, *partial.args), start=-1)]
    partial.__setstate__((function, tuple(args), partial.keywords, partial.__dict__))


def _rebound(value: Any, module: nn.Module, view: Any) -> Any:
    if _ends_in(module, value):
        return MethodType(value.__func__, view)
    return _rebound_partial(value, module, view) if isinstance(value, functools.partial) else value


def _rebound_partial(value: Any, module: nn.Module, view: Any) -> Any:
    """Return a partial of the module or one of its methods, rebound to the view; any other unchanged."""
    function = _rebound(value.func, module, view)
    args = [view if each is module else each for each in value.args]
    if function is value.func and all(own is each for own, each in zip(args, value.args, strict=True)):
        return value
    return functools.partial(function, *args, **value.keywords)
