"""Plugins that keep the contract, and a stand-in for the installed plugins."""

import dataclasses
import types

import torch

import softprompt_zoo as zoo
from softprompt_zoo.backbone.inside import Inside
from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.model.making import make_prompt
from softprompt_zoo.registry.discovery import GROUP, Candidate

TOKENS, HIDDEN = 3, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    num_virtual_tokens: int = TOKENS


class Parameters(torch.nn.Module):
    def __init__(self, config, backbone):
        super().__init__()
        self.embeddings = torch.nn.Parameter(torch.ones(config.num_virtual_tokens, backbone.hidden_size))

    def initialize(self, config, backbone):
        pass


@zoo.hookimpl
def build_virtual_tokens(parameters):
    return zoo.InputTokens(parameters.embeddings)


@zoo.hookimpl
def inject(tokens):
    return zoo.Placement(tokens)


@zoo.hookimpl
def merge(parameters):
    return zoo.InputTokens(parameters.embeddings)


def plugin(**changes):
    """Return a sound method plugin; a change to `None` removes the attribute."""
    attributes = {"build_virtual_tokens": build_virtual_tokens, "inject": inject, "merge": merge}
    attributes |= {"Config": Config, "Parameters": Parameters, "__doc__": "Sound.\n\nMore.", **changes}
    return types.SimpleNamespace(**{name: value for name, value in attributes.items() if value is not None})


def scaling(factor, **changes):
    @zoo.hookimpl(wrapper=True)
    def build_virtual_tokens():
        tokens = yield
        return zoo.InputTokens(tokens.embeddings * factor)

    return types.SimpleNamespace(build_virtual_tokens=build_virtual_tokens, **changes)


@dataclasses.dataclass
class Backbone:
    """As much of a backbone as is read when a prompt is made."""

    hidden_size: int = HIDDEN
    max_positions: int | None = None
    layers: dict = dataclasses.field(default_factory=dict)
    through_cache: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    inside: Inside = dataclasses.field(default_factory=Inside)


def built(method, **options):
    """Return the embeddings that the method places on a new backbone."""
    return make_prompt(method, options, Backbone()).place(Backbone()).tokens.embeddings


class Installed:
    """A stand-in for the installed plugins; offers can be added, and are noticed like a new package."""

    def __init__(self):
        self.methods = []
        self.wrappers = []
        self.loads = []

    def offer(self, name, made, *, distribution="strangers", aliases=(), group=GROUP):
        def load():
            self.loads.append(name)
            if isinstance(made, BaseException):
                raise made
            return made

        offers = self.methods if group == GROUP else self.wrappers
        offers.append(Candidate(name, group, distribution, "1.5", load, aliases, f"About {name}."))


def check_all_work(registry, *extra):
    """Check that everything is listed and can be used, and that nothing else is listed."""
    assert sorted(registry.candidates()) == sorted([*BUILTINS, *extra])
    for name in [*BUILTINS, *extra]:
        assert registry.lookup(name).name == name
    for name in extra:
        assert built(registry.lookup(name)).shape == (TOKENS, HIDDEN)


def problems(registry, load=True):
    reports = {report.name: report.problem for report in registry.reports(load=load)}
    assert all("\n" not in problem for problem in reports.values() if problem)
    return {name: problem for name, problem in reports.items() if problem}


def as_class(first):
    """Return a method written as a class, whose hooks are static, or take no `self`, or take it."""
    if first == "static":

        class Written:
            """A class."""

            Config, Parameters, ALIASES = Config, Parameters, ("scribble",)
            build_virtual_tokens = staticmethod(build_virtual_tokens)
            inject = staticmethod(inject)
            merge = staticmethod(merge)

    elif first == "bare":

        class Written:
            Config, Parameters = Config, Parameters

            @zoo.hookimpl
            def build_virtual_tokens(parameters):  # noqa: N805
                return zoo.InputTokens(parameters.embeddings)

            @zoo.hookimpl
            def inject(tokens):  # noqa: N805
                return zoo.Placement(tokens)

            @zoo.hookimpl
            def merge(parameters):  # noqa: N805
                return zoo.InputTokens(parameters.embeddings)

    else:

        class Written:
            Config, Parameters = Config, Parameters

            @zoo.hookimpl
            def build_virtual_tokens(self, parameters):
                return zoo.InputTokens(parameters.embeddings)

            @zoo.hookimpl
            def inject(self, tokens):
                return zoo.Placement(tokens)

            @zoo.hookimpl
            def merge(self, parameters):
                return zoo.InputTokens(parameters.embeddings)

    return Written
