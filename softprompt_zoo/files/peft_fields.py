"""PEFT's fields in a prompt's `adapter_config.json`; a method's module lists those of its type."""

from typing import Annotated, TypedDict

from softprompt_zoo.config import typed

Count = Annotated[int, typed.integer(1, 2**31 - 1)]


class PromptFields(TypedDict, total=False):
    """The fields that are read here; methods read their own."""

    peft_type: Annotated[str, typed.Allowed("a type of PEFT's", bool)]
    task_type: str | None
    num_virtual_tokens: Count | None
    num_layers: Count | None
    num_attention_heads: Count | None
    num_transformer_submodules: Count | None
    token_dim: Count | None
