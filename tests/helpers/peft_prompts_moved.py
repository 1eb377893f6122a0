"""PEFT's prompts with random numbers, as if trained."""

import torch


def move_what_is_saved(wrapped):
    """Change every number that PEFT saves, in the prompt and in the modules beside it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name or "prompt_encoder" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
