"""Plugins that break the contract in one way each, and the messages about them."""

import dataclasses

from sound_plugins import inject, plugin, scaling

import softprompt_zoo as zoo


@zoo.hookimpl
def asks_for_too_much(tokens, weather):
    return zoo.Placement(tokens)


@zoo.hookimpl
def wrapper_at_heart():
    return (yield)


@zoo.hookimpl(wrapper=True)
def around():
    return (yield)


@zoo.hookimpl(wrapper=True)
def around_nothing(parameters):
    return parameters


class Undecorated(zoo.MethodConfig):
    rank: int = 4


class TakesMore:
    def __init__(self, needed):
        pass

    @zoo.hookimpl
    def inject(self, tokens):
        return zoo.Placement(tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakesName(zoo.MethodConfig):
    name: str = "news"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HidesTasks(zoo.MethodConfig):
    tasks: tuple[str, ...] = ("qa",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HidesToDict(zoo.MethodConfig):
    to_dict: bool = False


BROKEN = {
    "import": (ImportError("no module\nnamed 'flash'"), r"ImportError: no module named 'flash'$"),
    "exit": (SystemExit(2), r"SystemExit: 2$"),
    "argument": (
        plugin(inject=asks_for_too_much),
        r"its hook 'inject' asks for 'weather'; it may ask for config, parameters, tokens, backbone, text$",
    ),
    "misspelt": (
        plugin(injct=inject),
        r"there is no hook 'injct'; did you mean 'inject'\? hooks are build_virtual_tokens, inject, merge, map_text",
    ),
    "missing": (plugin(build_virtual_tokens=None), r"it has no hook 'build_virtual_tokens'; a method must implement"),
    "unmarked": (plugin(merge=lambda parameters: None), r"its 'merge' is not marked softprompt_zoo.hookimpl, so"),
    "own wrapper": (
        plugin(build_virtual_tokens=around),
        r"its hook 'build_virtual_tokens' is marked as a wrapper; a method must implement it, or map_text or attend",
    ),
    "no generator": (
        plugin(build_virtual_tokens=around_nothing),
        r"its hook 'build_virtual_tokens' is marked as a wrapper, but is not a generator function: `yield` runs wh",
    ),
    "only wrappers": (scaling(2), r"it has only wrappers; publish it under the entry-point group .*\.wrappers'$"),
    "no config": (plugin(Config=None), r"its Config is None; expected a dataclass that extends softprompt_zoo.Method"),
    "config": (plugin(Config=dict), r"its Config is <class 'dict'>; expected a dataclass"),
    "undecorated": (plugin(Config=Undecorated), r"its Config is <class '.*Undecorated'>; expected a dataclass"),
    "option": (
        plugin(Config=TakesName),
        r"its Config has an option 'name'; 'method', 'model', 'name', 'self', 'wrappers' are arguments of the calls th",
    ),
    "hidden": (
        plugin(Config=HidesTasks),
        r"its Config has an option 'tasks', which hides MethodConfig.tasks; use num_tasks for",
    ),
    "hidden method": (
        plugin(Config=HidesToDict),
        r"its Config has an option 'to_dict', which hides MethodConfig.to_di",
    ),
    "recipe": (plugin(RECIPE={"steps": 3}), r"its RECIPE is \{'steps': 3\}; expected a softprompt_zoo.Recipe$"),
    "parameters": (plugin(Parameters=None), r"it has no Parameters; expected a torch.nn.Module that takes \(config, b"),
    "aliases": (plugin(ALIASES="fast"), r"its ALIASES is 'fast'; expected a tuple of strings$"),
    "plain": (plugin(HOLDS_PLAIN="all"), r"its HOLDS_PLAIN is 'all'; expected a class of virtual tokens$"),
    "peft": (plugin(PEFT_TYPES=(3,)), r"its PEFT_TYPES is \(3,\); expected a tuple of strings$"),
    "examples": (plugin(EXAMPLE_OPTIONS={}), r"its EXAMPLE_OPTIONS are \{\}; expected a tuple of two dictionaries$"),
    "constructor": (TakesMore, r"TypeError: .*needed"),
    "no plugin": (None, r"it has no hook"),
}
