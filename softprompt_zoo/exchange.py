"""Data passed between hooks and the host: PEFT adapters, and a training forward."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from softprompt_zoo.shapes import Float, Int
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


@dataclasses.dataclass(frozen=True)
class PeftFiles:
    """The content of a PEFT adapter's two files."""

    fields: Mapping[str, Any]
    """`adapter_config.json`; the host adds `task_type` and `base_model_name_or_path` if they are missing."""
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
    """The plain tokens, if there is no state."""


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """The results of a training forward, and a way to run the frozen model again."""

    loss: Float[Tensor, ""]
    """The model's own loss, with gradients."""
    output: Any
    """The model's output: `logits` `(rows, length, vocab)`, and all `hidden_states` (of an encoder-decoder
    `encoder_hidden_states` and `decoder_hidden_states`), with gradients."""
    inputs: Mapping[str, Any]
    """The forward's keyword arguments as the user gave them, including `labels`."""
    task_ids: Int[Tensor, " rows"] | None
    """The rows' task ids, if the user gave them."""
    virtual_logits: Callable[[], Float[Tensor, "tokens vocab"]]
    """Returns a causal model's predictions at each of the prompt's tokens, the same for every row;
    gradients flow."""
    first_logits: Callable[[], Float[Tensor, " vocab"] | None]
    """Returns the prediction for the text's first token, by the last virtual token of the last prompt; `None` if that
    prompt consists of keys and values, which predict nothing, or has weight 0. Otherwise like
    `virtual_logits`."""
    run: Callable[..., Any]
    """`run(tokens, **changes)`: the same inputs, labels included, with other virtual tokens in the prompt's place
    (`None` for none), without gradients and in eval mode; `changes` replace inputs. Returns the model's output
    with its hidden states, for example as a teacher for the prompted model."""
    predicts_next: bool = False
    """Whether each label is predicted by the token before it, as in causal language models."""
