"""Keys and values through the cache: for causal models that do not use transformers' attention interface.

Such a model gets, for one call, a view of its cache that shows the prompt's keys and values in front of the text's.
It keeps only the text, and takes no state of its own. In each row the prompt stands right before the text, behind
padding on the left: ALiBi and local windows then see the distances that real tokens would have.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt_zoo.backbone.backbone import Site, Stack, trial
from softprompt_zoo.backbone.traits import given_cache, without_cache
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.attention_interface import drop, rows_of
from softprompt_zoo.sites.state import CallState, Capture, SiteState
from softprompt_zoo.tokens.tokens import LayerShape

TRIAL_LENGTH = 3
CHECKPOINTS = "_can_checkpoint_with_cache"
"""transformers' name for layers that keep their cache when a checkpoint computes them again; a view may be kept."""


class CacheView(Cache):  # type: ignore[misc]
    """What a model sees as its cache during one call."""

    def __init__(self, inner: Cache | None, state: CallState | None, capture: Capture | None, site: str) -> None:
        super().__init__(layers=[])
        self.inner = inner
        """The cache of the text; `None` if nothing is kept."""
        self.order: Tensor | None = None
        """`(rows, tokens + length)` column of prompt and text that stands at each place; `None` if they just follow
        each other."""
        self._state = state
        self._capture = capture
        self._site = site

    @property
    def prompt(self) -> SiteState | None:
        """The prompt; read at each use, for checkpointing replaces its tensors."""
        return None if self._state is None else self._state.sites.get(self._site)

    @property
    def tokens(self) -> int:
        """Virtual tokens of the longest row."""
        return 0 if self.prompt is None else self.prompt.keys[0].shape[2]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the text's keys and values, and return them behind the prompt's."""
        site = Site(self._site, layer_idx)
        if self._capture is not None:
            self._capture.keys[site], self._capture.values[site] = key_states, value_states
        if self.inner is not None:
            key_states, value_states = self.inner.update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.prompt is None or self._state is None:
            return key_states, value_states
        rows, count = self._state.rows, key_states.shape[0]
        keys = rows_of(self.prompt.keys[layer_idx], rows, count)
        values = rows_of(self.prompt.values[layer_idx], rows, count)
        if self.prompt.dropout is not None:
            probability = rows_of(self.prompt.dropout, rows, count)[:, None, :, None]
            keys, values = drop(keys, probability), drop(values, probability)
        return self._arranged(keys.to(key_states), key_states), self._arranged(values.to(value_states), value_states)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Return how many positions are behind, the prompt's among them."""
        return self.tokens + (0 if self.inner is None else self.inner.get_seq_length(layer_idx))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many columns the mask needs, and where the first one stands."""
        length, offset = (query_length, 0) if self.inner is None else self.inner.get_mask_sizes(query_length, layer_idx)
        return self.tokens + length, offset

    def text_only(self, weights: Tensor) -> Tensor:
        """Take the prompt's columns out of attention weights `(rows, heads, queries, columns)`."""
        if self.order is None:
            return weights[..., self.tokens :]
        columns = self.order.argsort(dim=1)[:, None, None, self.tokens :]
        return weights.gather(-1, columns.expand(*weights.shape[:-1], -1))

    def _arranged(self, prompt: Tensor, text: Tensor) -> Tensor:
        joined = torch.cat([prompt, text], dim=2)
        if self.order is None:
            return joined
        return joined.gather(2, self.order[:, None, :, None].expand(-1, joined.shape[1], -1, joined.shape[3]))


def show(stack: Stack, state: CallState | Capture, kwargs: dict[str, Any], rows: int) -> dict[str, Any]:
    """Give a stack the prompts of one call through its cache.

    Args:
        stack: A stack that is reached through its cache.
        state: The prompts, or what records keys and values; both enter the view.
        kwargs: The stack's arguments. Not changed.
        rows: Rows of the batch.

    Returns:
        The arguments with a view as cache, and with a mask over prompt and text where one is needed.

    Raises:
        UnsupportedError: If the attention mask is not 2-D.
    """
    capture = state if isinstance(state, Capture) else None
    call = state.prior if isinstance(state, Capture) else state
    inner = _cache_of_text(stack.module, kwargs)
    view = CacheView(inner, call, capture, stack.name)
    shown = {**without_cache(kwargs), stack.cache_argument: view, "use_cache": inner is not None}
    mask = kwargs.get("attention_mask")
    if view.prompt is None or call is None:
        return shown
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        kind = f"{mask.ndim}-D" if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedError(
            f"a prompt in {type(stack.module).__name__} needs an attention mask of shape (rows, length), not a {kind} "
            "one; pass the 2-D mask"
        )
    device = view.prompt.keys[0].device
    present = torch.ones(1, view.tokens, dtype=torch.bool, device=device)
    if view.prompt.present is not None:
        present = rows_of(view.prompt.present, call.rows, rows)
    elif mask is None and not (inner is not None and inner.is_compileable):
        return shown
    text: Any = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
    if mask is None:
        length = text.shape[1] + (0 if inner is None else inner.get_seq_length())
        mask = torch.ones(rows, int(length), dtype=torch.long, device=device)
    # A static cache has free columns behind the text; models with ALiBi want a mask over them too.
    free = view.get_mask_sizes(text.shape[1], 0)[0] - view.tokens - mask.shape[1]
    seen = functional.pad(mask.to(device).bool(), (0, max(0, free))).expand(rows, -1)
    present = present.expand(rows, -1)
    valid = torch.cat([present, seen], dim=1)
    # A stable sort: absent tokens and padding on the left, then the prompt, then the text with what follows it.
    is_left = seen.long().cumsum(dim=1) == 0
    place = torch.cat([present.long(), torch.where(is_left, 0, 2)], dim=1)
    if view.prompt.present is not None or torch.compiler.is_compiling() or bool(is_left.any()):
        view.order = place.argsort(dim=1, stable=True)
        valid = valid.gather(1, view.order)
    return {**shown, "attention_mask": valid.to(mask.dtype)}


def hide(stack: Stack, output: Any, kwargs: Mapping[str, Any]) -> Any:
    """Take the view and the prompt's columns out of what a stack returns.

    Args:
        stack: A stack that is reached through its cache.
        output: What it returned.
        kwargs: The arguments it got from `show`.

    Returns:
        An output of the same class.
    """
    view = kwargs[stack.cache_argument]
    shown = {**without_cache(output), stack.cache_argument: view.inner}
    if shown.get("attentions") is not None:
        shown["attentions"] = tuple(None if part is None else view.text_only(part) for part in shown["attentions"])
    return type(output)(**shown)


def let_checkpoint(stack: Stack, is_allowed: bool) -> None:
    """Let the layers of a stack keep the view under checkpointing, or forget that again."""
    for layer in stack.module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            if is_allowed:
                setattr(layer, CHECKPOINTS, True)
            else:
                layer.__dict__.pop(CHECKPOINTS, None)


def reach_through_cache(stack: Stack) -> Stack:
    """Find out whether a stack can be prompted through its cache, by running it. The stack is left as it was.

    Args:
        stack: A stack whose attention is not reached through transformers' attention interface.

    Returns:
        The stack with its attention modules; or the same one, with what the trial found as its problem.
    """
    layers = getattr(stack.module.config, "num_hidden_layers", None)
    if stack.is_carried or not stack.cache_argument or layers is None:
        return stack
    trial_view = _TrialView()
    weight: Any = stack.embedding.weight
    ids = torch.arange(TRIAL_LENGTH, device=weight.device)[None] % weight.shape[0]
    handles = [m.register_forward_pre_hook(trial_view.enter) for m in stack.module.modules()]
    handles += [m.register_forward_hook(trial_view.leave, always_call=True) for m in stack.module.modules()]
    try:
        with trial([stack.module], lambda before: before), torch.no_grad():
            stack.module(input_ids=ids, use_cache=True, **{stack.cache_argument: trial_view})
    except Exception:
        return stack  # without a cache as we know it; the reason that was found before says more
    finally:
        for handle in handles:
            handle.remove()
    if sorted(trial_view.found) != list(range(layers)):
        return stack
    found = [trial_view.found[layer] for layer in range(layers)]
    return dataclasses.replace(
        stack,
        name="decoder",
        attentions={"decoder": tuple(module for module, _ in found)},
        shapes={"decoder": tuple(shape for _, shape in found)},
        is_causal=True,
        through_cache=True,
        problem=None,
    )


class _TrialView(CacheView):
    """Notes which module hands over the keys and values of each layer."""

    def __init__(self) -> None:
        super().__init__(None, None, None, "decoder")
        self.found: dict[int, tuple[nn.Module, LayerShape]] = {}
        self._running: list[nn.Module] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        module = self._running[-1]
        heads = next((h for h in (getattr(module, n, None) for n in _HEADS) if isinstance(h, int)), 0)
        shape = LayerShape(key_states.shape[1], key_states.shape[3], heads, _window(module), value_states.shape[3])
        self.found[layer_idx] = (module, shape)
        return key_states, value_states


_HEADS = ("num_attention_heads", "num_heads", "n_heads")


def _window(module: Any) -> int | None:
    """Return the width of an attention's sliding window, as far as it can be told."""
    config = getattr(module, "config", None)
    if getattr(module, "attention_type", None) == "local":
        return getattr(config, "window_size", None)
    return getattr(module, "sliding_window", None) or getattr(config, "sliding_window", None)


def _cache_of_text(module: Any, kwargs: dict[str, Any]) -> Cache | None:
    if module.training and any(getattr(child, "gradient_checkpointing", False) for child in module.modules()):
        return None  # as the model does
    given = given_cache(kwargs)
    wanted = kwargs.get("use_cache")
    wanted = getattr(module.config, "use_cache", False) if wanted is None else wanted
    return DynamicCache(config=module.config) if given is None and wanted else given
