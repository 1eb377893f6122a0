"""The simplest method with scores, on every family: trained keys, values and scores."""

import dataclasses
import types
from typing import Any

import torch
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TIMES = torch.tensor([[1, 2, 3], [3, 1, 2], [2, 2, 2], [1, 1, 4]])
"""How many times each token counts, by head and token; the total is the same for every head."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of the simplest method with scores."""

    sites: tuple[str, ...] | None = None


class Parameters(nn.Module):
    """Keys, values and scores of every layer of some sites."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        tensors = {}
        for site in config.sites or backbone.layers:
            for index, shape in enumerate(backbone.layers[site]):
                heads, count = shape.kv_heads, config.num_virtual_tokens
                tensors[f"{site}_{index}_keys"] = torch.empty(heads, count, shape.head_dim, device=backbone.device)
                tensors[f"{site}_{index}_values"] = torch.empty(heads, count, shape.head_dim, device=backbone.device)
                tensors[f"{site}_{index}_scores"] = torch.empty(heads, count, device=backbone.device)
        self.tensors = nn.ParameterDict(tensors)

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        for tensor in self.tensors.values():
            tensor.normal_()


@zoo.hookimpl
def build_virtual_tokens(parameters: Any, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    own = {name: tensor for name, tensor in parameters.tensors.items() if name.endswith("scores")}
    # Computed for all layers at once, as a scaffold would: recomputed layers must not each go back through this.
    factors = torch.cat([tensor.flatten() for tensor in own.values()]).exp()
    split = factors.log().split([tensor.numel() for tensor in own.values()])
    made = {name: scores.view_as(tensor) for (name, tensor), scores in zip(own.items(), split, strict=True)}
    tensors = {**parameters.tensors, **made}
    sites = {}
    for site, shapes in backbone.layers.items():
        if f"{site}_0_keys" in tensors:
            keys, values, scores = (
                tuple([tensors[f"{site}_{layer}_{kind}"] for layer in range(len(shapes))])
                for kind in ("keys", "values", "scores")
            )
            sites[site] = zoo.SiteTokens(keys, values, scores=scores)
    return zoo.LayerTokens(sites)


@zoo.hookimpl
def inject(tokens: Any) -> zoo.Placement:
    return zoo.Placement(tokens, always_visible=True)


PLUGIN = types.SimpleNamespace(
    NAME="scored_test", Config=Config, Parameters=Parameters, build_virtual_tokens=build_virtual_tokens, inject=inject
)


def attach(architecture="llama", implementation="sdpa", **options):
    """Return a model with the scored prompt "default", three tokens, and a prefix "repeated" that repeats them."""
    torch.manual_seed(0)
    base = tiny_model(architecture, implementation=implementation)
    model = zoo.get_method("scored_test")(base, num_virtual_tokens=3, **options)
    model.prompts.add("repeated", "scored_test", num_virtual_tokens=6, **options)
    with torch.no_grad():
        repeat(model)
    return model


def repeat(model):
    """Score the tokens of "default" by `TIMES`; fill "repeated" with each of them that many times, at score 0."""
    own, repeated = (model.prompts[name].learned.tensors for name in ("default", "repeated"))
    for name, tensor in own.items():
        site_layer, _, kind = name.rpartition("_")
        times = TIMES[torch.arange(len(tensor)) + int(site_layer[-1])] if len(tensor) < 4 else TIMES
        if kind == "scores":
            tensor.copy_(times.log())
            repeated[name].zero_()
        else:
            rows = [row.repeat_interleave(count, dim=0) for row, count in zip(tensor, times, strict=True)]
            repeated[name].copy_(torch.stack(rows))
