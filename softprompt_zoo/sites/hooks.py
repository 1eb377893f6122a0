"""The two hooks on each stack: they insert prompts before its forward, and remove virtual positions after it.

Three things meet here, each decided when the prompts were attached. The model's *prompts* determine which of them the
rows of this call see (`Call`). The stack's *kind* (`sites.stacks`) decides where they go relative to its text, and
builds the state of the call (`CallState`). Its *reach* (`sites.reach`) passes this state to the attention.
"""

import dataclasses
import inspect
from typing import Any, Protocol

from torch import Tensor

from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.backbone.running_forward import check_entry
from softprompt_zoo.shapes import Shaped
from softprompt_zoo.sites.call import CALL_KEYWORD, Call
from softprompt_zoo.sites.checkpointing import anchor
from softprompt_zoo.sites.positions import given_cache, past_length
from softprompt_zoo.sites.request import NEW_ARGUMENTS, Request
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.stack_facts import BINDING_ATTRIBUTE
from softprompt_zoo.sites.stacks.kind import StackKind
from softprompt_zoo.sites.stacks.kinds import kind_of
from softprompt_zoo.sites.state import CallState


class ModelPrompts(Protocol):
    """The interface to the model's prompts that the hooks need."""

    def keys(self) -> list[str]:
        """Return their names."""

    def resolve(self, request: Request, cache: Any, rows: int | None = None) -> Call:
        """Build the prompts of one forward, whose rows are given if they were not checked yet."""


@dataclasses.dataclass
class Binding:
    """The link between a stack and the prompts, stored on the stack's module."""

    stack: Stack
    kind: StackKind
    prompts: ModelPrompts
    argument_names: list[str]
    """Names of the forward's positional arguments, in order."""
    reads: str
    """The argument with the stack's text if it does not get embeddings."""
    implementation: str
    """Our attention implementation, as named in its config."""
    handles: list[Any] = dataclasses.field(default_factory=list)

    def call(self, kwargs: dict[str, Any], rows: int | None) -> Call:
        """Remove the prompts of a call from the stack's arguments and return them.

        Args:
            kwargs: The arguments. Changed in place.
            rows: Rows of the stack's text; `None` if it has none.

        Returns:
            The prompts: those that the model's forward built, or else what the arguments themselves ask for.
        """
        built: Call | None = kwargs.pop(CALL_KEYWORD, None)
        if built is not None:
            return built
        asked = {name: kwargs.pop(name, None) for name in NEW_ARGUMENTS}
        call = self.prompts.resolve(Request.read(asked, self.prompts.keys()), given_cache(kwargs), rows)
        if not call.is_empty:
            check_entry(self.prompts)
        return call


def bind(family: str, stack: Stack, prompts: ModelPrompts) -> None:
    """Put the hooks on a stack.

    Args:
        family: The backbone's family.
        stack: The stack; its module is changed.
        prompts: The model's prompts.

    Raises:
        RuntimeError: If it already has hooks.
    """
    if stack.has_hooks:
        raise RuntimeError(f"{type(stack.module).__name__} already has prompt hooks")
    names = list(inspect.signature(type(stack.module).forward).parameters)[1:]
    reads = "input_features" if stack.is_audio_encoder else "input_ids"
    binding = Binding(stack, kind_of(family, stack), prompts, names, reads, stack.module.config._attn_implementation)
    binding.handles = [
        stack.module.register_forward_pre_hook(before_forward, with_kwargs=True),
        stack.module.register_forward_hook(after_forward, with_kwargs=True),
    ]
    setattr(stack.module, BINDING_ATTRIBUTE, binding)


def unbind(stack: Stack) -> None:
    """Remove the hooks from a stack."""
    for handle in stack.module.__dict__.pop(BINDING_ATTRIBUTE).handles:
        handle.remove()


def before_forward(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Insert the prompts into one call of a stack. A forward pre-hook."""
    if STATE_KEYWORD in kwargs:  # a run within a forward or a trial, which brings its own state
        return None
    binding: Binding = getattr(module, BINDING_ATTRIBUTE)
    stack = binding.stack
    kwargs = {**dict(zip(binding.argument_names, args, strict=False)), **kwargs}
    text = kwargs.get("inputs_embeds")
    if text is None:
        text = kwargs.get(binding.reads)
    call = binding.call(kwargs, None if text is None else text.shape[0])
    call.trace.was_seen = True
    if module.config._attn_implementation != binding.implementation:
        stack.reach.follow_attention(stack, binding.implementation)
    if text is None or call.is_empty:
        return (), _without_prompts(module, kwargs)
    kwargs, state = _prepare(binding, call.for_batch(text.shape[0]), kwargs, text)
    if module.training:
        kwargs = anchor(module, stack, state, kwargs)
    if stack.reach.uses_cache:
        kwargs = stack.reach.enter(stack, state, kwargs)
    state.is_tuple_wanted = not returns_dict(module.config, kwargs)
    return (), {**kwargs, **({"return_dict": True} if state.is_tuple_wanted else {}), STATE_KEYWORD: state}


def _prepare(
    binding: Binding, call: Call, kwargs: dict[str, Any], text: Shaped[Tensor, "rows ..."]
) -> tuple[dict[str, Any], CallState]:
    """Let prompts read and change the text, if some do, and insert them."""
    past = past_length(given_cache(kwargs))
    if call.readers or call.maps:
        call, kwargs, text = binding.kind.read(binding.stack, call, kwargs, text, past)
    return binding.kind.prepare(binding.stack, call, kwargs, text, past)


def _without_prompts(module: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    # The keyword tells the prompted class of a model that is itself a stack that the hook has run.
    return {**kwargs, STATE_KEYWORD: None} if hasattr(type(module), "_softprompt_base") else kwargs


def after_forward(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Remove virtual positions from a stack's output. A forward hook."""
    state = kwargs.get(STATE_KEYWORD)
    if not isinstance(state, CallState) or state.call is None:  # the hook before the forward inserted nothing
        return None
    binding: Binding = getattr(module, BINDING_ATTRIBUTE)
    stack = binding.stack
    if stack.reach.uses_cache:
        output = stack.reach.leave(stack, output, kwargs)
    cache = output.get(stack.cache_argument)
    if cache is not None and state.call.decoding is not None:
        state.call.decoding.stay_with(cache)
    output = binding.kind.finish(stack, output, state, state.call)
    return output.to_tuple() if state.is_tuple_wanted else output


def returns_dict(config: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a forward with these arguments returns a ModelOutput."""
    given = kwargs.get("return_dict")
    return bool(getattr(config, "return_dict", True) if given is None else given)
