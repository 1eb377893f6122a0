"""A snapshot of a model, to restore it if a change fails."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def restored_on_error(model: nn.Module, overwritten: Collection[nn.Parameter] = ()) -> Iterator[None]:
    """Restore a model's modules, settings and values bit for bit if the block fails.

    Args:
        model: Any model. Its tensors may be replaced within the block.
        overwritten: The parameters whose values may be changed in place; these are copied.
    """
    modules = [(module, type(module), _contents(module)) for module in model.modules()]
    parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    numbers = [(parameter, parameter.detach().clone()) for parameter in overwritten]
    try:
        yield
    except BaseException:
        _each(_put_back, modules)
        _each(_put_data_back, parameters)
        _each(_put_numbers_back, numbers)
        raise


def _each(put_back: Callable[..., None], remembered: Iterable[tuple[Any, ...]]) -> None:
    for arguments in remembered:
        put_back(*arguments)


def _contents(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return a module's attributes, each with a copy of a container's content; hook handles refer to the original."""
    attributes = vars(module).items()
    return {name: (value, value.copy() if isinstance(value, dict | list | set) else None) for name, value in attributes}


def _put_back(module: nn.Module, kind: type, contents: dict[str, tuple[Any, Any]]) -> None:
    module.__class__ = kind
    vars(module).clear()
    for name, (value, copied) in contents.items():
        if isinstance(value, list):
            value[:] = copied
        elif isinstance(value, dict | set):
            value.clear()
            value.update(copied)
        vars(module)[name] = value


def _put_data_back(parameter: nn.Parameter, data: Tensor, required_grad: bool) -> None:
    if parameter.data_ptr() != data.data_ptr():
        parameter.data = data
    parameter.requires_grad_(required_grad)


@torch.no_grad()
def _put_numbers_back(parameter: nn.Parameter, numbers: Tensor) -> None:
    parameter.copy_(numbers)
