"""What a method hands over to be written as a PEFT adapter, and takes from one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from softprompt_zoo.tokens import VirtualTokens


@dataclasses.dataclass(frozen=True)
class PeftFiles:
    """A PEFT adapter: what its two files hold."""

    fields: Mapping[str, Any]
    """`adapter_config.json`; the host adds `task_type` and `base_model_name_or_path` where they are missing."""
    tensors: Mapping[str, Tensor]
    """`adapter_model.safetensors`; the host casts them to float32."""


@dataclasses.dataclass(frozen=True)
class PeftPrompt:
    """A prompt read from a PEFT adapter."""

    options: Mapping[str, Any]
    """The method's options."""
    state: Mapping[str, Tensor] | None = None
    """The `state_dict` of its `Parameters`; `None` if there are only plain tokens."""
    tokens: VirtualTokens | None = None
    """The plain tokens, where there is no state."""
