"""The prompts of one model: a mapping from name to prompt, and what the stacks ask of it."""

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone import Backbone, Stack
from softprompt_zoo.config import MethodConfig
from softprompt_zoo.errors import PluginError, PromptExistsError, UnknownPromptError, UnsupportedError
from softprompt_zoo.registry import LoadedMethod, registry
from softprompt_zoo.sites.arrange import Call, Combination, select
from softprompt_zoo.sites.input_embeddings import Layout
from softprompt_zoo.sites.shared_pass import Prefix, causal_prefix
from softprompt_zoo.tokens import (
    InputTokens,
    Placement,
    VirtualTokens,
    check_virtual_tokens,
    from_tensors,
    to_tensors,
)

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
KEPT_PREFIXES = 64
"""Combinations whose computed keys and values are kept in eval mode."""


class MergedTokens(nn.Module):
    """Plain virtual tokens, as a merged or imported prompt holds them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tensors = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in tensors.items()})

    def tokens(self, backbone: Backbone) -> VirtualTokens:
        """Return them as virtual tokens; gradients flow to the parameters."""
        return from_tensors(dict(self.tensors.items()), backbone)


class Prompt(nn.Module):
    """One prompt of a model."""

    def __init__(self, method: LoadedMethod, config: MethodConfig, learned: nn.Module) -> None:
        super().__init__()
        self.method = method.name
        """Canonical name of its method."""
        self.config = config
        """What the user chose."""
        self.learned = learned
        """The method's `Parameters`, or the plain tokens of a merged prompt."""
        self._loaded: LoadedMethod | None = method

    @property
    def is_merged(self) -> bool:
        """Whether the training scaffold is gone."""
        return isinstance(self.learned, MergedTokens)

    @property
    def num_virtual_tokens(self) -> int:
        """Virtual tokens."""
        return self.config.num_virtual_tokens

    @property
    def num_parameters(self) -> int:
        """Numbers it holds."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def loaded(self) -> LoadedMethod:
        """Its method; looked up again after unpickling, for plugins are not pickled."""
        if self._loaded is None:
            self._loaded = registry.lookup(self.method)
        return self._loaded

    def place(self, backbone: Backbone, task_ids: Tensor | None = None) -> Placement:
        """Build the virtual tokens and say where they go.

        Args:
            backbone: Sizes of the model.
            task_ids: `(rows,)`, for methods that have tasks.

        Returns:
            The placement; gradients flow to the parameters.

        Raises:
            PluginError: If a hook breaks its contract.
        """
        method, learned = self.loaded, self.learned
        if isinstance(learned, MergedTokens):
            tokens = learned.tokens(backbone)
        else:
            hook = "build_virtual_tokens"
            tokens = method.call(hook, config=self.config, parameters=learned, backbone=backbone, task_ids=task_ids)
            check_virtual_tokens(tokens, backbone, self.num_virtual_tokens, method.describe(hook))
        placement = method.call("inject", config=self.config, parameters=learned, tokens=tokens, backbone=backbone)
        if not isinstance(placement, Placement):
            found = type(placement).__name__
            raise PluginError(f"{method.describe('inject')} returned {found}; expected a softprompt_zoo.Placement")
        return placement

    @torch.no_grad()
    def merged_tokens(self, backbone: Backbone) -> VirtualTokens:
        """Return the plain tokens that the prompt has in eval mode, as copies.

        Args:
            backbone: Sizes of the model.

        Returns:
            The tokens, without gradient.

        Raises:
            PluginError: If the hook breaks its contract.
        """
        if isinstance(self.learned, MergedTokens):
            tokens = self.learned.tokens(backbone)
        else:
            was_training = self.learned.training
            self.learned.eval()
            tokens = self.loaded.call("merge", config=self.config, parameters=self.learned, backbone=backbone)
            self.learned.train(was_training)
            check_virtual_tokens(tokens, backbone, self.num_virtual_tokens, self.loaded.describe("merge"))
        copies = {name: tensor.detach().clone() for name, tensor in to_tensors(tokens).items()}
        return from_tensors(copies, backbone)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def extra_repr(self) -> str:
        """Show method and size where torch prints the model."""
        return f"method={self.method!r}, num_virtual_tokens={self.num_virtual_tokens}"


def make_prompt(method: LoadedMethod, options: Mapping[str, Any], backbone: Backbone) -> Prompt:
    """Make a prompt and check that its hooks keep their contract on this backbone. Nothing is attached.

    Args:
        method: Its method.
        options: What the user chose.
        backbone: Sizes of the model.

    Returns:
        The prompt, with its start values.

    Raises:
        TypeError: If an option is unknown or of a wrong type.
        ValueError: If an option has a value that is not allowed, or the prompt is too long for the model.
        PluginError: If a hook breaks its contract.
        UnsupportedError: If the method cannot work on this model.
    """
    config = method.config_class.from_options(dict(options))
    count = config.num_virtual_tokens
    if backbone.max_positions is not None and count >= backbone.max_positions:
        raise UnsupportedError(
            f"num_virtual_tokens is {count}, which leaves no room for text in the model's {backbone.max_positions} "
            f"positions; choose at most {backbone.max_positions - 1}"
        )
    learned = method.parameters_class(config, backbone)
    if backbone.device.type != "meta":
        _initialize(method, config, learned, backbone)
    prompt = Prompt(method, config, learned)
    with torch.no_grad():
        prompt.place(backbone)
    return prompt


def _initialize(method: LoadedMethod, config: MethodConfig, learned: Any, backbone: Backbone) -> None:
    start = getattr(config, "init", None)
    if not isinstance(start, Prompt):
        learned.initialize(config, backbone)
        return
    if not hasattr(learned, "start_from"):
        raise UnsupportedError(f"method {method.name!r} cannot start from another prompt; choose another init")
    if start.num_virtual_tokens != config.num_virtual_tokens:
        raise ValueError(
            f"init is a prompt of {start.num_virtual_tokens} virtual tokens; set num_virtual_tokens to that, "
            f"not {config.num_virtual_tokens}"
        )
    learned.start_from(start.merged_tokens(backbone))


@dataclasses.dataclass
class Generation:
    """The prompts of one `generate`, for the forwards inside it."""

    host: "Prompts"
    combinations: list[Combination] | None
    """One per row the user gave, or `None` for the active ones."""
    task_ids: Tensor | None
    layout: Layout | None = None
    """Where the encoder's text went."""


_GENERATION: contextvars.ContextVar[Generation | None] = contextvars.ContextVar("softprompt_generation", default=None)


class Prompts(nn.Module):
    """The prompts of a model, by name, in the order they were added; `model.prompts`."""

    def __init__(self, backbone: Backbone, architecture: str = "", base_name: str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        """Sizes of the model."""
        self.architecture = architecture
        """Name of the model's class."""
        self.base_name = base_name
        """Name or path the model was loaded from, if known."""
        self._active: Combination = ()
        self._is_disabled = False
        self._forget()

    def _forget(self) -> None:
        self._placed: dict[str, tuple[Any, Placement]] = {}
        self._kept: dict[tuple[Combination, ...], tuple[list[Placement], list[Tensor], Any, Prefix]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_placed": {}, "_kept": {}}

    def __getitem__(self, name: str) -> Prompt:
        if name not in self._modules:
            raise UnknownPromptError(f"no prompt {name!r}; the model has {', '.join(map(repr, self)) or 'none'}")
        return self._modules[name]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def keys(self) -> list[str]:
        """Return the names."""
        return list(self._modules)

    def values(self) -> list[Prompt]:
        """Return the prompts."""
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, Prompt]]:
        """Return names and prompts."""
        return [(name, self[name]) for name in self]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a prompt, or `default` if there is none of that name."""
        return self._modules.get(name, default)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the prompts that rows see when a call names none, in order."""
        return self._active

    def add(self, name: str, method: Any, **options: Any) -> Prompt:
        """Add a prompt; it is not activated.

        Args:
            name: Its name: letters, digits, `_` and `-`.
            method: A method's name, or what `get_method` returns.
            **options: Options of the method.

        Returns:
            The prompt.

        Raises:
            PromptExistsError: If the name is taken.
            ValueError: If the name or an option is not allowed.
        """
        self.check_name(name)
        options = {**getattr(method, "options", {}), **options}
        loaded = registry.lookup(getattr(method, "name", method))
        prompt = make_prompt(loaded, options, self.backbone)
        self.insert(name, prompt)
        return prompt

    def check_name(self, name: str) -> None:
        """Refuse a name that is taken or not allowed."""
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"prompt name is {name!r}; expected letters, digits, '_' and '-'")
        if name in self._modules:
            raise PromptExistsError(
                f"the model already has a prompt {name!r}; choose another name, or remove that one first"
            )

    def insert(self, name: str, prompt: Prompt) -> None:
        """Put a ready prompt under a free name."""
        self.check_name(name)
        prompt.train(self.training)
        # Straight into the dictionary: `add_module` refuses names such as "train" that are attributes here.
        self._modules[name] = prompt

    def remove(self, name: str) -> None:
        """Remove a prompt.

        Args:
            name: Its name.

        Raises:
            UnknownPromptError: If there is none of that name.
        """
        self[name]
        del self._modules[name]
        self._active = tuple(other for other in self._active if other != name)
        self._forget()

    def activate(self, *names: str) -> None:
        """Choose what rows see when a call names no prompts; their tokens stand in this order.

        Args:
            *names: Names of prompts, each once; none to activate nothing.

        Raises:
            UnknownPromptError: If one is not there.
            ValueError: If one stands twice.
        """
        self._active = select([list(names)], self.keys(), ()).combinations[0]

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Use the model as if it had no prompts, bit for bit, within the context."""
        before, self._is_disabled = self._is_disabled, True
        try:
            yield
        finally:
            self._is_disabled = before

    def resolve(self, prompts: Any, task_ids: Tensor | None, is_decoding: bool) -> Call:
        """Build the prompts of one forward.

        Args:
            prompts: As `forward` takes it.
            task_ids: `(rows,)`, for methods that have tasks.
            is_decoding: Whether text is in the cache already, so that built tokens may be reused.

        Returns:
            The call; its selection is empty where no prompt is to be seen.
        """
        generation = None if torch.compiler.is_compiling() else _GENERATION.get()
        if generation is not None and generation.host is self and prompts is None:
            prompts = generation.combinations
            task_ids = generation.task_ids if task_ids is None else task_ids
        selection = select(None, (), ()) if self._is_disabled else select(prompts, self.keys(), self._active)
        if selection.rows is not None:
            selection.rows = selection.rows.to(self._device())
        placements = {name: self._place(name, task_ids, is_decoding) for name in selection.names}
        return Call(selection, placements, self.training)

    def prefix(self, stack: Stack, call: Call, is_decoding: bool) -> Prefix:
        """Turn a causal call's prompts into keys and values, or return the kept ones if nothing changed.

        Args:
            stack: The causal stack.
            call: The prompts of this forward.
            is_decoding: Whether text is in the cache already; nothing is compared then but identity.

        Returns:
            Keys and values per combination.
        """
        placements = [*call.placements.values()]
        has_pass = any(isinstance(placement.tokens, InputTokens) for placement in placements)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or call.is_training or not has_pass:
            return causal_prefix(stack, call)
        key = call.selection.combinations
        weights = None if is_decoding else [(p.data_ptr(), p._version) for p in stack.module.parameters()]
        kept = self._kept.get(key)
        if kept is not None:
            is_same = all(a is b for a, b in zip(kept[0], placements, strict=True))
            if is_decoding and is_same:
                return kept[3]
            if not is_decoding and kept[2] == weights and _equal(kept[1], _tensors(placements)):
                self._kept[key] = (placements, kept[1], weights, kept[3])
                return kept[3]
        prefix = causal_prefix(stack, call)
        copies = [tensor.detach().clone() for tensor in _tensors(placements)]
        self._kept.pop(key, None)
        while len(self._kept) >= KEPT_PREFIXES:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = (placements, copies, weights, prefix)
        return prefix

    def keep_layout(self, layout: Layout) -> None:
        """Remember where an encoder's text went, for a `generate` that returns the encoder's states."""
        generation = None if torch.compiler.is_compiling() else _GENERATION.get()
        if generation is not None and generation.host is self and self.backbone.family == "encoder_decoder":
            generation.layout = layout

    def _place(self, name: str, task_ids: Tensor | None, is_decoding: bool) -> Placement:
        prompt = self[name]
        is_changing = torch.is_grad_enabled() or self.training or task_ids is not None
        if is_changing or torch.compiler.is_compiling():
            return prompt.place(self.backbone, task_ids)
        signature = [(p.data_ptr(), p._version, p.dtype) for p in prompt.parameters()]
        if is_decoding and name in self._placed and self._placed[name][0] == signature:
            return self._placed[name][1]
        placement = prompt.place(self.backbone, task_ids)
        self._placed[name] = (signature, placement)
        return placement

    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.parameters()), self.backbone.device)


Mapping.register(Prompts)


def _tensors(placements: list[Placement]) -> list[Tensor]:
    return [tensor for placement in placements for tensor in to_tensors(placement.tokens).values()]


def _equal(before: list[Tensor], now: list[Tensor]) -> bool:
    return len(before) == len(now) and all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(before, now, strict=True)
    )
