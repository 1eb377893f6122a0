"""One prompt: its method, its options and its trained parameters."""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.options import MethodConfig, Options
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.prompt.branch import PromptBranch
from softprompt_zoo.prompt.sample_text import sample_text
from softprompt_zoo.prompt.token_checks import check_placement, check_pooling, refuse_tasks
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.checks import check_shape
from softprompt_zoo.tokens.kinds import PlainTokens, check_virtual_tokens, from_tensors, narrowed
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.rows import split_rows
from softprompt_zoo.tokens.text import Text
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


class ModelPrompts(Protocol):
    """What a prompt knows about the other prompts of its model."""

    backbone: Backbone
    """Sizes of their model."""


class Prompt(nn.Module):
    """One prompt of a model."""

    def __init__(
        self, method: LoadedMethod, config: MethodConfig, learned: nn.Module, head: nn.ModuleDict | None = None
    ) -> None:
        super().__init__()
        self.method = method.name
        """Canonical name of its method."""
        self.config = config
        """The options that the user chose."""
        self.learned = learned
        """The method's `Parameters`, or the plain tokens of a merged prompt."""
        self.head = head
        """The task head that is trained with it, a copy of the model's; `None` if its rows use the model's own."""
        self.wrappers: Mapping[str, Options] = {}
        """The wrappers that the user chose for it, by name, with their options."""
        self.weight = 1.0
        """Factor on the share of attention that its tokens get; `model.prompts.set_weight` sets it."""
        self.beyond_tokens = None if self.is_merged else method.beyond_tokens
        """What it does beyond constant virtual tokens; `None` for nothing."""
        self._makes_rows = self.beyond_tokens is not None and self.beyond_tokens.makes_rows
        self._constant = frozenset(name for name, one in learned.named_parameters() if not one.requires_grad)
        """Names of the parameters that its method never trains."""
        self._loaded: LoadedMethod | None = method
        self._absent = method.absent
        self._model_prompts: weakref.ref[ModelPrompts] | None = None
        self._passed: tuple[Backbone | None, dict[Hashable, Any]] = (None, {})
        """The backbone for which the hooks' results were checked, and the outcome of the checks for each form."""

    @property
    def is_merged(self) -> bool:
        """Whether the training scaffold has been removed."""
        return isinstance(self.learned, PlainTokens)

    def merge_into(self, tokens: VirtualTokens) -> None:
        """Replace what its method has trained by plain tokens."""
        self.learned = PlainTokens(tokens.tensors()).train(self.training)
        self.beyond_tokens, self._makes_rows, self._constant = None, False, frozenset()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Make it trainable or not, except for the parameters that its method never trains."""
        super().requires_grad_(requires_grad)
        for name in self._constant:
            self.learned.get_parameter(name).requires_grad_(False)
        return self

    @property
    def num_virtual_tokens(self) -> int:
        """Number of virtual tokens."""
        return self.config.num_virtual_tokens

    @property
    def num_parameters(self) -> int:
        """Number of its parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def is_trained(self) -> bool:
        """Whether one of its parameters requires gradients."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def backbone(self) -> Backbone | None:
        """Sizes of the model that it is on or was made for; `None` if there is none, or it no longer exists."""
        return None if self.model_prompts is None else self.model_prompts.backbone

    @property
    def model_prompts(self) -> ModelPrompts | None:
        """The prompts of that model."""
        return None if self._model_prompts is None else self._model_prompts()

    def set_model_prompts(self, model_prompts: ModelPrompts) -> None:
        """Remember the prompts of a model without keeping them alive, copying or pickling them."""
        self._model_prompts = weakref.ref(model_prompts)

    @property
    def loaded(self) -> LoadedMethod:
        """Its method; looked up again after unpickling, since plugins are not pickled."""
        if self._loaded is None and self._absent is not None:
            self._loaded = self._absent.loaded(registry.wrappers)
        elif self._loaded is None:
            self._loaded = registry.lookup(self.method)
        return self._loaded

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook of its method; like `LoadedMethod.call`, with its own config and parameters."""
        loaded = self._loaded or self.loaded
        arguments |= {"config": self.config, "parameters": self.learned}
        if not loaded.wrappers.plugins:
            return loaded.call_own(hook, arguments)
        return loaded.call(hook, self.wrappers, **arguments)

    def has(self, hook: str) -> bool:
        """Return whether its method, or a wrapper around it, has an optional hook."""
        return self.loaded.has(hook, self.wrappers)

    def place(self, backbone: Backbone) -> Placement:
        """Build the virtual tokens and place them; for a prompt that reads the text, those of a sample.

        Gradients flow to the parameters. A hook that breaks its contract raises a `PluginError`.
        """
        beyond = self.beyond_tokens
        if beyond is None or not beyond.reads_text:
            return self.placed(backbone, None)
        source = self.loaded.describe("build_virtual_tokens" if beyond.makes_rows else "inject")
        refuse_tasks(self.config.tasks, source)
        return self.place_rows(backbone, sample_text(backbone))[0]

    def place_rows(self, backbone: Backbone, text: Text) -> list[Placement]:
        """Build the virtual tokens of a prompt that reads the text.

        Args:
            backbone: Sizes of the model.
            text: What the rows say; `None` only if it does not read the text.

        Returns:
            A placement for each row, or a single one for all rows.

        Raises:
            PluginError: If a hook breaks its contract.
        """
        placement = self.placed(backbone, text)
        if not self._makes_rows:
            return [placement]
        rows = split_rows(placement.tokens, text.embeddings.shape[0], self.loaded.describe("inject"))
        return [dataclasses.replace(placement, tokens=narrowed(tokens)) for tokens in rows]

    def map_text(self, backbone: Backbone, text: Text) -> Float[Tensor, "rows length hidden"]:
        """Return new embeddings for the rows' text, in their original dtype, as the hook's contract requires."""
        mapped: Tensor = self.call("map_text", backbone=backbone, text=text)
        check_shape(mapped, tuple(text.embeddings.shape), "embeddings", self.loaded.describe("map_text"))
        return mapped.to(text.embeddings)

    def placed(self, backbone: Backbone, text: Text | None) -> Placement:
        """Build the virtual tokens, for all rows if they differ; arguments and errors as for `place_rows`."""
        tokens = self._tokens("build_virtual_tokens", backbone, {"text": text})
        placement: Placement = self.call("inject", tokens=tokens, backbone=backbone, text=text)
        check = functools.partial(self._check_placement, placement, tokens, backbone)
        is_same = isinstance(placement, Placement) and placement.tokens is tokens
        self._once(backbone, placement, check, self.weight, is_same)
        if not is_same and not self._makes_rows:
            placement = dataclasses.replace(placement, tokens=narrowed(placement.tokens))
        if self.weight != 1.0:
            placement = dataclasses.replace(placement, weight=placement.weight * self.weight)
        if self.config.pools_prompt:
            placement = dataclasses.replace(placement, is_pooled=True)
        return placement

    def _once(self, backbone: Backbone, result: Any, check: Callable[[], Any], *facts: Hashable) -> Any:
        """Run a check, or return its outcome for a result of the same form on this backbone."""
        if torch.compiler.is_compiling():  # it runs while it is traced, and never again
            return check()
        if self._passed[0] is not backbone:
            self._passed = backbone, {}
        passed = self._passed[1]
        try:
            form = _form(result, facts)
            known = form in passed
        except Exception:  # it is not what it should be, as the check reports
            return check()
        if not known:
            passed[form] = check()
        return passed[form]

    def widen(self) -> None:
        """Keep all numbers in float32 at least: in half precision an optimizer's steps overflow or are rounded off."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))

    def refuse_weight(self, what: str, place: str) -> None:
        """Refuse a weight other than 1 if there is no place for it.

        Args:
            what: The prompt's name in the message.
            place: What cannot hold it.

        Raises:
            UnsupportedError: If it has one.
        """
        if self.weight != 1.0:
            raise UnsupportedError(
                f"{what} has the weight {self.weight}, which {place} cannot hold; set it to 1 with "
                "model.prompts.set_weight, or save the prompt with save_pretrained"
            )

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
        was_training = self.learned.training
        self.learned.eval()
        try:
            tokens = self._tokens("merge", backbone, {})
        finally:
            self.learned.train(was_training)
        copies = {name: tensor.detach().clone() for name, tensor in tokens.tensors().items()}
        return from_tensors(copies, backbone)

    def _tokens(self, hook: str, backbone: Backbone, more: Mapping[str, Any]) -> VirtualTokens:
        """Get the tokens from a hook, unless the prompt already holds plain ones."""
        if isinstance(self.learned, PlainTokens):
            return self.learned.tokens(backbone)
        found: VirtualTokens = self.call(hook, backbone=backbone, **more)
        if self._makes_rows:
            self._check_rows(found, backbone, hook, more["text"])
            return found
        is_narrow = self._once(backbone, found, lambda: self._check_narrow(found, backbone, hook))
        return found if is_narrow else narrowed(found)

    def _check_rows(self, tokens: VirtualTokens, backbone: Backbone, hook: str, text: Text) -> None:
        """Refuse tokens that do not have an entry for each row; one row is checked for all."""
        count = text.embeddings.shape[0]
        rows = split_rows(tokens, count, self.loaded.describe(hook))
        check = functools.partial(self._check, rows[0], backbone, hook)
        self._once(backbone, rows[0], check)

    def _check_narrow(self, tokens: Any, backbone: Backbone, hook: str) -> bool:
        """Check tokens, and return whether their kind is the narrowest one."""
        self._check(tokens, backbone, hook)
        return narrowed(tokens) is tokens

    def _check(self, tokens: object, backbone: Backbone, hook: str) -> None:
        source = self.loaded.describe(hook)
        check_virtual_tokens(tokens, backbone, self.num_virtual_tokens, self.config.tasks, source)

    def _check_placement(self, placement: Any, tokens: VirtualTokens, backbone: Backbone) -> None:
        """Refuse what breaks the contract, or has no place in the model."""
        check_placement(placement, self.num_virtual_tokens, self.loaded.describe("inject"))
        if placement.tokens is not tokens and not self._makes_rows:
            self._check(placement.tokens, backbone, "inject")
            placement = dataclasses.replace(placement, tokens=narrowed(placement.tokens))
        if self.config.pools_prompt:
            check_pooling(placement, backbone)
        if self.beyond_tokens is not None and self.beyond_tokens.attends:
            PromptBranch(self, backbone).check()
        backbone.inside.refuse(dataclasses.replace(placement, weight=placement.weight * self.weight))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None, "_model_prompts": None, "_passed": (None, {})}

    def __repr__(self) -> str:
        return f"Prompt({self.method}, num_virtual_tokens={self.num_virtual_tokens})"


def _form(result: Any, facts: tuple[Hashable, ...]) -> Hashable:
    """Return everything that the checks of a hook's result depend on."""
    if isinstance(result, Placement):
        mask = None if result.mask is None else (result.mask.shape[1:], result.mask.dtype)
        return result.tokens.form, result.dropout, result.always_visible, result.weight, mask, *facts
    return result.form, *facts
