"""Checks of a placement, and of the numbers of virtual tokens."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import LARGEST_WEIGHT
from softprompt_zoo.errors import PluginError, UnsupportedError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def check_finite(tokens: VirtualTokens, source: str) -> None:
    """Refuse start values that are not numbers, which memory that nothing was written to may hold.

    Args:
        tokens: Of the shapes that they should have.
        source: Plugin and hook, for the message.

    Raises:
        PluginError: If one is infinite or not a number.
    """
    if not all(tensor.isfinite().all() for tensor in tokens.tensors().values()):
        raise PluginError(f"{source} returned infinity or NaN; have initialize give every parameter its start value")


def check_range(tensors: Mapping[str, Tensor], dtype: torch.dtype, what: str) -> None:
    """Refuse numbers that become infinite in a model's dtype.

    Args:
        tensors: Finite ones, by name.
        dtype: The model's.
        what: What they are of, for the message.

    Raises:
        UnsupportedError: If one is too large.
    """
    largest = torch.finfo(dtype).max
    for name, tensor in tensors.items():
        found = _largest(tensor, above=largest)
        if found > largest:
            raise UnsupportedError(
                f"{what} has numbers up to {found:.3g} in {name!r}; this model computes in {dtype}, which holds up to "
                f"{largest:.3g}; load the model in a wider dtype, torch.float32 say"
            )


def _largest(tensor: Float[Tensor, "..."], above: float) -> float:
    """Return the largest number of a tensor; 0 without a look if its dtype holds none above a bound, or it has none."""
    if torch.finfo(tensor.dtype).max <= above or tensor.is_meta or not tensor.numel():
        return 0.0
    return float(tensor.detach().abs().max())


def check_placement(placement: object, count: int, source: str) -> None:
    """Check all that a hook returned but the tokens.

    Args:
        placement: What the hook returned.
        count: Virtual tokens that the prompt is to have.
        source: Plugin and hook, for the message.

    Raises:
        PluginError: If it is no `Placement`, or one with an impossible number or mask.
        UnsupportedError: If it has a mask where there is no place for one.
    """
    if not isinstance(placement, Placement):
        raise PluginError(f"{source} returned {type(placement).__name__}; expected a softprompt_zoo.Placement")
    if type(placement) is not Placement:
        _check_fields(placement, source)
    _check_number("dropout", placement.dropout, "in [0, 1)", lambda number: 0 <= number < 1, source)
    allowed = f"from 0 to {LARGEST_WEIGHT:.0f}"
    _check_number("weight", placement.weight, allowed, lambda number: 0 <= number <= LARGEST_WEIGHT, source)
    _check_mask(placement, count, source)


def _check_mask(placement: Placement, count: int, source: str) -> None:
    if placement.mask is None:
        return
    form = _form(placement.mask)
    if form[1:] != (torch.bool, count):
        raise PluginError(f"{source} returned a mask of {form[0]}; expected booleans of shape (rows, {count})")
    if placement.tokens.at_input is not None or placement.tokens.gates:
        raise UnsupportedError(
            f"{source} returned a mask for virtual tokens at {placement.tokens.where}; a mask is for keys and values "
            "that share the softmax of the text"
        )


def _form(mask: object) -> tuple[str, torch.dtype | None, int | None]:
    """Return a mask's shape and dtype in words, its dtype, and the second of its two axes."""
    if not isinstance(mask, Tensor):
        return repr(mask), None, None
    words = f"shape {tuple(mask.shape)} and dtype {mask.dtype}"
    return words, mask.dtype, mask.shape[1] if mask.ndim == 2 else None


def _check_number(name: str, value: object, allowed: str, accepts: Callable[[float], bool], source: str) -> None:
    if not isinstance(value, int | float) or not accepts(value):
        raise PluginError(f"{source} returned a {name} of {value!r}; expected a number {allowed}")


def _check_fields(placement: Placement, source: str) -> None:
    """Refuse a placement of a class of its own that says more than is read."""
    known = {field.name for field in dataclasses.fields(Placement)}
    others = [field.name for field in dataclasses.fields(placement) if field.name not in known]
    if others:
        raise PluginError(
            f"{source} returned a {type(placement).__name__} with {', '.join(map(repr, others))}, which is never used; "
            "a softprompt_zoo.Placement says all that can be done with tokens, and map_text changes the text"
        )


def check_pooling(placement: Placement, backbone: Backbone) -> None:
    """Refuse to let a head read a virtual token where there is none at a position, or no head."""
    if placement.tokens.at_input is None or not (backbone.kind.has_head_over_input and backbone.inside.task_head):
        raise UnsupportedError(
            "pools_prompt is True, which is for virtual tokens at the input embeddings of an encoder with a task head; "
            f"here the head never reads one ({backbone.model_type}, {placement.tokens.where}); leave it out"
        )
