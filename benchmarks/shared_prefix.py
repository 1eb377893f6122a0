"""Shared prefix: trains keys and values of virtual tokens that all layers share, as an ablation of prefix tuning."""

import torch
from torch import Tensor, nn

import softprompt_zoo as zoo
from softprompt_zoo.methods.parts.initialization import sampled_ids
from softprompt_zoo.tokens.layer_tokens import flatten_layers, unflatten_layers

NAME = "shared_prefix"
RECIPE = zoo.Recipe(learning_rate=2e-2, steps=60, source="that of prefix tuning, which it is compared with")
Config = zoo.MethodConfig


class Parameters(nn.Module):
    """One layer's keys and values, `(tokens, features)`, for each site."""

    def __init__(self, config: zoo.MethodConfig, backbone: zoo.Backbone) -> None:
        super().__init__()
        self.shared = nn.ParameterDict()
        for site, layers in backbone.layers.items():
            shape = layers[0]
            if any((layer.key_size, layer.value_size) != (shape.key_size, shape.value_size) for layer in layers):
                raise zoo.UnsupportedError("the layers have keys of different sizes, which they cannot share")
            features = shape.features
            self.shared[site] = nn.Parameter(
                torch.empty(config.num_virtual_tokens, features, device=backbone.device, dtype=torch.float32)
            )

    @torch.no_grad()
    def initialize(self, config: zoo.MethodConfig, backbone: zoo.Backbone) -> None:
        """Start from the mean over the layers of the model's own keys and values of sampled words."""
        states = backbone.keys_values(sampled_ids(backbone, config.num_virtual_tokens))
        for site, shared in self.shared.items():
            flat = flatten_layers(states.sites[site])
            shared.copy_(flat.unflatten(1, (len(backbone.layers[site]), -1)).mean(dim=1))


def _tokens(parameters: Parameters, backbone: zoo.Backbone) -> zoo.LayerTokens:
    def repeated(site: str, shared: Tensor) -> zoo.SiteTokens:
        layers = backbone.layers[site]
        return unflatten_layers(shared.repeat(1, len(layers)), layers)

    return zoo.LayerTokens({site: repeated(site, shared) for site, shared in parameters.shared.items()})


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    """Return the same keys and values for every layer."""
    return _tokens(parameters, backbone)


@zoo.hookimpl
def inject(tokens: zoo.VirtualTokens) -> zoo.Placement:
    """Place the tokens at the keys and values of their sites."""
    return zoo.Placement(tokens)


@zoo.hookimpl
def merge(parameters: Parameters, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    """Return the tokens unchanged."""
    return _tokens(parameters, backbone)
