"""PEFT's names of what a prompt's `adapter_config.json` holds; a page of a method spells those of its own type."""

from typing import Annotated, TypedDict

from softprompt_zoo.config import typed

Count = Annotated[int, typed.integer(1, 2**31 - 1)]


class PromptFields(TypedDict, total=False):
    """What is read of PEFT's config by name here; methods look at what else is theirs."""

    peft_type: Annotated[str, typed.Allowed("a type of PEFT's", bool)]
    task_type: str | None
    num_virtual_tokens: Count | None
    num_layers: Count | None
    num_attention_heads: Count | None
    num_transformer_submodules: Count | None
    token_dim: Count | None
