"""The leading layers of a stack, with every kind of layer among them: a faster test of what it does with a prompt."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.sites.reach.views import view
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.trial.twin import twins

LEAST = 2
"""Minimum number of layers: what the first attends to shows in what the second reads."""
SMALL_PARAMETER = 4096
"""Size up to which all numbers of a parameter are inspected; of a larger one, only the first row."""
_INTERNAL = frozenset(vars(nn.Module()))


def leading(stack: Stack) -> Stack | None:
    """Make a stack of the leading layers, in new modules around the same tensors.

    Args:
        stack: The stack. Not changed.

    Returns:
        A stack with just enough of the first layers to include each kind; `None` if that is all of them, or if its
        layers are not in one list.
    """
    found = _list_of_layers(stack)
    if found is None:
        return None
    path, layers = found
    count = _first_of_each_kind(stack, path, len(layers))
    return _leading(stack, path, count) if count < len(layers) else None


def _leading(stack: Stack, path: str, count: int) -> Stack:
    """Make a stack of the first `count` layers at the path."""
    shorter = _cut(stack.module, path.split("."), count)
    attentions = {site: modules[:count] for site, modules in stack.attentions.items()}
    made = twins(shorter, itertools.chain.from_iterable(attentions.values()))
    return dataclasses.replace(
        stack,
        module=made[id(shorter)],
        attentions={site: tuple(made[id(module)] for module in modules) for site, modules in attentions.items()},
        shapes={site: shapes[:count] for site, shapes in stack.shapes.items()},
    )


def _list_of_layers(stack: Stack) -> tuple[str, nn.ModuleList] | None:
    """Find the list of modules that each contain one attention of every site, in order."""
    sites = [*stack.attentions.values()]
    for path, layers in stack.module.named_modules():
        if isinstance(layers, nn.ModuleList) and sites and all(_are_apart(layers, modules) for modules in sites):
            return path, layers
    return None


def _are_apart(layers: nn.ModuleList, attentions: Sequence[nn.Module]) -> bool:
    """Return whether each layer contains the attention module with its index, and no other."""
    ids = [id(module) for module in attentions]
    if len(layers) != len(ids):
        return False
    inside = [{id(module) for module in layer.modules()} for layer in layers]
    return all(found.intersection(ids) == {own} for found, own in zip(inside, ids, strict=True))


def _cut(module: Any, path: Sequence[str], count: int) -> Any:
    """Return a view of a module in which the list at the path has only `count` entries."""
    children = dict(module._modules)
    if not path:
        return view(module, _modules=dict([*children.items()][:count]))
    return view(module, _modules={**children, path[0]: _cut(children[path[0]], path[1:], count)})


def _first_of_each_kind(stack: Stack, path: str, count: int) -> int:
    """Return how many of the first layers are needed to include each kind, at least `LEAST`."""
    described = _described(stack, path, count)
    kinds, last = list[dict[Any, Any]](), 0
    for layer, kind in enumerate(_without_numbers(described)):
        if not any(_are_alike(kind, other) for other in kinds):
            kinds.append(kind)
            last = layer
    return max(LEAST, last + 1)


def _without_numbers(described: Sequence[Mapping[Any, Any]]) -> list[dict[Any, Any]]:
    """Leave out whatever is just the number of each layer."""
    numbers = {key for key in described[0] if _counts([each.get(key) for each in described])}
    return [{key: value for key, value in each.items() if key not in numbers} for each in described]


def _described(stack: Stack, path: str, count: int) -> list[dict[Any, Any]]:
    """Describe each layer: its parts, and its entries in lists of the config or next to the layers."""
    lists = _lists_of_modules(stack, path, count)
    told = _lists([*stack.module.config.to_dict().values(), *stack.shapes.values()], count)
    described: list[dict[Any, Any]] = []
    for layer in range(count):
        described.append({("told", place): each[layer] for place, each in enumerate(told)})
        for place, modules in enumerate(lists):
            described[layer] |= {(place, *key): value for key, value in _describe(modules[layer])}
    return described


def _lists_of_modules(stack: Stack, path: str, length: int) -> list[nn.ModuleList]:
    """Return the lists of a given length in a stack, including that at the path, but none inside its layers."""
    outside = [module for name, module in stack.module.named_modules() if not name.startswith(f"{path}.")]
    return [module for module in outside if isinstance(module, nn.ModuleList) and len(module) == length]


def _lists(values: Sequence[Any], length: int) -> list[Sequence[Any]]:
    """Return the values that are lists of a given length."""
    return [value for value in values if isinstance(value, list | tuple) and len(value) == length]


def _describe(layer: nn.Module) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """List the parts of a layer: its modules, their tensors, and their other attributes."""
    for name, module in layer.named_modules():
        yield (name,), type(module)
        for key, value in itertools.chain(_parameters(module), _written_on(module)):
            yield (name, key), value


def _parameters(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """List the shapes and dtypes of a module's own parameters, and whether they are zero."""
    for key, parameter in module._parameters.items():
        yield key, None if parameter is None else (*_form(parameter), _is_zero(parameter))


def _written_on(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """List a module's buffers and attributes."""
    for key, value in {**module._buffers, **module.__dict__}.items():
        if key not in _INTERNAL and not isinstance(value, nn.Module):
            yield key, value


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, type(tensor)


def _is_zero(parameter: Tensor) -> bool:
    """Return whether a parameter is zero, like the gate of a part that has no effect."""
    is_small = parameter.numel() <= SMALL_PARAMETER
    return not bool((parameter if is_small else parameter[(0,) * (parameter.ndim - 1)]).any())


def _counts(values: Sequence[Any]) -> bool:
    """Return whether an attribute is the number of its layer."""
    return all(type(value) is int and value == values[0] + place for place, value in enumerate(values))


def _are_alike(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and _form(one) == _form(other) and torch.equal(one, other)
    return type(one) is type(other) and bool(_parts(one) == _parts(other))


def _parts(value: Any) -> Any:
    """Return the part of a value to compare: a partial only equals itself."""
    return (value.func, value.args, value.keywords) if isinstance(value, functools.partial) else value
