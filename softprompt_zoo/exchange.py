"""What hooks and the host hand each other: PEFT adapters, and a forward of training."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from softprompt_zoo.shapes import Float, Int
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


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


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """What happened in the forward, and means to run the frozen model once more."""

    loss: Float[Tensor, ""]
    """The model's own loss, with gradients."""
    output: Any
    """The model's output: `logits` `(rows, length, vocab)`, and all `hidden_states` (of an encoder-decoder
    `encoder_hidden_states` and `decoder_hidden_states`), with gradients."""
    inputs: Mapping[str, Any]
    """The forward's keyword arguments as the user gave them, `labels` among them."""
    task_ids: Int[Tensor, " rows"] | None
    """If the user gave them."""
    virtual_logits: Callable[[], Float[Tensor, "tokens vocab"]]
    """Returns what a causal model predicts at each of the prompt's tokens. The same for every row;
    gradients flow."""
    first_logits: Callable[[], Float[Tensor, " vocab"] | None]
    """Returns what is predicted right in front of the text, for its first token, by the last virtual token
    of the last prompt; `None` where keys and values stand there, which predict nothing, or a prompt of the weight 0. As
    `virtual_logits` else."""
    run: Callable[..., Any]
    """`run(tokens, **changes)`: the same inputs, labels included, with other virtual tokens in the prompt's place
    (`None` for none), without gradients and in eval mode; `changes` replace inputs. Returns the model's output
    with its hidden states. A teacher of a student that sees the prompt."""
    predicts_next: bool = False
    """Whether a label is predicted by the token before it, as in causal language models."""
