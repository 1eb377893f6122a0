"""Positions of the text: counted from the attention mask, row by row, and moved after the prompt."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.backbone.traits import CACHE_ARGUMENTS
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Bool, Float, Int, Shaped
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.position_table import Past, check_budget, shift_to
from softprompt_zoo.sites.stack import Stack


def given_cache(arguments: Mapping[str, Any]) -> Cache | None:
    """Return the cache in the arguments of a forward, under either name; `None` if there is none."""
    for name in CACHE_ARGUMENTS:
        cache = arguments.get(name)
        if isinstance(cache, Cache):
            return cache
    return None


def past_length(cache: Any) -> Past:
    """Return how many text positions a cache holds; a tensor for a static cache."""
    length: int | Tensor = 0 if cache is None else cache.get_seq_length()
    return length


def is_beginning(past: Past) -> bool:
    """Return whether a text is known to start in this call; unknown with a static cache."""
    return isinstance(past, int) and past == 0


def plain_mask(kwargs: Mapping[str, Any]) -> Shaped[Tensor, "rows key_length"] | None:
    """Return the 2-D attention mask in a stack's arguments; `None` if there is none or it has another form."""
    mask = kwargs.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def text_positions(
    kwargs: dict[str, Any], length: int, past: Past, device: torch.device
) -> Int[Tensor, "... #rows {length}"]:
    """Return the position of each text token within the text.

    Args:
        kwargs: The stack's arguments. Not changed.
        length: Text tokens of this call.
        past: Text tokens in the cache.
        device: Where the positions are needed.

    Returns:
        The caller's `position_ids`, with a leading axis if the model counts in several ways; else counted over the 2-D
        attention mask, so that padding on either side changes nothing; else counted from `past`.
    """
    given: Tensor | None = kwargs.get("position_ids")
    if given is not None:
        return given
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:].to(device)
    return (torch.arange(length, device=device) + past)[None]


def own_positions(
    stack: Stack, kwargs: dict[str, Any], length: int, past: Past, device: torch.device
) -> Int[Tensor, "... #rows {length}"]:
    """Return the position that the model itself would give each text token without left padding.

    For rows without virtual tokens. A hole in the mask takes up a position if it does in the model; left padding never
    does, so that queries are rotated as in the row alone.

    Args:
        stack: The stack.
        kwargs: Its arguments. Not changed.
        length: Text tokens of this call.
        past: Text tokens in the cache.
        device: Where the positions are needed.

    Returns:
        Positions from 0; the caller's `position_ids` if there are any.
    """
    if kwargs.get("position_ids") is not None:
        return text_positions(kwargs, length, past, device)
    by_ids = _counted_over_ids(stack, kwargs.get("input_ids"), past)
    if by_ids is not None:
        return by_ids.to(device)
    mask = plain_mask(kwargs)
    if mask is None or _counts_over_mask(stack):
        return text_positions(kwargs, length, past, device)
    columns = torch.arange(mask.shape[1], device=mask.device)
    first = mask.long().argmax(dim=1, keepdim=True)
    return (columns - first).clamp(min=0)[:, -length:].to(device)


def _counted_over_ids(
    stack: Stack, ids: Int[Tensor, "rows length"] | None, past: Past
) -> Int[Tensor, "rows length"] | None:
    """Count like RoBERTa, whose padding has its own position; `None` if a stack does not count its ids."""
    if not stack.position_start or ids is None or not is_beginning(past):
        return None
    seen = ids != stack.position_start - 1
    return (seen.cumsum(dim=1) - 1).masked_fill(~seen, -1)


def _counts_over_mask(stack: Stack) -> bool:
    """Return whether a stack itself counts its positions over the attention mask, like OPT."""
    forward = part_of(type(stack.position_table), "forward")
    return forward is not None and "attention_mask" in inspect.signature(forward).parameters


def check_packing(stack: Stack, kwargs: dict[str, Any], length: int) -> None:
    """Refuse a row of several texts that the model would not separate.

    transformers detects the texts by restarting positions if there is neither a mask nor a cache; otherwise each text
    silently sees those before it. A prompt that enters through the cache counts as a cache. Not checked while
    compiling, when values are unknown.

    Args:
        stack: A causal stack.
        kwargs: Its arguments.
        length: Text tokens of this call.

    Raises:
        UnsupportedError: If positions restart in a call with a 2-D mask or a cache, or if prompts enter through one.
    """
    given = kwargs.get("position_ids")
    if not isinstance(given, Tensor) or given.ndim != 2 or length < 2 or torch.compiler.is_compiling():
        return
    _check_restarts(stack, kwargs, given[:, 1:] <= given[:, :-1])


def _check_restarts(stack: Stack, kwargs: dict[str, Any], restarts: Bool[Tensor, "rows places"]) -> None:
    mask = plain_mask(kwargs)
    if mask is not None:
        seen = mask[:, -restarts.shape[1] - 1 :].to(restarts.device).bool()
        restarts, there_is = restarts & seen[:, 1:] & seen[:, :-1], "an attention_mask"
    elif kwargs.get("attention_mask") is None and _has_cache(stack, kwargs):
        there_is = "a cache"
    else:
        return
    if restarts.any():
        row, place = restarts.nonzero()[0].tolist()
        raise UnsupportedError(
            f"position_ids restart at row {row}, token {place + 1}, so the row holds several texts, but with "
            f"{there_is} the model lets each of them see those before it; {stack.reach.texts_apart}"
        )


def _has_cache(stack: Stack, kwargs: dict[str, Any]) -> bool:
    """Return whether a forward has or creates a cache."""
    given = kwargs.get("use_cache")
    makes_one = getattr(stack.module.config, "use_cache", False) if given is None else given
    return bool(stack.reach.uses_cache or makes_one or given_cache(kwargs) is not None)


def check_start(stack: Stack, kwargs: dict[str, Any], past: Past) -> None:
    """Refuse positions that do not begin at the model's own start, where virtual tokens begin.

    `generate` counts RoBERTa's from 0, the model itself from after its padding index. Not checked while compiling,
    when values are unknown.

    Args:
        stack: A stack that takes `position_ids`.
        kwargs: Its arguments, including `position_ids`.
        past: Text tokens in the cache.

    Raises:
        UnsupportedError: If given positions begin before the model's own.
    """
    if not (stack.position_start and stack.is_causal and is_beginning(past)) or torch.compiler.is_compiling():
        return
    first = int(_of_text(kwargs, stack.position_start).min())
    if first < stack.position_start:
        raise UnsupportedError(
            f"position_ids begin at {first}, but {type(stack.module).__name__} itself counts from "
            f"{stack.position_start}, and so do its prompts; leave position_ids out. generate passes such "
            "positions, so call the model itself for one token at a time instead"
        )


def _of_text(kwargs: dict[str, Any], padding: int) -> Int[Tensor, "..."]:
    """Return the given positions with those of padding replaced."""
    given: Tensor = kwargs["position_ids"]
    mask = plain_mask(kwargs)
    if mask is None or mask.shape != given.shape:
        return given
    return given.masked_fill(mask.to(given.device) == 0, padding)


def embeddings_of(
    stack: Stack, kwargs: dict[str, Any], text: Shaped[Tensor, "rows length ..."]
) -> Float[Tensor, "rows length hidden"]:
    """Return the embeddings of a stack's text."""
    return text if kwargs.get("inputs_embeds") is not None else stack.embed(text)


def move_text(
    stack: Stack,
    call: Call,
    counts: list[int],
    kwargs: dict[str, Any],
    text: Shaped[Tensor, "rows length ..."],
    past: Past,
) -> tuple[dict[str, Any], Int[Tensor, "#rows length"]]:
    """Move the text after virtual tokens.

    Args:
        stack: The stack.
        call: The prompts.
        counts: Number of virtual tokens of each combination.
        kwargs: The stack's arguments. Not changed.
        text: The text among them.
        past: Text tokens in its cache.

    Returns:
        The arguments and the text's positions, counted token by token if the model counts in several ways.

    Raises:
        ValueError: If the text does not fit after them.
        UnsupportedError: If the given positions begin before the model's own.
    """
    length = text.shape[1]
    if stack.position_table is not None and isinstance(past, int):
        check_budget(stack, past + length + max(counts), max(counts))
    positions = text_positions(kwargs, length, past, text.device)
    virtual = call.per_row(counts, text.device)
    if min(counts) == 0:
        positions = torch.where(virtual == 0, own_positions(stack, kwargs, length, past, text.device), positions)
    if not stack.takes_position_ids:
        positions = positions + virtual
        return _with_learned_positions(
            stack, kwargs, text, stack.reach.counted(past, max(counts)), positions
        ), positions
    if kwargs.get("position_ids") is not None:
        check_start(stack, kwargs, past)
    elif stack.position_table is not None:
        positions = positions + stack.position_start
    positions = positions + virtual
    kwargs = {**kwargs, "position_ids": positions}
    if positions.ndim == 2:
        return kwargs, positions
    counted = text_positions({**kwargs, "position_ids": None}, length, past, text.device)
    return kwargs, counted + virtual


def _with_learned_positions(
    stack: Stack,
    kwargs: dict[str, Any],
    text: Shaped[Tensor, "rows length ..."],
    seen: Past,
    positions: Int[Tensor, "#rows length"],
) -> dict[str, Any]:
    """Move the text of a stack that counts its positions itself; without a table, there is nothing to move."""
    if stack.position_table is None:
        return kwargs
    embeddings = shift_to(stack, embeddings_of(stack, kwargs, text), seen, positions)
    return {**kwargs, "input_ids": None, "inputs_embeds": embeddings}
