"""Through the cache: for causal models that compute attention themselves, but get keys and values from their cache.

For one call, such a model gets a view of its cache that shows the prompt's keys and values in front of the text's. It
takes no separate state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt_zoo.backbone.lookup import config_value
from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.backbone.traits import without_cache
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Bool, Int, Shaped
from softprompt_zoo.sites.batch import rows_of
from softprompt_zoo.sites.checkpointing import is_checkpointed
from softprompt_zoo.sites.positions import given_cache, plain_mask
from softprompt_zoo.sites.reach.cache_probe import run_on_view
from softprompt_zoo.sites.reach.cache_view import CacheView
from softprompt_zoo.sites.reach.marks import mark_sites, unmark_sites
from softprompt_zoo.sites.reach.reach import Look, Reach
from softprompt_zoo.sites.stack_facts import StackFacts
from softprompt_zoo.sites.state import CallState, KeyValueRecording
from softprompt_zoo.tokens.placement import Placement

CHECKPOINTS = "_can_checkpoint_with_cache"
"""transformers' attribute for layers that keep their cache when a checkpoint recomputes them; so a view may be kept."""

_PADDING, _PROMPT, _TEXT = range(3)
"""The groups of a row's columns, in their order: absent tokens and left padding; the prompt; the text and the rest."""


class ThroughCache(Reach):
    """Bloom, Falcon, GPT-J and others."""

    uses_cache = True
    keeps_keywords = True
    texts_apart = "prompts enter this model through its cache, so give each text its own row"

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Run the model's only stack with a cache that records who passes keys and values."""
        layers = config_value(look.module.config, "num_hidden_layers")
        if look.is_idle or not look.is_alone or not look.cache_argument or layers is None:
            return ()
        found = run_on_view(look)
        return [found[layer] for layer in range(layers)] if sorted(found) == list(range(layers)) else ()

    def install(self, stack: StackFacts, model: Any) -> None:
        """Mark the attention modules, and make layers keep the view under checkpointing."""
        mark_sites(stack)
        for layer in _checkpointed(stack):
            setattr(layer, CHECKPOINTS, True)

    def remove(self, stack: StackFacts) -> None:
        """Undo `install`."""
        unmark_sites(stack)
        for layer in _checkpointed(stack):
            layer.__dict__.pop(CHECKPOINTS, None)

    def enter(self, stack: StackFacts, state: CallState | KeyValueRecording, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Give the stack a view as its cache, and, if needed, a mask over prompt and text.

        Raises:
            UnsupportedError: If the attention mask is not 2-D.
        """
        recording = state if isinstance(state, KeyValueRecording) else None
        call = state.prior if isinstance(state, KeyValueRecording) else state
        inner = _cache_of_text(stack.module, kwargs if recording is None else {"use_cache": False, **kwargs})
        view = CacheView(inner, call, recording, stack.name)
        shown = {**without_cache(kwargs), stack.cache_argument: view, "use_cache": inner is not None}
        text = stack.text(kwargs)
        mask = None if text is None else _mask_of_text(stack, kwargs, text, view)
        if call is None or text is None or mask is None:
            return shown
        shown["attention_mask"], view.order = _mask_and_order(view, call, mask, text)
        return shown

    def leave(self, stack: StackFacts, output: Any, kwargs: Mapping[str, Any]) -> Any:
        """Remove the view and the prompt's columns."""
        view = kwargs[stack.cache_argument]
        shown = {**without_cache(output), stack.cache_argument: view.inner}
        if shown.get("attentions") is not None:
            shown["attentions"] = tuple(None if part is None else view.text_only(part) for part in shown["attentions"])
        return type(output)(**shown)

    def counted(self, past: Any, tokens: int) -> Any:
        """Count the prompt as well: it is in the view."""
        return past + tokens

    def refuse(self, placement: Placement, windows: bool) -> None:
        """Refuse weights, gates, scores, and tokens that windows must not hide."""
        where = "this model's attention is reached through its cache only"
        if placement.weight != 1.0:
            raise UnsupportedError(
                f"the prompt's weight is {placement.weight}, but {where}, which does not support weights; give it the "
                "weight 1"
            )
        if placement.tokens.gates:
            raise UnsupportedError(f"{where}, which does not support gated tokens; choose a method without gates")
        if placement.tokens.scores:
            raise UnsupportedError(f"{where}, which does not support scores; choose a method without scores")
        if placement.mask is not None:
            raise UnsupportedError(f"{where}, which does not support a mask of rows; choose a method without a mask")
        if placement.always_visible and windows:
            raise UnsupportedError(
                f"always_visible is True, but {where}, so its windows hide the tokens; choose always_visible=False"
            )

    def refuse_branches(self) -> None:
        """Refuse all: the output of attention is not reached."""
        raise UnsupportedError(
            "this model's attention is reached through its cache only, so nothing can be added to its output; choose a "
            "method without attend"
        )


def _checkpointed(stack: StackFacts) -> list[GradientCheckpointingLayer]:
    return [layer for layer in stack.module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _cache_of_text(module: Any, kwargs: dict[str, Any]) -> Cache | None:
    if module.training and is_checkpointed(module):
        return None  # like the model
    given = given_cache(kwargs)
    wanted = kwargs.get("use_cache")
    wanted = config_value(module.config, "use_cache", False) if wanted is None else wanted
    return DynamicCache(config=module.config) if given is None and wanted else given


def _mask_of_text(
    stack: StackFacts, kwargs: dict[str, Any], text: Shaped[Tensor, "rows length ..."], view: CacheView
) -> Shaped[Tensor, "rows key_length"] | None:
    """Return the text's mask, or one without padding; `None` if none is needed."""
    if view.prompt is None:
        return None
    mask = plain_mask(kwargs)
    if mask is not None:
        return mask
    _check_mask(stack, kwargs.get("attention_mask"))
    is_static = view.inner is not None and view.inner.is_compileable
    if view.prompt.present is None and not is_static:
        return None
    length = text.shape[1] + view.get_seq_length() - view.tokens
    return torch.ones(text.shape[0], int(length), dtype=torch.long, device=view.prompt.keys[0].device)


def _check_mask(stack: StackFacts, mask: Any) -> None:
    """Refuse a mask that is not `(rows, length)`."""
    if mask is not None:
        kind = f"{mask.ndim}-D" if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedError(
            f"a prompt in {type(stack.module).__name__} needs an attention mask of shape (rows, length), not a {kind} "
            "one; pass the 2-D mask"
        )


def _mask_and_order(
    view: CacheView, call: CallState, mask: Shaped[Tensor, "#rows key_length"], text: Shaped[Tensor, "rows length ..."]
) -> tuple[Shaped[Tensor, "rows positions"], Int[Tensor, "rows positions"] | None]:
    """Extend the text's mask over the prompt.

    Args:
        view: The cache that the model will see.
        call: The state of the call.
        mask: The text's mask.
        text: The text.

    Returns:
        The mask, and the order of its columns: for `CacheView.order`.
    """
    rows = text.shape[0]
    present, seen = _present_tokens(view, call, rows), _seen_text(view, mask, text)
    valid = torch.cat([present, seen], dim=1)
    is_left_padding = seen.long().cumsum(dim=1) == 0
    prompt: Any = view.prompt
    # Whether there is padding on the left cannot be asked while compiling.
    if prompt.present is None and not torch.compiler.is_compiling() and not bool(is_left_padding.any()):
        return valid.to(mask.dtype), None
    group = torch.cat([torch.where(present, _PROMPT, _PADDING), torch.where(is_left_padding, _PADDING, _TEXT)], dim=1)
    order = group.argsort(dim=1, stable=True)  # within a group, columns keep their order
    return valid.gather(1, order).to(mask.dtype), order


def _present_tokens(view: CacheView, call: CallState, rows: int) -> Bool[Tensor, "{rows} tokens"]:
    """Return which virtual tokens each row has."""
    prompt: Any = view.prompt
    if prompt.present is None:
        return torch.ones(1, view.tokens, dtype=torch.bool, device=prompt.keys[0].device).expand(rows, -1)
    return rows_of(prompt.present, call.rows, rows).expand(rows, -1)


def _seen_text(
    view: CacheView, mask: Shaped[Tensor, "#rows key_length"], text: Shaped[Tensor, "rows length ..."]
) -> Bool[Tensor, "rows text_columns"]:
    """Extend the text's mask over the free columns of a static cache: models with ALiBi need one over them, too."""
    prompt: Any = view.prompt
    columns = view.get_mask_sizes(text.shape[1], 0)[0] - view.tokens
    seen = mask.to(prompt.keys[0].device).bool()
    return functional.pad(seen, (0, max(0, columns - mask.shape[1]))).expand(text.shape[0], -1)
