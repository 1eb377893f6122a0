"""Template: trains embeddings of virtual tokens and how loud each of them is.

    tokens = exp(volume) * embeddings          (tokens, hidden); volume (tokens, 1)

Enters at: the input embeddings.
Trained: tokens * (hidden + 1).
Merges to: the embeddings it computes.

Source: none; an example to copy.
"""

import dataclasses

import torch
from torch import nn

import softprompt_zoo as zoo

ALIASES = ()
RECIPE = zoo.Recipe(learning_rate=1e-2, steps=60, source="our choice; not tuned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of the method; `num_virtual_tokens` comes from `MethodConfig`."""

    volume: float = 1.0
    """Initial factor, above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.volume > 0:
            raise ValueError(f"volume is {self.volume!r}; expected a number above 0")


class Parameters(nn.Module):
    """The trained parameters."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        tokens, device = config.num_virtual_tokens, backbone.device
        self.embeddings = nn.Parameter(torch.empty(tokens, backbone.hidden_size, device=device))
        self.volume = nn.Parameter(torch.empty(tokens, 1, device=device))

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start from words drawn at random."""
        ids = torch.randint(backbone.vocab_size, (config.num_virtual_tokens,), device=backbone.device)
        self.embeddings.copy_(backbone.embed(ids))
        self.volume.fill_(config.volume).log_()


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters) -> zoo.VirtualTokens:
    """Compute the virtual tokens, in every forward; gradients must flow."""
    return zoo.InputTokens(parameters.volume.exp() * parameters.embeddings)
