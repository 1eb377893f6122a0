"""Encoder states that the user passes back in: the decoder must also see their virtual positions.

The encoder states that a model returns are cut to the text. The whole tensor is remembered as long as the cut one
lives, so that either can be passed back in; for a copy, only its length tells which one it is.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float, Shaped
from softprompt_zoo.sites.batch import stack_embeddings
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.layout import Layout


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What is known of a tensor that an encoder returned."""

    layout: Layout
    """Where the text is in the whole tensor."""
    whole: Shaped[Tensor, "rows ..."] | None
    """The whole tensor if this one was cut; `None` if this is the whole one."""


_ENCODED: Any = WeakTensorKeyDictionary()


def remember(tensor: Any, layout: Layout, whole: Any = None) -> None:
    """Remember an encoder's tensor, or the tensors in a tuple, as long as they live.

    Args:
        tensor: The tensor as the user gets it.
        layout: Where the text is in the whole one.
        whole: The whole one if it was cut, in a tuple of the same form.
    """
    if torch.compiler.is_compiling():  # the user then gets a different object
        return
    if isinstance(tensor, Tensor):
        _ENCODED[tensor] = Encoded(layout, whole)
        return
    for index, part in enumerate(tensor or ()):
        remember(part, layout, None if whole is None else whole[index])


def recall(tensor: Any) -> Encoded | None:
    """Return what is known of a tensor; `None` if it is not from a prompted encoder, or was copied since."""
    if torch.compiler.is_compiling() or not isinstance(tensor, Tensor):
        return None
    found: Encoded | None = _ENCODED.get(tensor)
    return found


def whole_states(
    states: Float[Tensor, "rows _ hidden"], mask: Any, call: Call
) -> tuple[Float[Tensor, "rows positions hidden"], Layout | None]:
    """Return the states that a decoder must see for the given ones.

    Args:
        states: States returned by another forward or by the encoder itself.
        mask: The text's attention mask `(rows, text)`; or `None`, or one of another form.
        call: The prompts of this forward.

    Returns:
        States that include virtual positions; and where the text is in them if the given ones were cut.

    Raises:
        UnsupportedError: If it is unclear whether they include virtual positions, or they include other prompts'.
    """
    embedded = stack_embeddings(call)
    if embedded is None:
        return states, None
    known, virtual = recall(states), max(embedded[2])
    if known is not None:
        _check_prompts(known.layout, call, embedded[2], states)
        return (states, None) if known.whole is None else (known.whole, known.layout)
    _check_length(states, mask, virtual)
    return states, None


def _check_length(states: Float[Tensor, "rows _ hidden"], mask: Any, virtual: int) -> None:
    """Refuse states whose length does not show, given the text's mask, that they include the virtual positions."""
    seen = "no attention_mask of shape (rows, length)"
    if isinstance(mask, Tensor) and mask.ndim == 2:
        if states.shape[1] == mask.shape[1] + virtual:
            return
        seen = f"an attention_mask of {mask.shape[1]} tokens"
    raise UnsupportedError(
        f"the encoder's states were given with {states.shape[1]} positions and {seen}, so it is unclear whether they "
        f"include the {virtual} virtual positions of this call's prompts; pass the text's attention_mask, and the "
        "output of model.get_encoder() or encoder_last_hidden_state itself, not a copy of it"
    )


def whole_outputs(outputs: Any, mask: Any, call: Call) -> tuple[Any, Any, Layout | None]:
    """Return what `generate` must use for the `encoder_outputs` passed to it.

    Args:
        outputs: A `ModelOutput` or a tuple, the states first. Not changed.
        mask: The text's attention mask `(rows, text)`, or `None`.
        call: The prompts of this text.

    Returns:
        The outputs with the whole states, the text's mask, and where the text is in them if they were cut.

    Raises:
        UnsupportedError: If it is unclear whether they include virtual positions, or they include other prompts'.
    """
    embedded = stack_embeddings(call)
    if embedded is None:
        return outputs, mask, None
    states, layout = whole_states(outputs[0], mask, call)
    if layout is not None:
        outputs = _with_whole_parts(outputs)
    if mask is None:
        mask = states.new_ones(states.shape[0], states.shape[1] - max(embedded[2]), dtype=torch.long)
    return outputs, mask, layout


def _with_whole_parts(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return type(outputs)(**{name: _whole(part) for name, part in outputs.items()})
    return tuple([_whole(part) for part in outputs])


def _whole(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(_whole(each) for each in part)
    known = recall(part)
    return part if known is None or known.whole is None else known.whole


def _check_prompts(layout: Layout, call: Call, counts: list[int], states: Float[Tensor, "rows _ hidden"]) -> None:
    """Refuse states whose rows have a different number of virtual positions than in this call."""
    now = call.per_row(counts, states.device)[:, 0].expand(states.shape[0])
    then = torch.full_like(now, layout.virtual)
    if layout.text_index is not None:
        then = layout.text_index.min(dim=1).values
    if then.shape != now.shape or not torch.equal(then, now):
        raise UnsupportedError(
            f"the encoder's states were computed with {then.tolist()} virtual positions in the rows, but this call's "
            f"prompts have {now.tolist()}; decode with the prompts used for encoding, or encode again"
        )
