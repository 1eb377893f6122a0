"""The simplest method with gated tokens, on every family: trained keys, values and gates."""

import dataclasses
import types
from typing import Any

import torch
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of the simplest gated method."""

    layers: int | None = None
    wide: bool = True


class Parameters(nn.Module):
    """Keys, values and gates of the upper layers of every site."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        tensors = {}
        for site, shapes in backbone.layers.items():
            for index, shape in list(enumerate(shapes))[-(config.layers or len(shapes)) :]:
                size = (shape.kv_heads, config.num_virtual_tokens, shape.head_dim)
                tensors[f"{site}_{index}_keys"] = torch.empty(size, device=backbone.device)
                tensors[f"{site}_{index}_values"] = torch.empty(size, device=backbone.device)
                gates = shape.heads if config.wide else 1
                tensors[f"{site}_{index}_gates"] = torch.empty(gates, device=backbone.device)
        self.tensors = nn.ParameterDict(tensors)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        for name, tensor in self.tensors.items():
            tensor.normal_(std=0.0 if name.endswith("gates") else 1.0)


@zoo.hookimpl
def build_virtual_tokens(parameters: Any, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    sites = {}
    for site, shapes in backbone.layers.items():
        columns = [
            tuple([parameters.tensors.get(f"{site}_{layer}_{kind}") for layer in range(len(shapes))])
            for kind in ("keys", "values", "gates")
        ]
        sites[site] = zoo.SiteTokens(*columns)
    return zoo.LayerTokens(sites)


@zoo.hookimpl
def inject(tokens: Any) -> zoo.Placement:
    return zoo.Placement(tokens)


@zoo.hookimpl
def merge(parameters: Any, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    return build_virtual_tokens(parameters, backbone)


PLUGIN = types.SimpleNamespace(
    NAME="gated_test",
    Config=Config,
    Parameters=Parameters,
    build_virtual_tokens=build_virtual_tokens,
    inject=inject,
    merge=merge,
)


def open_gates(model, value=0.7, name="default"):
    with torch.no_grad():
        for key, tensor in model.prompts[name].learned.tensors.items():
            if key.endswith("gates"):
                tensor.copy_(value * torch.arange(1, len(tensor) + 1))
    return model


def attach(architecture="llama", value=0.7, implementation="sdpa", **options):
    torch.manual_seed(0)
    base = tiny_model(architecture, implementation=implementation)
    model = zoo.get_method("gated_test")(base, **{"num_virtual_tokens": 4, **options})
    return open_gates(model, value)
