"""Flex attention without its compiler, which takes minutes on a CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch.nn.attention import flex_attention
from transformers import masking_utils
from transformers.integrations import flex_attention as integration

FLEX = "flex_attention"


@contextlib.contextmanager
def uncompiled_flex() -> Iterator[None]:
    """Run flex attention as plain operations, with the same masks and function."""

    def attend(query: Any, key: Any, value: Any, training: bool = False, **kwargs: Any) -> Any:
        return flex_attention.flex_attention(query, key, value, **kwargs)

    def block_mask(*args: Any, _compile: bool = False, **kwargs: Any) -> Any:
        return flex_attention.create_block_mask(*args, **kwargs)

    with (
        mock.patch.object(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
        mock.patch.object(integration, "compile_friendly_flex_attention", attend),
        mock.patch.object(masking_utils, "create_block_mask", block_mask),
    ):
        yield
