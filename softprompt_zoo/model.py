"""Attaching prompts to a model and taking them off: the model stays the user's own, of its own class."""

import functools
import inspect
import os
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt_zoo import adapters, peft_wrapper
from softprompt_zoo.backbone import Backbone, Stack, attention_configs, follow
from softprompt_zoo.checkpoints import save
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.forward import prompted_forward
from softprompt_zoo.generation import PromptedGeneration
from softprompt_zoo.probe import KEYWORD
from softprompt_zoo.prompt import Prompt
from softprompt_zoo.prompts import Prompts
from softprompt_zoo.sites.adapter_layers import original_name
from softprompt_zoo.sites.attention import base_implementation, prompted_implementation
from softprompt_zoo.sites.carried import adopt, release, run
from softprompt_zoo.sites.stack import bind, unbind
from softprompt_zoo.sites.task_heads import check_resizable, with_heads
from softprompt_zoo.sites.words import mark_sites, unmark_sites

NEW_ARGUMENTS = ("prompts", "task_ids", "soft_slots")
"""What a prompted model's forward takes beyond its own class's."""

_ATTACHED: "weakref.WeakSet[PreTrainedModel]" = weakref.WeakSet()


class PromptedModel(PromptedGeneration):
    """What a prompted model does differently from its own class; mixed in front of it."""

    _softprompt_base: type[PreTrainedModel]
    _softprompt_stacks: Mapping[str, Stack]
    _softprompt_required_grad: dict[str, bool]
    prompts: Prompts

    def save_pretrained(  # noqa: D102
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        if push_to_hub:
            raise UnsupportedError("save_pretrained(push_to_hub=True) is not supported; call model.push_to_hub(name)")
        if is_main_process:
            save(self, save_directory, state_dict)

    def set_attn_implementation(self, attn_implementation: Any, **kwargs: Any) -> None:  # noqa: D102
        configs = attention_configs(self)  # type: ignore[arg-type]
        before = [config._attn_implementation_internal for config in configs]
        _restore_implementation(configs)
        try:
            super().set_attn_implementation(attn_implementation, **kwargs)  # type: ignore[misc]
            _prompt_implementation(self._softprompt_stacks)
        except Exception:
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation_internal = implementation
            raise

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        with adapters.out_of_reach(self):  # type: ignore[arg-type]
            super().add_adapter(*args, **kwargs)  # type: ignore[misc]

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        with adapters.out_of_reach(self):  # type: ignore[arg-type]
            return super().load_adapter(*args, **kwargs)  # type: ignore[misc]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        moved = super()._apply(*args, **kwargs)  # type: ignore[misc]
        self.prompts.backbone = follow(self.prompts.backbone, self._softprompt_stacks)
        return moved

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        check_resizable(self, {name: prompt.head for name, prompt in self.prompts.items()})
        table = super().resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]
        self.prompts.backbone = follow(self.prompts.backbone, self._softprompt_stacks)
        return table

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """What a checkpoint leaves out on purpose: all but prompts and adapters. `Trainer` reads it when it resumes."""
        adapted = {name for name, _ in adapters.parameters(self)}  # type: ignore[arg-type]
        keys = self.state_dict()  # type: ignore[attr-defined]
        return [key for key in keys if not key.startswith("prompts.") and key not in adapted]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle would look the class up by its name and find the user's.
        return _rebuild, (type(self)._softprompt_base,), self.__dict__.copy()


def is_attached(model: object) -> bool:
    """Say whether a model, or the model inside a `PeftModel`, has prompts."""
    return isinstance(adapters.model_inside(model), PromptedModel)


def attach(
    model: PreTrainedModel, backbone: Backbone, stacks: Mapping[str, Stack], prompts: Mapping[str, Prompt]
) -> None:
    """Freeze a model and put prompts into it; the first step that changes it, and it cannot fail halfway.

    Args:
        model: The user's model, or a `PeftModel` around it. Changed in place; PEFT's adapters train on.
        backbone: From `inspect_backbone`.
        stacks: From `inspect_backbone`.
        prompts: Ready prompts by name; none is activated.
    """
    peft_wrapper.wrap(model)
    model = adapters.model_inside(model)
    host = Prompts(backbone, type(model).__name__, getattr(model.config, "_name_or_path", None) or None)
    host.train(model.training)
    for name, prompt in prompts.items():
        host.insert(name, prompt)
    prompted: Any = model
    prompted._softprompt_required_grad = {name: p.requires_grad for name, p in _named_parameters(model)}
    prompted._softprompt_stacks = dict(stacks)
    adapted = {name for name, _ in adapters.parameters(model)}
    for name, parameter in model.named_parameters():
        if name not in adapted:
            parameter.requires_grad_(False)
    _prompt_implementation(stacks)
    for stack in stacks.values():
        mark_sites(stack)
        if stack.module is not model:  # the prompted class does for the model itself what this does
            adopt(stack)
        bind(backbone.family, stack, host)
    model.add_module("prompts", host)
    prompted.__class__ = _prompted_class(prompted.__class__)
    _ATTACHED.add(model)


def prompts_of(model: Any, action: str) -> Prompts:
    """Return a model's prompts.

    Args:
        model: Any model.
        action: What is to be done with them, for the message.

    Returns:
        The prompts.

    Raises:
        UnsupportedError: If it has none.
    """
    if not is_attached(model):
        raise UnsupportedError(
            f"{type(model).__name__} has no prompts to {action}; attach one with zoo.get_method(name)(model)"
        )
    host: Prompts = adapters.model_inside(model).prompts
    return host


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Take all prompts off a model.

    Args:
        model: A model with prompts. Changed in place.

    Returns:
        The same model as it came: class, outputs, `requires_grad`, `state_dict` keys, attention implementation.

    Raises:
        UnsupportedError: If it has no prompts.
    """
    given: Any = model
    model = adapters.model_inside(given)
    prompts_of(model, "detach")
    stacks = model._softprompt_stacks
    required_grad = model._softprompt_required_grad
    for stack in stacks.values():
        unbind(stack)
        unmark_sites(stack)
    del model.prompts
    model.__class__ = model._softprompt_base
    for stack in stacks.values():
        release(stack)
    del model._softprompt_stacks, model._softprompt_required_grad
    for name, parameter in _named_parameters(model):
        if name in required_grad:  # else it came later, with an adapter
            parameter.requires_grad_(required_grad[name])
    _ATTACHED.discard(model)
    # Two models may share one config object; the other one's prompts still need our attention function.
    shared = {id(config) for other in _ATTACHED for config in attention_configs(other)}
    _restore_implementation([config for config in attention_configs(model) if id(config) not in shared])
    peft_wrapper.unwrap(given)
    return given


def _named_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """List parameters by names that stay when an adapter is put on; the parameters themselves may be replaced."""
    return [(original_name(name), p) for name, p in model.named_parameters(remove_duplicate=False)]


def _prompt_implementation(stacks: Mapping[str, Stack]) -> None:
    reached = [stack.module for stack in stacks.values() if not stack.through_cache]
    configs = [config for module in reached for config in attention_configs(module)]
    names = [prompted_implementation(base_implementation(config._attn_implementation)) for config in configs]
    for config, name in zip(configs, names, strict=True):
        config._attn_implementation_internal = name


def _restore_implementation(configs: list[Any]) -> None:
    for config in configs:
        config._attn_implementation_internal = base_implementation(config._attn_implementation_internal or "") or None


@functools.cache
def _prompted_class(base: Any) -> Any:
    """Make the subclass that a prompted model gets; it answers to the name of its base."""
    signature = inspect.signature(base.forward)
    parameters = [*signature.parameters.values()]
    takes_keywords = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    new = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in NEW_ARGUMENTS]
    position = len(parameters) - 1 if takes_keywords else len(parameters)
    names = [parameter.name for parameter in parameters[1:]]

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        if KEYWORD in kwargs:
            is_carried = any([stack.is_carried for stack in self._softprompt_stacks.values()])
            return run(self, base, (), kwargs) if is_carried else base.forward(self, **kwargs)
        if any([stack.module is self for stack in self._softprompt_stacks.values()]):
            return self(**kwargs)  # `forward` was called by its name, past the hooks that bring the prompts in
        own = {}
        for name in NEW_ARGUMENTS:  # a comprehension here could not be compiled
            own[name] = kwargs.pop(name, None)
        if not takes_keywords:
            if any(value is not None for value in own.values()):
                raise UnsupportedError(f"{base.__name__}.forward takes no further keywords; use model.prompts.activate")
            return base.forward(with_heads(self, self.prompts.active_heads(), None), **kwargs)
        return prompted_forward(self, base, own, kwargs)

    forward.__signature__ = signature.replace(parameters=parameters[:position] + new + parameters[position:])  # type: ignore[attr-defined]
    members = {
        "forward": forward,
        "_softprompt_base": base,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    if hasattr(base, "prepare_inputs_for_generation"):  # generate reads from its signature what the model takes

        @functools.wraps(base.prepare_inputs_for_generation)
        def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
            return PromptedModel.prepare_inputs_for_generation(self, *args, **kwargs)

        members["prepare_inputs_for_generation"] = prepare
    return type(base.__name__, (PromptedModel, base), members)


def _rebuild(base: Any) -> Any:
    cls = _prompted_class(base)
    return cls.__new__(cls)
