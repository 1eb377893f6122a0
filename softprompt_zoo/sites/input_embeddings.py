"""Virtual tokens as real positions of a bidirectional stack.

Each row is laid out as virtual tokens, text, padding, whatever the padding side: positions, relative distances
and sliding windows are then correct without knowing how the model counts them.
"""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Bool, Float, Int, Shaped
from softprompt_zoo.sites.layout import Layout

KINDS = ("token_type_ids", "global_attention_mask")
"""Arguments with an entry per token in which virtual tokens get 0: the first segment, local attention."""
KNOWN = {*KINDS, "input_ids", "attention_mask", "position_ids"}


def insert(
    virtual: Float[Tensor, "rows tokens hidden"],
    present: Bool[Tensor, "rows tokens"] | None,
    kwargs: dict[str, Any],
    text: Float[Tensor, "rows length hidden"],
) -> tuple[dict[str, Any], Layout]:
    """Put virtual tokens in front of the text of every row.

    Args:
        virtual: Embeddings of the virtual tokens.
        present: False for the padding of shorter prompts; `None` if there is none.
        kwargs: The stack's arguments. Not changed.
        text: Embeddings of the text.

    Returns:
        The arguments for all positions, and where the text was placed.

    Raises:
        UnsupportedError: If the attention mask is not 2-D, or an unknown argument has an entry per token.
    """
    mask = kwargs.get("attention_mask")
    _check_mask(mask)
    _check_known(kwargs, text.shape[:2])
    extended = {**kwargs, "input_ids": None, "inputs_embeds": torch.cat([virtual.to(text), text], dim=1)}
    rows, tokens = virtual.shape[:2]
    for name in KINDS:
        if kwargs.get(name) is not None:
            zeros = kwargs[name].new_zeros(rows, tokens)
            extended[name] = torch.cat([zeros, kwargs[name].expand(rows, -1)], dim=1)
    positions = kwargs.get("position_ids")
    if positions is not None:
        extended["position_ids"] = _extend_positions(positions.expand(rows, -1), mask, present, tokens)
    if mask is None and present is None:
        return extended, Layout(tokens, None)
    return _with_padding_last(extended, _valid(present, mask, text, tokens), tokens)


def _check_mask(mask: Any) -> None:
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        kind = f"{mask.ndim}-D" if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedError(
            f"a prompt at the input embeddings needs an attention mask of shape (rows, length), not a {kind} one; "
            "pass the 2-D mask, or use a method that works on keys and values"
        )


def _check_known(kwargs: dict[str, Any], shape: torch.Size) -> None:
    """Refuse an argument with an entry per token whose value for virtual tokens is unknown."""
    for name, value in kwargs.items():
        is_per_token = isinstance(value, Tensor) and value.shape == shape
        if is_per_token and name not in KNOWN and not name.startswith("encoder_"):
            raise UnsupportedError(
                f"a prompt at the input embeddings cannot extend {name}, which has an entry per token; leave it out, "
                "or use a method that works on keys and values"
            )


def _valid(
    present: Bool[Tensor, "rows tokens"] | None,
    mask: Shaped[Tensor, "rows length"] | None,
    text: Float[Tensor, "rows length hidden"],
    tokens: int,
) -> Bool[Tensor, "rows positions"]:
    """Distinguish the tokens of each row, with virtual ones first, from padding."""
    rows, length = text.shape[:2]
    if present is None:
        present = torch.ones(rows, tokens, dtype=torch.bool, device=text.device)
    seen = torch.ones(rows, length, dtype=torch.bool, device=text.device) if mask is None else mask.bool()
    return torch.cat([present, seen], dim=1)


def _with_padding_last(
    extended: dict[str, Any], valid: Bool[Tensor, "rows positions"], tokens: int
) -> tuple[dict[str, Any], Layout]:
    """Lay out each row as tokens followed by padding."""
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    embeddings, mask = extended["inputs_embeds"], extended.get("attention_mask")
    ordered = {
        "inputs_embeds": embeddings.gather(1, order[..., None].expand_as(embeddings)),
        "attention_mask": valid.gather(1, order).to(torch.long if mask is None else mask.dtype),
    }
    for name in (*KINDS, "position_ids"):
        if extended.get(name) is not None:
            ordered[name] = extended[name].gather(1, order)
    return extended | ordered, Layout(tokens, order.argsort(dim=1)[:, tokens:])


def _extend_positions(
    positions: Int[Tensor, "rows length"],
    mask: Shaped[Tensor, "rows length"] | None,
    present: Bool[Tensor, "rows {tokens}"] | None,
    tokens: int,
) -> Int[Tensor, "rows positions"]:
    """Move explicit text positions after the virtual tokens, which take the first positions."""
    start = positions.masked_fill(~mask.bool(), positions.max()) if mask is not None else positions
    first = start.min(dim=1, keepdim=True).values
    counts = tokens if present is None else present.sum(dim=1, keepdim=True)
    columns = torch.arange(tokens, device=positions.device)[None]
    return torch.cat([first + columns, positions + counts], dim=1)
