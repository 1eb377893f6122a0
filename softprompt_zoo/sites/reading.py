"""Prompts that read the rows' text or change its embeddings, in the stack that reads it.

Which tokens are a row's text is decided when the text starts. What was made from it then stays with its cache, like the
text's own keys and values; later tokens are not part of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Bool, Float, Int, Shaped
from softprompt_zoo.sites.call import ATTRIBUTE, Call, DecodingState
from softprompt_zoo.sites.position_table import Past
from softprompt_zoo.sites.positions import embeddings_of, given_cache, plain_mask, text_positions
from softprompt_zoo.sites.selection import Part, times_repeated
from softprompt_zoo.sites.separate_parts import separate_rows
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.text_states import LastStates
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.text import Text


def read_text(
    stack: Stack, call: Call, kwargs: dict[str, Any], text: Shaped[Tensor, "rows length ..."], past: Past
) -> tuple[Call, dict[str, Any], Shaped[Tensor, "rows length ..."]]:
    """Place the prompts that are made from the text, and let prompts change its embeddings.

    Args:
        stack: The stack that reads the text.
        call: The prompts, for its rows.
        kwargs: Its arguments. Not changed.
        text: The text among them.
        past: Text tokens in its cache.

    Returns:
        The call with every prompt placed, the arguments and the text.

    Raises:
        UnsupportedError: If it is unclear what the text is.
        ValueError: If a row has no text.
    """
    state = _begun(call, kwargs, past)
    call = dataclasses.replace(call, decoding=None if call.decoding is None else state)
    call.trace.read = read = state.read
    unread = [name for name in call.readers if name not in read]
    if not unread and not call.maps:
        return placed(call, read, text.shape[0], text.device), kwargs, text
    seen = _text(stack, call, state, kwargs, text, past)
    for name in unread:
        _check_beginning(name, seen, past)
        read[name] = call.readers[name](seen)
    if call.maps:
        text = _mapped(call, seen)
        kwargs = {**kwargs, "input_ids": None, "inputs_embeds": text}
    return placed(call, read, text.shape[0], text.device), kwargs, text


def placed(call: Call, read: Mapping[str, Sequence[Placement]], rows: int, device: torch.device) -> Call:
    """Place the results of reading a text.

    Args:
        call: The prompts.
        read: By name, the placements: one for each row of the text, or one for all.
        rows: Rows of the batch; beams repeat each row of the text in place.
        device: The device of the batch.

    Returns:
        The call; rows with different tokens see separate combinations.

    Raises:
        UnsupportedError: If one of the prompts has not read the text.
    """
    if not call.readers:
        return call
    missing = next((name for name in call.readers if name not in read), None)
    if missing is not None:
        raise _unseen(missing)
    placements = dict(call.placements)
    of_rows: dict[Part, Sequence[Placement]] = {}
    for part in call.selection.parts:
        if part.name in call.readers:
            made = read[part.name]
            placements[part] = made[0]
            of_rows |= {part: made} if len(made) > 1 else {}
    selection = call.selection
    if of_rows:
        selection, placements = separate_rows(selection, placements, of_rows, rows, device)
    share_softmax = all([placement.tokens.share_softmax for placement in placements.values()])
    return dataclasses.replace(
        call, selection=selection, placements=placements, readers={}, share_softmax=share_softmax
    )


def _begun(call: Call, kwargs: dict[str, Any], past: Past) -> DecodingState:
    """Return the state of the text, which started earlier or starts here."""
    cache = given_cache(kwargs)
    if call.decoding is None:
        _check_compiled(call, cache, past)
        return DecodingState(None)
    if call.decoding.text_mask is None and not isinstance(past, int) and int(past):
        # A static cache counts on the device, so it was not checked before.
        found: DecodingState | None = getattr(cache, ATTRIBUTE, None)
        return call.decoding if found is None else found
    return call.decoding


def _check_compiled(call: Call, cache: Any, past: Past) -> None:
    """Refuse a compiled forward that continues a text started elsewhere."""
    if cache is None or not call.readers or (isinstance(past, int) and past == 0):
        return
    raise UnsupportedError(
        f"prompt {next(iter(call.readers))!r} is made from each row's text, but this forward is compiled and has a "
        "cache, whose text cannot be determined; do not compile it, or pass no cache"
    )


def _text(
    stack: Stack,
    call: Call,
    state: DecodingState,
    kwargs: dict[str, Any],
    text: Shaped[Tensor, "rows length ..."],
    past: Past,
) -> Text:
    embeddings = embeddings_of(stack, kwargs, text)
    length = text.shape[1]
    if state.text_mask is None:
        mask = _own_mask(call, kwargs, text) if _is_beginning(past) else _nothing(text)
        state.text_mask = mask
    else:
        mask = _later(state.text_mask, text, past)
    positions = _positions(kwargs, length, past, text.device)
    return Text(stack.name, embeddings, mask, positions, LastStates(stack, embeddings, mask, positions))


def _is_beginning(past: Past) -> bool:
    return not past if isinstance(past, int) or not torch.compiler.is_compiling() else True


def _nothing(text: Shaped[Tensor, "rows length ..."]) -> Bool[Tensor, "rows length"]:
    return torch.zeros(text.shape[:2], dtype=torch.bool, device=text.device)


def _own_mask(
    call: Call, kwargs: dict[str, Any], text: Shaped[Tensor, "rows length ..."]
) -> Bool[Tensor, "rows length"]:
    """Return which positions are the text when it starts."""
    length = text.shape[1]
    mask = plain_mask(kwargs)
    own = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    if mask is not None:
        own = mask[:, -length:].to(text.device).bool()
    elif kwargs.get("attention_mask") is not None and call.text_mask is None and call.readers:
        raise UnsupportedError(
            f"prompt {next(iter(call.readers))!r} is made from each row's text, but the attention_mask does not have "
            "the shape (rows, length), so it is unclear what the text is; pass text_mask=, true for text"
        )
    if call.text_mask is None:
        return own
    if call.text_mask.shape != own.shape:
        raise ValueError(
            f"text_mask has shape {tuple(call.text_mask.shape)} for {own.shape[0]} rows of {length} tokens; give one "
            "entry for each token, like attention_mask"
        )
    return own & call.text_mask.to(text.device).bool()


def _later(
    mask: Bool[Tensor, "begun length"], text: Shaped[Tensor, "rows now ..."], past: Past
) -> Bool[Tensor, "rows now"]:
    """Return which of this forward's tokens belong to a text that started earlier."""
    columns = torch.arange(text.shape[1], device=mask.device) + past
    rows = mask.repeat_interleave(times_repeated(mask.shape[0], text.shape[0]), dim=0)
    return rows[:, columns.clamp(max=mask.shape[1] - 1)] & (columns < mask.shape[1])


def _positions(kwargs: dict[str, Any], length: int, past: Past, device: torch.device) -> Int[Tensor, "#rows {length}"]:
    """Return the position of each token in its row, not counting padding."""
    if plain_mask(kwargs) is not None:
        return text_positions({**kwargs, "position_ids": None}, length, past, device)
    given = kwargs.get("position_ids")
    if isinstance(given, Tensor) and given.ndim == 2 and given.shape[1] == length:
        return given
    return text_positions({}, length, past, device)


def _check_beginning(name: str, text: Text, past: Past) -> None:
    """Refuse a text that started without the prompt, and rows with no text or several texts."""
    if torch.compiler.is_compiling():
        return
    if not _is_beginning(past):
        raise _unseen(name)
    empty = (~text.mask.any(dim=1)).nonzero()
    if len(empty):
        raise ValueError(
            f"row {int(empty[0])} has no text from which to make prompt {name!r}: every token is padding or has a "
            "label; set the labels of the prompt's text to -100, or pass text_mask=, true for text"
        )
    restarts = _restarts(text)
    if restarts.any():
        row, place = restarts.nonzero()[0].tolist()
        raise UnsupportedError(
            f"position_ids restart at row {row}, token {place + 1}: the row holds several texts, but prompt {name!r} "
            "is made from a single text per row; give each text its own row"
        )


def _restarts(text: Text) -> Bool[Tensor, "rows places"]:
    """Return which tokens of the text, from the second on, do not have a later position than all before them."""
    positions = text.positions.expand(text.mask.shape)
    before = positions.masked_fill(~text.mask, -1).cummax(dim=1).values
    return text.mask[:, 1:] & (positions[:, 1:] <= before[:, :-1])


def _unseen(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"prompt {name!r} is made from each row's text when the text starts, but this text started without it; "
        "start the text with the prompt, and continue with the cache that this returns"
    )


def _mapped(call: Call, text: Text) -> Float[Tensor, "rows length hidden"]:
    """Apply the changes by the prompts of each combination to the embeddings of its rows."""
    rows = call.selection.rows
    result = text.embeddings
    for index, parts in enumerate(call.selection.combinations):
        changed = text
        for part in parts:
            if part.name in call.maps:
                changed = dataclasses.replace(changed, embeddings=call.maps[part.name](changed))
        if changed is text:
            continue
        if rows is None:
            return changed.embeddings
        result = torch.where((rows.to(result.device) == index)[:, None, None], changed.embeddings, result)
    return result
