"""The predictions of a language model's head."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.lookup import config_value
from softprompt_zoo.shapes import Float


def predict(model: Any, states: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocab"]:
    """Apply the head, with the scaling that some models apply after it.

    Args:
        model: A causal language model.
        states: Last hidden states.

    Returns:
        Logits; gradients flow.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    logits: Tensor = head(states.to(head.weight.dtype))
    if config_value(config, "logit_scale") is not None:  # Cohere
        logits = logits * config.logit_scale
    if config_value(config, "logits_scaling") is not None:  # Granite
        logits = logits / config.logits_scaling
    cap = config_value(config, "final_logit_softcapping")  # Gemma
    return logits if cap is None else cap * torch.tanh(logits / cap)
