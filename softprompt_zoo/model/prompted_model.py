"""The class of a model with prompts: its own class, and what it does differently with prompts."""

import functools
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from softprompt_zoo.backbone.eval_mode import attention_configs
from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.backbone.peft_layers import adapter_parameters
from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.backbone.quantized import keep_unpacked, trainable_view
from softprompt_zoo.backbone.replaced_forward import check_forward, note_prompted, rebind
from softprompt_zoo.backbone.stand_in import stand_in
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model.entry import Entry
from softprompt_zoo.model.forward import prompted_forward
from softprompt_zoo.model.generation import PromptedGeneration
from softprompt_zoo.model.head_per_row import check_resizable, with_heads
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.model.resolve import active_heads
from softprompt_zoo.sites.reach.attention_in_config import restore_attention
from softprompt_zoo.sites.request import NEW_ARGUMENTS, NOTHING, REQUEST_KEYWORD, Request
from softprompt_zoo.sites.stack import Stack, follow


class PromptedModel(PromptedGeneration):
    """What a prompted model does differently from its own class; mixed in front of it."""

    _softprompt_base: type[PreTrainedModel]
    _softprompt_stacks: Mapping[str, Stack]
    _softprompt_required_grad: dict[str, bool]
    prompts: Prompts

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Create what the model's own class creates; without arguments, an empty object, as copies need it."""
        return cls._softprompt_base(*args, **kwargs) if args or kwargs else super().__new__(cls)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model of the user's own class."""
        return cls._softprompt_base.from_pretrained(*args, **kwargs)

    @classmethod
    def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._softprompt_base._from_config(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        *,
        names: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save only the prompts; arguments as in transformers, plus `names` of the prompts to save."""
        from softprompt_zoo.files.hub.upload import push_folder
        from softprompt_zoo.files.save_arguments import check_arguments, take_push
        from softprompt_zoo.files.saving import save

        keywords = {"push_to_hub": push_to_hub, **kwargs}
        push = take_push(keywords, save_directory)
        chosen = check_arguments(names, keywords, self.prompts.keys())
        if is_main_process:
            save(self, self.prompts.saved(), save_directory, state_dict, chosen)
            if push is not None:
                push_folder(Path(save_directory), push)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        names: str | Sequence[str] | None = None,
        max_shard_size: Any = None,
        **how: Any,
    ) -> Any:
        """Push only the prompts and their model card.

        Args:
            repo_id: Name of the repository; created if it does not exist.
            names: The prompts to push; all by default.
            max_shard_size: Accepted but ignored: prompts are one file.
            **how: As in transformers: `commit_message`, `commit_description`, `private`, `token`, `revision`,
                `create_pr`, `tags`.

        Returns:
            What huggingface_hub returns about the commit.

        Raises:
            HubError: If the hub cannot be reached or refuses the push, or the repository holds a model.
        """
        from softprompt_zoo.files.hub.upload import Push, push_saved

        push = Push(repo_id=repo_id, **how)
        return push_saved(lambda folder: self.save_pretrained(folder, names=names), push)

    def print_trainable_parameters(self) -> None:
        """Print how much is trained, in PEFT's words."""
        trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        total = self.num_parameters()
        print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}")

    def set_attn_implementation(self, attn_implementation: Any, **kwargs: Any) -> None:
        """Choose the attention function that ours calls; if that fails, the model is unchanged."""
        configs = attention_configs(self)
        before = [config._attn_implementation_internal for config in configs]
        restore_attention(configs)
        try:
            super().set_attn_implementation(attn_implementation, **kwargs)
            for stack in self._softprompt_stacks.values():
                stack.reach.choose_attention(stack)
        except Exception:
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation_internal = implementation
            raise

    @property
    def hf_quantizer(self) -> Any:
        """The model's quantizer; `Trainer` asks it whether the model can be trained as it is, and prompts can."""
        if "hf_quantizer" not in self.__dict__:
            raise AttributeError("hf_quantizer")
        return trainable_view(self.__dict__["hf_quantizer"])

    @hf_quantizer.setter
    def hf_quantizer(self, quantizer: Any) -> None:
        self.__dict__["hf_quantizer"] = quantizer

    @hf_quantizer.deleter
    def hf_quantizer(self) -> None:
        del self.__dict__["hf_quantizer"]

    def train(self, mode: bool = True) -> Any:
        """Set the mode, and keep quantized weights in a form that lets gradients through."""
        super().train(mode)
        if part_of(self, "is_quantized", False) and any(prompt.is_trained for prompt in self.prompts.values()):
            keep_unpacked(self)
        return self

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Add a PEFT adapter that leaves the prompts alone."""
        from softprompt_zoo.files.weight_adapters import out_of_reach

        with out_of_reach(self):
            super().add_adapter(*args, **kwargs)

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Load a PEFT adapter that leaves the prompts alone."""
        from softprompt_zoo.files.weight_adapters import out_of_reach

        with out_of_reach(self):
            return super().load_adapter(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        moved = super()._apply(*args, **kwargs)
        self.prompts.backbone = follow(self.prompts.backbone, self._softprompt_stacks)
        return moved

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize the embedding table, and record its size."""
        check_resizable(self, {name: prompt.head for name, prompt in self.prompts.items()})
        table = super().resize_token_embeddings(*args, **kwargs)
        self.prompts.backbone = follow(self.prompts.backbone, self._softprompt_stacks)
        return table

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """Keys that a checkpoint omits on purpose: all but prompts and adapters. `Trainer` reads it when it resumes."""
        adapted = {name for name, _ in adapter_parameters(self)}
        keys = self.state_dict()
        return [key for key in keys if not key.startswith("prompts.") and key not in adapted]

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "forward":
            super().__setattr__(name, value)
            return
        missing = object()
        before = self.__dict__.get("forward", missing)
        self.__dict__["forward"] = value
        try:
            rebind_forward(self)
        except UnsupportedError:
            del self.__dict__["forward"]
            if before is not missing:
                self.__dict__["forward"] = before
            raise

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.prompts.entry = Entry.of(self, self._softprompt_stacks)
        check_forward(self)


@functools.cache
def prompted_class(base: Any) -> Any:
    """Create the subclass for a prompted model; it has the name of its base."""
    members = {"forward": _prompted_function(base, base.forward), "_softprompt_base": base}
    if hasattr(base, "prepare_inputs_for_generation"):  # generate reads from its signature what the model takes

        @functools.wraps(base.prepare_inputs_for_generation)
        def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
            return PromptedModel.prepare_inputs_for_generation(self, *args, **kwargs)

        members["prepare_inputs_for_generation"] = prepare
    return stand_in(base, prompted_class, PromptedModel, **members)


def rebind_forward(model: Any) -> None:
    """Make a custom forward that is set on a prompted model itself end in the prompted one.

    Args:
        model: The model. Changed in place.

    Raises:
        UnsupportedError: If it cannot. Nothing is changed.
    """
    kind = type(model)
    base = kind._softprompt_base

    def wrap(function: Any) -> Any:
        return kind.forward if function is base.forward else _prompted_function(base, function)

    rebind(model, wrap)


def _prompted_function(base: Any, function: Any) -> Any:
    """Create the prompted forward of a class, or of a function that replaced its forward on a model."""
    signature = inspect.signature(base.forward)
    parameters = [*signature.parameters.values()]
    takes_keywords = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    new = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in NEW_ARGUMENTS]
    position = len(parameters) - 1 if takes_keywords else len(parameters)
    names = [*signature.parameters][1:]

    @functools.wraps(function)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        if not hasattr(self, "_softprompt_stacks"):  # the caller kept this method, and the prompts were detached
            return function(self, **kwargs)
        if self.prompts.entry.is_stack:
            return _run_stack(self, function, kwargs)
        request = _take_request(self.prompts, kwargs)
        if takes_keywords:
            return prompted_forward(self, function, request, kwargs)
        if request is not NOTHING:
            raise UnsupportedError(f"{base.__name__}.forward takes no additional keywords; use model.prompts.activate")
        return function(with_heads(self, active_heads(self.prompts), None), **kwargs)

    forward.__signature__ = signature.replace(parameters=parameters[:position] + new + parameters[position:])  # type: ignore[attr-defined]
    return note_prompted(forward)


def _run_stack(model: Any, function: Any, kwargs: dict[str, Any]) -> Any:
    """Run the forward of a model that is a stack itself, where hooks insert the prompts."""
    if STATE_KEYWORD not in kwargs:
        return model(**kwargs)  # `forward` was called directly, bypassing the hooks
    [stack] = [stack for stack in model._softprompt_stacks.values() if stack.module is model]
    return stack.reach.run(model, function, kwargs)


def _take_request(prompts: Prompts, kwargs: dict[str, Any]) -> Request:
    """Take what a call asks for out of its arguments, if `generate` has not done so."""
    request: Request | None = kwargs.pop(REQUEST_KEYWORD, None)
    given = {}
    for name in NEW_ARGUMENTS:  # a comprehension could not be compiled here
        value = kwargs.pop(name, None)
        if value is not None:
            given[name] = value
    if request is not None:
        return request
    return Request.read(given, prompts.keys()) if given else NOTHING
