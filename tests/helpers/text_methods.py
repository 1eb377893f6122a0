"""The simplest methods that read or change the rows' text."""

import contextlib
import dataclasses

import torch
from torch import nn

import softprompt_zoo as zoo


def mean(values, mask):
    """Average over the text only, without padding."""
    weights = mask[..., None].to(values)
    return (values * weights).sum(dim=1) / weights.sum(dim=1)


class Reads:
    """Virtual tokens made from the mean of the model's states for the text."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(zoo.MethodConfig):
        """Options."""

        num_virtual_tokens: int = 4

    class Parameters(nn.Module):
        """A base, and a layer over the mean."""

        def __init__(self, config, backbone):
            super().__init__()
            self.base = nn.Parameter(torch.empty(config.num_virtual_tokens, backbone.hidden_size))
            self.layer = nn.Linear(backbone.hidden_size, backbone.hidden_size)

        def initialize(self, config, backbone):
            nn.init.normal_(self.base)

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters, text):
        states = text.states().to(parameters.base)
        return zoo.InputTokens(parameters.base + parameters.layer(mean(states, text.mask))[:, None])


class ReadsInto(Reads):
    """Keys and values scaled by the mean of the text's embeddings."""

    class Parameters(nn.Module):
        """Keys and values of each layer."""

        def __init__(self, config, backbone):
            super().__init__()
            shapes = backbone.layers[backbone.kind.site]
            sizes = [(shape.kv_heads, config.num_virtual_tokens, shape.head_dim) for shape in shapes]
            self.keys = nn.ParameterList([torch.empty(size) for size in sizes])
            self.values = nn.ParameterList([torch.empty(size) for size in sizes])

        def initialize(self, config, backbone):
            for tensor in self.parameters():
                nn.init.normal_(tensor)

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters, backbone, text):
        scale = 1 + mean(text.embeddings.to(parameters.keys[0]), text.mask).mean(dim=1)[:, None, None, None]
        keys, values = (tuple(scale * own for own in kind) for kind in (parameters.keys, parameters.values))
        return zoo.LayerTokens({backbone.kind.site: zoo.SiteTokens(keys, values)})


class Maps:
    """An offset for each position of the text, and no virtual tokens."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(zoo.MethodConfig):
        """Options."""

        num_virtual_tokens: int = 0

    class Parameters(nn.Module):
        """The offsets."""

        def __init__(self, config, backbone):
            super().__init__()
            self.offsets = nn.Parameter(torch.empty(16, backbone.hidden_size))

        def initialize(self, config, backbone):
            nn.init.normal_(self.offsets)

    @zoo.hookimpl
    def map_text(self, parameters, text):
        offsets = parameters.offsets[text.positions.clamp(max=15)]
        return text.embeddings + torch.where(text.mask[..., None], offsets, 0)


TEXT_METHODS = {"reads": Reads, "reads_into": ReadsInto, "maps": Maps}


@contextlib.contextmanager
def registered(**plugins):
    """Register plugins by name for the duration of a block."""
    for name, plugin in plugins.items():
        zoo.register(plugin, name)
    try:
        yield
    finally:
        for name in plugins:
            zoo.unregister(name)
