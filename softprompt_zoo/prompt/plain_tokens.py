"""Plain virtual tokens in place of what a method trains."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.tokens.kinds import from_tensors
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


class PlainTokens(nn.Module):
    """Plain virtual tokens, as a merged or imported prompt holds them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tensors = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})

    @classmethod
    def copied(cls, tensors: Mapping[str, Tensor], device: torch.device) -> "PlainTokens":
        """Make parameters of a copy of tensors, which may be views of a file that other programs overwrite and cut."""
        return cls({name: tensor.detach().to(device, copy=True).contiguous() for name, tensor in tensors.items()})

    def tokens(self, backbone: Backbone) -> VirtualTokens:
        """Return them as virtual tokens; gradients flow to the parameters."""
        return from_tensors(dict(self.tensors.items()), backbone)
