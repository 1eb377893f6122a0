"""The masks of flex attention: functions of four indices, with a table of the blocks that they keep."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from softprompt_zoo.shapes import Bool, Int

FLEX = "flex_attention"
"""transformers' name of the implementation."""


def extend(
    mask: BlockMask,
    visible: Bool[Tensor, "#rows 1 #length {tokens}"] | None,
    rows: int,
    length: int,
    key_length: int,
    tokens: int,
) -> BlockMask:
    """Extend a text's block mask with the prompt's columns.

    Args:
        mask: The text's mask. Not changed.
        visible: Which virtual tokens each query sees; `None` for all.
        rows: Rows of the batch.
        length: Queries.
        key_length: Keys of the text.
        tokens: Virtual tokens, which come before the text's keys.

    Returns:
        A mask over `tokens + key_length` keys.
    """
    of_text = mask.mask_mod
    device = mask.kv_num_blocks.device
    seen = None if visible is None else visible.to(device).expand(rows, 1, length, tokens)[:, 0]

    def mask_mod(
        row: Int[Tensor, ""], head: Int[Tensor, ""], query: Int[Tensor, ""], key: Int[Tensor, ""]
    ) -> Bool[Tensor, ""]:
        is_text = key >= tokens
        text = of_text(row, head, query, (key - tokens).clamp(min=0))
        if seen is None:
            return ~is_text | text
        # Both sides are computed everywhere, so no index may be out of bounds.
        prompt: Any = seen[row, query.clamp(max=length - 1), key.clamp(max=tokens - 1)]
        return torch.where(is_text, text, prompt)

    # Compiled, the table is built without the whole mask in memory; on a CPU, the first time takes minutes.
    make: Callable[..., BlockMask] = create_block_mask if device.type == "cpu" else torch.compile(create_block_mask)
    return make(mask_mod, rows, None, length, tokens + key_length, device=device)
