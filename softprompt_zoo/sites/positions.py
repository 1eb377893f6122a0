"""Where text is: positions from the attention mask, row by row, moved after the prompt."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.backbone.traits import CACHE_ARGUMENTS
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float, Int, Shaped
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.stack import Stack

Past = int | Int[Tensor, ""]
"""Tokens in a cache; a static one counts them on the device."""


def given_cache(arguments: Mapping[str, Any]) -> Cache | None:
    """Return the cache among the arguments of a forward, under either name; `None` if there is none."""
    for name in CACHE_ARGUMENTS:
        cache = arguments.get(name)
        if isinstance(cache, Cache):
            return cache
    return None


def past_length(cache: Any) -> Past:
    """Return how many text positions a cache holds; a static cache answers with a tensor."""
    length: int | Tensor = 0 if cache is None else cache.get_seq_length()
    return length


def text_positions(
    kwargs: dict[str, Any], length: int, past: Past, device: torch.device
) -> Int[Tensor, "... #rows {length}"]:
    """Return the position of each text token among the text.

    Args:
        kwargs: The stack's arguments. Not changed.
        length: Text tokens of this call.
        past: Text tokens in the cache.
        device: Where the positions are needed.

    Returns:
        The caller's `position_ids`, with an axis in front where the model counts in several ways; else counted over the
        2-D attention mask, so that padding on either side changes nothing; else counted from `past`.
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
    """Return the position that the model itself gives each text token, were it not for padding on the left.

    For rows without virtual tokens in front. A hole in the mask takes up a position where it does in the model; padding
    on the left never does, so that queries are rotated as in the row alone.

    Args:
        stack: The stack.
        kwargs: Its arguments. Not changed.
        length: Text tokens of this call.
        past: Text tokens in the cache.
        device: Where the positions are needed.

    Returns:
        Those, from 0; the caller's `position_ids` if there are any.
    """
    if kwargs.get("position_ids") is not None:
        return text_positions(kwargs, length, past, device)
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if stack.position_start and ids is not None and isinstance(past, int) and not past:  # RoBERTa counts its ids
        seen = ids != stack.position_start - 1
        counted: Tensor = (seen.cumsum(dim=1) - 1).masked_fill(~seen, -1)
        return counted.to(device)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or _counts_over_mask(stack):
        return text_positions(kwargs, length, past, device)
    columns = torch.arange(mask.shape[1], device=mask.device)
    first = mask.long().argmax(dim=1, keepdim=True)
    return (columns - first).clamp(min=0)[:, -length:].to(device)


def _counts_over_mask(stack: Stack) -> bool:
    """Return whether a stack counts its positions over the attention mask itself, as OPT does."""
    forward = part_of(type(stack.position_table), "forward")
    return forward is not None and "attention_mask" in inspect.signature(forward).parameters


def check_packing(stack: Stack, kwargs: dict[str, Any], length: int) -> None:
    """Refuse a row of several texts that the model would not tell apart.

    transformers finds the texts in positions that restart, if there is neither a mask nor a cache; else each
    text silently sees those before it. A prompt that enters through the cache is such a cache. Not checked while
    compiling, where values are unknown.

    Args:
        stack: A causal stack.
        kwargs: Its arguments.
        length: Text tokens of this call.

    Raises:
        UnsupportedError: If positions restart in a call with a 2-D mask or a cache, or where prompts enter through one.
    """
    given = kwargs.get("position_ids")
    if not isinstance(given, Tensor) or given.ndim != 2 or length < 2 or torch.compiler.is_compiling():
        return
    mask = kwargs.get("attention_mask")
    restarts = given[:, 1:] <= given[:, :-1]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        seen = mask[:, -length:].to(given.device).bool()
        restarts, beside = restarts & seen[:, 1:] & seen[:, :-1], "an attention_mask"
    elif mask is None and _has_cache(stack, kwargs):
        beside = "a cache"
    else:
        return
    if restarts.any():
        row, place = restarts.nonzero()[0].tolist()
        raise UnsupportedError(
            f"position_ids restart at row {row}, token {place + 1}, so the row holds several texts, but with "
            f"{beside} the model lets each of them see those before it; {stack.reach.texts_apart}"
        )


def _has_cache(stack: Stack, kwargs: dict[str, Any]) -> bool:
    """Return whether a forward has a cache, or makes one."""
    given = kwargs.get("use_cache")
    makes_one = getattr(stack.module.config, "use_cache", False) if given is None else given
    return bool(stack.reach.uses_cache or makes_one or given_cache(kwargs) is not None)


def check_start(stack: Stack, kwargs: dict[str, Any], past: Past) -> None:
    """Refuse positions that begin elsewhere than the model's own, where virtual tokens begin.

    `generate` counts RoBERTa's from 0, the model itself from after its padding index. Not checked while compiling,
    where values are unknown.

    Args:
        stack: A stack that takes `position_ids`.
        kwargs: Its arguments.
        past: Text tokens in the cache.

    Raises:
        UnsupportedError: If given positions begin before the model's own.
    """
    given, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if not stack.position_start or not isinstance(given, Tensor) or not isinstance(past, int) or past:
        return
    if torch.compiler.is_compiling() or not stack.is_causal:
        return
    if isinstance(mask, Tensor) and mask.shape == given.shape:
        given = given.masked_fill(mask.to(given.device) == 0, stack.position_start)
    if given.min() < stack.position_start:
        raise UnsupportedError(
            f"position_ids begin at {int(given.min())}, but {type(stack.module).__name__} itself counts from "
            f"{stack.position_start}, and so do its prompts; leave position_ids out. generate gives such ones, so call "
            "the model itself for one token after the other"
        )


def check_budget(stack: Stack, total: int, virtual: int) -> None:
    """Refuse a text that no longer fits after its prompt.

    Args:
        stack: The stack, with its table of learned positions.
        total: Positions needed, virtual ones included.
        virtual: Virtual positions among them.

    Raises:
        ValueError: If the table is too short.
    """
    if stack.position_table is None:
        return
    offset = part_of(stack.position_table, "offset", stack.position_start)
    budget = stack.position_table.num_embeddings - offset
    if total <= budget:
        return
    if virtual >= budget:
        raise ValueError(
            f"{virtual} virtual tokens in front of a row leave no room for text in the model's {budget} positions; "
            "give the row fewer prompts, or shorter ones"
        )
    raise ValueError(
        f"the text needs {total - virtual} positions after {virtual} virtual tokens, but the model has {budget}; "
        f"shorten the text to {budget - virtual} tokens"
    )


def shift_learned_positions(
    stack: Stack,
    embeddings: Float[Tensor, "rows length hidden"],
    past: Past,
    positions: Int[Tensor, "#rows length"],
) -> Float[Tensor, "rows length hidden"]:
    """Move text that counts its own positions: add the difference of two rows of the position table.

    BART's decoder takes no `position_ids`. A change of the embeddings needs no state on its modules.

    Args:
        stack: A stack with a position table and without `position_ids`.
        embeddings: Of the text. Not changed.
        past: Tokens in the cache as the stack sees it, from which it will count.
        positions: Where the text shall stand, from 0.

    Returns:
        Other embeddings.
    """
    table: Any = stack.position_table
    offset = part_of(table, "offset", 0)
    counted = torch.arange(embeddings.shape[1], device=embeddings.device)[None] + past
    wanted = functional.embedding(positions + offset, table.weight)
    difference = wanted - functional.embedding(counted + offset, table.weight)
    return embeddings + difference / stack.embeddings_scale


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
    """Let the text start after virtual tokens.

    Args:
        stack: The stack.
        call: The prompts.
        counts: How many virtual tokens each combination has there.
        kwargs: The stack's arguments. Not changed.
        text: What it reads of them.
        past: Tokens of text in its cache.

    Returns:
        The arguments and the text's positions, counted token by token where the model counts in several ways.

    Raises:
        ValueError: If the text does not fit after them.
        UnsupportedError: If the positions that were given begin before the model's own.
    """
    length = text.shape[1]
    if stack.position_table is not None and isinstance(past, int):
        check_budget(stack, past + length + max(counts), max(counts))
    positions = text_positions(kwargs, length, past, text.device)
    if min(counts) == 0:
        own = own_positions(stack, kwargs, length, past, text.device)
        positions = torch.where(call.per_row(counts, text.device) == 0, own, positions)
    if stack.takes_position_ids:
        is_given = kwargs.get("position_ids") is not None
        if is_given:
            check_start(stack, kwargs, past)
        start = 0 if is_given or stack.position_table is None else stack.position_start
        positions = positions + start + call.per_row(counts, text.device)
        kwargs = {**kwargs, "position_ids": positions}
        if positions.ndim == 2:
            return kwargs, positions
        counted = text_positions({**kwargs, "position_ids": None}, length, past, text.device)
        return kwargs, counted + call.per_row(counts, text.device)
    positions = positions + call.per_row(counts, text.device)
    if stack.position_table is not None:
        seen = stack.reach.counted(past, max(counts))
        embeddings = shift_learned_positions(stack, embeddings_of(stack, kwargs, text), seen, positions)
        kwargs = {**kwargs, "input_ids": None, "inputs_embeds": embeddings}
    return kwargs, positions
