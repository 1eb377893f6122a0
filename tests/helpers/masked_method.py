"""The simplest method with a mask per row: a prefix of which each row sees only the tokens that a test chooses."""

import types
from typing import Any

import torch
from helpers import scored_method

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model


class Parameters(scored_method.Parameters):
    """Keys and values of every layer of some sites, and a mask."""

    mask: torch.Tensor | None = None

    def __init__(self, config: Any, backbone: zoo.Backbone) -> None:
        super().__init__(config, backbone)
        for name in [name for name in self.tensors if name.endswith("scores")]:
            del self.tensors[name]


@zoo.hookimpl
def build_virtual_tokens(parameters: Any, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    sites = {}
    for site, shapes in backbone.layers.items():
        names = [[f"{site}_{layer}_{kind}" for layer in range(len(shapes))] for kind in ("keys", "values")]
        if names[0][0] in parameters.tensors:
            sites[site] = zoo.SiteTokens(*[tuple([parameters.tensors[name] for name in own]) for own in names])
    return zoo.LayerTokens(sites)


@zoo.hookimpl
def inject(parameters: Any, tokens: Any) -> zoo.Placement:
    return zoo.Placement(tokens, always_visible=True, mask=parameters.mask)


PLUGIN = types.SimpleNamespace(
    NAME="masked_test",
    Config=scored_method.Config,
    Parameters=Parameters,
    build_virtual_tokens=build_virtual_tokens,
    inject=inject,
)


@zoo.hookimpl(specname="inject")
def inject_by_text(config: Any, tokens: Any, text: zoo.Text) -> zoo.Placement:
    """Show each row token 0, and each token `i` for which entry `i` of its text's mean embedding is positive."""
    means = (text.embeddings * text.mask[..., None]).sum(dim=1)
    shown = means[:, torch.arange(config.num_virtual_tokens, device=means.device) % means.shape[1]] > 0
    shown[:, 0] = True
    return zoo.Placement(tokens, mask=shown)


READING = types.SimpleNamespace(
    NAME="masked_by_text_test",
    Config=scored_method.Config,
    Parameters=Parameters,
    build_virtual_tokens=build_virtual_tokens,
    inject_by_text=inject_by_text,
)
TOKENS = 5


def attach(architecture="llama", implementation="sdpa", **options):
    torch.manual_seed(0)
    base = tiny_model(architecture, implementation=implementation)
    return zoo.get_method("masked_test")(base, num_virtual_tokens=TOKENS, **options)


def set_mask(model, mask, name="default"):
    model.prompts[name].learned.mask = mask
    model.prompts.forget()


def add_kept(model, seen, name):
    """Add a prefix that has only the tokens of "default" that a row sees."""
    own = dict(model.prompts["default"].learned.tensors.items())
    options = {"sites": model.prompts["default"].config.sites}
    prompt = model.prompts.add(name, "masked_test", num_virtual_tokens=int(seen.sum()), **options)
    with torch.no_grad():
        for key, tensor in prompt.learned.tensors.items():
            tensor.copy_(own[key][:, seen])
