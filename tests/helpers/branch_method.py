"""The simplest methods with a branch parallel to attention: a matrix per layer, applied to the queries."""

import dataclasses
import types
from typing import Any

import torch
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of the simplest branch."""

    num_virtual_tokens: int = 0
    sites: tuple[str, ...] | None = None


class Parameters(nn.Module):
    """A matrix and a gate over hidden states for each layer of some sites."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        options = {"device": backbone.device}
        maps, gates = {}, {}
        for site in config.sites or backbone.layers:
            for layer, shape in enumerate(backbone.layers[site]):
                maps[f"{site}_{layer}"] = torch.empty(shape.head_dim, shape.value_size[1], **options)
                gates[f"{site}_{layer}"] = torch.empty(shape.hidden_size or backbone.hidden_size, **options)
        self.maps, self.gates = nn.ParameterDict(maps), nn.ParameterDict(gates)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        for parameter in self.parameters():
            parameter.normal_(std=0.3)


def added(parameters: Any, place: str, query: Any, output: Any) -> Any:
    """Return what the branch adds: a map of the queries, and a fraction of the output."""
    return query.transpose(1, 2).tanh() @ parameters.maps[place] + 0.1 * output


@zoo.hookimpl
def attend(parameters: Any, site: str, layer: int, query: Any, output: Any) -> Any:
    place = f"{site}_{layer}"
    return added(parameters, place, query, output).to(output) if place in parameters.maps else None


@zoo.hookimpl(specname="attend")
def attend_by_hidden(parameters: Any, site: str, layer: int, query: Any, hidden: Any, output: Any) -> Any:
    place = f"{site}_{layer}"
    if place not in parameters.maps:
        return None
    gate = (hidden @ parameters.gates[place]).sigmoid()[..., None, None]
    return (gate * added(parameters, place, query, output)).to(output)


PLUGIN = types.SimpleNamespace(NAME="branch_test", Config=Config, Parameters=Parameters, attend=attend)
READING = types.SimpleNamespace(NAME="reading_test", Config=Config, Parameters=Parameters, attend=attend_by_hidden)


def attach(architecture="llama", method="branch_test", implementation="sdpa", **options):
    torch.manual_seed(0)
    return zoo.get_method(method)(tiny_model(architecture, implementation=implementation), **options)
