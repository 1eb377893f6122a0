"""The batches on which attention is measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Bool, Shaped
from softprompt_zoo.sites.request import NEW_ARGUMENTS

Batch = Mapping[str, Any]


def read_batches(inputs: Batch | Sequence[Batch]) -> list[Batch]:
    """Read a user's batches.

    Args:
        inputs: A batch, or a list of them.

    Returns:
        The batches.

    Raises:
        TypeError: If it is neither.
        ValueError: If a batch chooses prompts itself.
    """
    batches: list[Any] = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    for batch in batches or [inputs]:
        _check(batch)
    return batches


def _check(batch: Any) -> None:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"inputs is not a batch ({type(batch).__name__}); expected what the model's forward takes, "
            "{'input_ids': …}, or a list of such batches"
        )
    chosen = next((name for name in NEW_ARGUMENTS if name in batch), None)
    if chosen is not None:
        raise ValueError(f"inputs has {chosen}; leave it out: all rows see the inspected prompts, in front of the text")


def arguments_of(batch: Batch, backbone: Backbone) -> dict[str, Any]:
    """Return the arguments of the model's forward for a batch, without a loss or a cache.

    Args:
        batch: As the user gave it. Not changed.
        backbone: Sizes of the model.

    Returns:
        The arguments, on the model's device.

    Raises:
        ValueError: If there is no text, or nothing for a decoder to read.
    """
    arguments = {
        name: value.to(backbone.device) if isinstance(value, Tensor) else value for name, value in batch.items()
    }
    text_name(arguments)
    if backbone.kind.has_two_texts:
        _check_decoder_reads(arguments)
    else:
        arguments.pop("labels", None)
    if backbone.takes_cache:
        arguments["use_cache"] = False
    return arguments


def _check_decoder_reads(arguments: Mapping[str, Any]) -> None:
    if not {"labels", "decoder_input_ids", "decoder_inputs_embeds"} & arguments.keys():
        given = ", ".join(arguments)
        raise ValueError(f"inputs has nothing for the decoder to read ({given}); add decoder_input_ids or labels")


def text_name(arguments: Mapping[str, Any]) -> str:
    """Return the name of the argument that holds the text.

    Raises:
        ValueError: If there is none.
    """
    name = next((n for n in ("input_ids", "inputs_embeds") if isinstance(arguments.get(n), Tensor)), None)
    if name is None:
        raise ValueError(f"inputs has {', '.join(arguments) or 'nothing'}; expected the tensor input_ids, at least")
    return name


def text_queries(
    arguments: Mapping[str, Any], site: str, backbone: Backbone, moved: bool
) -> Bool[Tensor, "rows length"] | None:
    """Return which queries of a site are text.

    Args:
        arguments: The arguments of the forward.
        site: The site.
        backbone: Sizes of the model.
        moved: Whether the virtual positions are followed by each row's text, and then by its padding.

    Returns:
        `(rows, length)` booleans; `None` if the text is not among the arguments.

    Raises:
        UnsupportedError: If the mask is not one of rows and positions.
    """
    prefix = _prefix(site, backbone)
    mask = _mask(arguments, prefix)
    if mask is None:
        return None
    if mask.ndim != 2:
        raise UnsupportedError(f"{prefix}attention_mask is {mask.ndim}-D; give a mask of shape (rows, length)")
    seen = mask.bool()
    return torch.arange(seen.shape[1], device=seen.device)[None] < seen.sum(dim=1, keepdim=True) if moved else seen


def _mask(arguments: Mapping[str, Any], prefix: str) -> Shaped[Tensor, "rows ..."] | None:
    """Return the mask of a text, or one that covers all of it; `None` if there is no text.

    A mask with a shape other than `(rows, length)` is refused where it is used.
    """
    all_of_it = _whole_text(arguments, prefix)
    given: Tensor | None = arguments.get(f"{prefix}attention_mask")
    return all_of_it if all_of_it is None or given is None else given


def _whole_text(arguments: Mapping[str, Any], prefix: str) -> Shaped[Tensor, "rows length"] | None:
    """Return a mask that covers all of a text; a decoder may read its labels."""
    for name in (f"{prefix}input_ids", f"{prefix}inputs_embeds"):
        text: Tensor | None = arguments.get(name)
        if text is not None:
            return torch.ones(text.shape[:2], device=text.device)
    labels: Tensor | None = arguments.get("labels") if prefix else None
    return None if labels is None else labels != -100


def _prefix(site: str, backbone: Backbone) -> str:
    """Return the prefix of the arguments' names for the text of a site."""
    return "decoder_" if backbone.kind.has_two_texts and site != "encoder" else ""
