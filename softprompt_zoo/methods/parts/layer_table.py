"""Trained keys and values of one site: a table, or a table and the network that computes them from it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.layer_tokens import unflatten_layers
from softprompt_zoo.tokens.site_tokens import SiteTokens


class LayerTable(nn.Module):
    """Keys and values of every layer of a site, trained directly or through a two-layer network with tanh.

    Args:
        backbone: Sizes of the model.
        site: The site.
        num_virtual_tokens: Number of rows in the table.
        net_size: Hidden width of the network, in features; `None` to train the keys and values directly.
    """

    def __init__(self, backbone: Backbone, site: str, num_virtual_tokens: int, net_size: int | None) -> None:
        super().__init__()
        self._layers = backbone.layers[site]
        features = sum(layer.features for layer in self._layers)
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.shape = (num_virtual_tokens, features)
        """Number of virtual tokens, and of features in all layers."""
        width = features if net_size is None else backbone.hidden_size
        self.embeddings = nn.Parameter(torch.empty(num_virtual_tokens, width, **options))
        self.hidden = None if net_size is None else nn.Linear(width, net_size, **options)
        self.output = None if net_size is None else nn.Linear(net_size, features, **options)

    def forward(self) -> SiteTokens:
        """Return keys and values per layer; gradients flow to the parameters."""
        flat: Tensor = self.embeddings
        if self.hidden is not None and self.output is not None:
            flat = self.output(torch.tanh(self.hidden(flat)))
        return unflatten_layers(flat, self._layers)

    @torch.no_grad()
    def fit(self, target: Float[Tensor, "tokens features"]) -> None:
        """Set the initial keys and values; with a network, its embeddings are standard normal.

        Args:
            target: The values in the layout of `flatten_layers`. With a network, its last layer is solved for.
        """
        if self.hidden is None or self.output is None:
            self.embeddings.copy_(target)
            return
        self.embeddings.normal_()
        activations = functional.pad(torch.tanh(self.hidden(self.embeddings)), (0, 1), value=1.0)
        weight = (torch.linalg.pinv(activations) @ target.to(activations)).T
        self.output.weight.copy_(weight[:, :-1])
        self.output.bias.copy_(weight[:, -1])
