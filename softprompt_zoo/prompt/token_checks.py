"""Checks of a placement, of the numbers of virtual tokens, and of the room that they leave for text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import LARGEST_WEIGHT
from softprompt_zoo.errors import PluginError, UnsupportedError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


class Placeable(Protocol):
    """What places virtual tokens in a model: a prompt."""

    @property
    def num_virtual_tokens(self) -> int:
        """Number of virtual tokens."""

    def place(self, backbone: Backbone) -> Placement:
        """Build the virtual tokens and place them."""


def check_finite(tokens: VirtualTokens, source: str) -> None:
    """Refuse initial values that are not finite, which uninitialized memory may contain.

    Args:
        tokens: Tokens with correct shapes.
        source: Plugin and hook, for the message.

    Raises:
        PluginError: If a value is infinite or not a number.
    """
    if not all(tensor.isfinite().all() for tensor in tokens.tensors().values()):
        raise PluginError(f"{source} returned infinity or NaN; set the initial value of every parameter in initialize")


def check_range(tensors: Mapping[str, Tensor], dtype: torch.dtype, what: str) -> None:
    """Refuse numbers that become infinite in a model's dtype.

    Args:
        tensors: Finite tensors by name.
        dtype: The model's dtype.
        what: What they belong to, for the message.

    Raises:
        UnsupportedError: If a number is too large.
    """
    largest = torch.finfo(dtype).max
    for name, tensor in tensors.items():
        found = _largest(tensor, above=largest)
        if found > largest:
            raise UnsupportedError(
                f"{what} has numbers up to {found:.3g} in {name!r}; this model computes in {dtype}, which holds up to "
                f"{largest:.3g}; load the model in a wider dtype, such as torch.float32"
            )


def _largest(tensor: Float[Tensor, "..."], above: float) -> float:
    """Return a tensor's largest number; 0, unchecked, if it is empty or its dtype holds none above a bound."""
    if torch.finfo(tensor.dtype).max <= above or tensor.is_meta or not tensor.numel():
        return 0.0
    return float(tensor.detach().abs().max())


def check_placement(placement: object, count: int, source: str) -> None:
    """Check everything that a hook returned except the tokens.

    Args:
        placement: What the hook returned.
        count: Number of virtual tokens that the prompt should have.
        source: Plugin and hook, for the message.

    Raises:
        PluginError: If it is not a `Placement`, or has an invalid number or mask.
        UnsupportedError: If it has a mask but there is no place for one.
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
    """Return a mask's shape and dtype in words, its dtype, and the size of the second of its two axes."""
    if not isinstance(mask, Tensor):
        return repr(mask), None, None
    words = f"shape {tuple(mask.shape)} and dtype {mask.dtype}"
    return words, mask.dtype, mask.shape[1] if mask.ndim == 2 else None


def _check_number(name: str, value: object, allowed: str, accepts: Callable[[float], bool], source: str) -> None:
    if not isinstance(value, int | float) or not accepts(value):
        raise PluginError(f"{source} returned a {name} of {value!r}; expected a number {allowed}")


def _check_fields(placement: Placement, source: str) -> None:
    """Refuse a placement of a custom class with fields that are not read."""
    known = {field.name for field in dataclasses.fields(Placement)}
    others = [field.name for field in dataclasses.fields(placement) if field.name not in known]
    if others:
        raise PluginError(
            f"{source} returned a {type(placement).__name__} with {', '.join(map(repr, others))}, which is never used; "
            "a softprompt_zoo.Placement covers all that can be done with tokens, and map_text changes the text"
        )


def refuse_tasks(tasks: int | None, source: str) -> None:
    """Refuse tasks of a prompt that reads the rows' text: its tokens are never separated by task.

    Args:
        tasks: How many it has, `None` for none.
        source: Plugin and the hook that asks for the text, for the message.

    Raises:
        UnsupportedError: If it has any.
    """
    if tasks is not None:
        raise UnsupportedError(
            f"{source} asks for the rows' text, but num_tasks is {tasks}: tokens made from the text cannot have tasks; "
            "use a method without num_tasks, add a prompt for each task, and choose each row's with prompts=[…]"
        )


def check_pooling(placement: Placement, backbone: Backbone) -> None:
    """Refuse to let a head read a virtual token if none has a position, or there is no head."""
    if placement.tokens.at_input is None or not (backbone.kind.has_head_over_input and backbone.inside.task_head):
        raise UnsupportedError(
            "pools_prompt is True, which is for virtual tokens at the input embeddings of an encoder with a task head; "
            f"here the head never reads one ({backbone.model_type}, {placement.tokens.where}); leave it out"
        )


@torch.no_grad()
def check_shared_room(prompts: Mapping[str, Placeable], backbone: Backbone) -> None:
    """Refuse prompts that together leave no room for text.

    Args:
        prompts: The prompts that a row should see, by name.
        backbone: Sizes of the model.

    Raises:
        UnsupportedError: If they take all of the model's positions, or more.
    """
    bound = backbone.max_positions
    if bound is None or sum(prompt.num_virtual_tokens for prompt in prompts.values()) < bound:
        return
    count = _positions([prompt.place(backbone).tokens for prompt in prompts.values()], backbone)
    if count >= bound:
        raise UnsupportedError(
            f"the virtual tokens of {', '.join(map(repr, prompts))} are {count}, which leaves no room for text in the "
            f"model's {bound} positions; choose fewer prompts, or shorter ones"
        )


@torch.no_grad()
def check_ranges(prompts: Mapping[str, Placeable], backbone: Backbone, where: str) -> None:
    """Refuse prompts whose numbers the model's dtype cannot hold.

    Args:
        prompts: The prompts by name.
        backbone: Sizes of the model.
        where: Where they are, for the message.

    Raises:
        UnsupportedError: If it cannot hold them.
    """
    for name, prompt in prompts.items():
        check_range(prompt.place(backbone).tokens.tensors(), backbone.dtype, f"prompt {name!r} {where}")


def _positions(placed: Sequence[VirtualTokens], backbone: Backbone) -> int:
    """Count the positions that tokens take up; gated ones take up none."""
    at_input = sum([tokens.count for tokens in placed if tokens.at_input is not None])
    at_site = sum([tokens.length(backbone.kind.site) for tokens in placed])
    return max(at_input, at_site) if backbone.kind.has_two_texts else at_input + at_site
