"""Keys and values of virtual tokens, through transformers' attention interface.

One function per base implementation prepends a layer's prompt to its keys and values and extends mask
and position bias. Its state arrives as a forward keyword: module attributes or context variables gave
wrong gradients under checkpointing and cross-talk between threads.
"""

import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float, Shaped
from softprompt_zoo.sites.batch import layer_prompt
from softprompt_zoo.sites.branches import add_branches
from softprompt_zoo.sites.gates import Attention, Keys, Queries, Values, add_gated
from softprompt_zoo.sites.reach.block_masks import FLEX
from softprompt_zoo.sites.reach.marks import MARK, Mark
from softprompt_zoo.sites.reach.masks import shared_mask, with_scores
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.state import CallState, KeyValueRecording, SiteState

PREFIX = "softprompt_zoo_"
IMPLEMENTATIONS = ("eager", "sdpa", FLEX)


def prompted_implementation(base: str) -> str:
    """Name the attention function that adds prompts to a base implementation.

    Args:
        base: transformers' name of the implementation.

    Returns:
        The name under which ours is registered.

    Raises:
        UnsupportedError: If prompts cannot be added to it.
    """
    if base not in IMPLEMENTATIONS:
        raise UnsupportedError(
            f"prompts cannot be added to the attention implementation {base!r}; expected one of "
            f"{', '.join(map(repr, IMPLEMENTATIONS))} (FlashAttention takes no mask, so it cannot hide a prompt "
            'from other rows); call model.set_attn_implementation("sdpa") first'
        )
    return PREFIX + base


def base_implementation(name: str) -> str:
    """Undo `prompted_implementation`; other names are returned as they are."""
    return name.removeprefix(PREFIX)


def _prompt_attention(
    base: str,
    module: nn.Module,
    query: Queries,
    key: Keys,
    value: Values,
    attention_mask: Shaped[Tensor, "..."] | BlockMask | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows length heads value_dim"], Float[Tensor, "..."] | None]:
    """Attend to the layer's prompt and to the text; without a prompt this is the base function."""
    forward = _base_function(base, module)
    state = kwargs.pop(STATE_KEYWORD, None)
    site = None if state is None else _calling_site(module, state)
    if isinstance(state, KeyValueRecording) and site is not None:
        state.keys[site], state.values[site] = key, value
        if state.is_alone:
            return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None
        state = state.prior
    if state is None or site is None:
        return forward(module, query, key, value, attention_mask, **kwargs)
    prompt = state.sites.get(site.name)
    arguments = (module, query, key, value, attention_mask)
    if prompt is None:
        output, weights = forward(*arguments, **kwargs)
    else:
        output, weights = _with_prompt(base, forward, prompt, state, site, arguments, {**kwargs})
    if state.gated or state.branches:
        output = _with_additions(forward, state, site, module, query, output, kwargs)
    return output, weights


def _with_additions(
    forward: Attention,
    state: CallState,
    site: AttentionLayer,
    module: nn.Module,
    query: Queries,
    output: Float[Tensor, "rows length heads value_dim"],
    kwargs: dict[str, Any],
) -> Float[Tensor, "rows length heads value_dim"]:
    """Add what gated prompts and branches give next to the text's softmax."""
    for part in state.gated.get(site.name, ()):
        added = add_gated(part, site.layer, forward, module, query, state.rows, kwargs)
        output = output if added is None else output + added
    return add_branches(state.branches, state.rows, site, query, state.hidden, output)


def _calling_site(module: nn.Module, state: CallState | KeyValueRecording) -> AttentionLayer | None:
    """Return which layer calls: a module that layers share is called by them in turn. `None` if it is not marked."""
    mark: Mark | None = getattr(module, MARK, None)
    if mark is None:
        return None
    if len(mark.sites) == 1:
        return mark.sites[0]
    visit = state.visits.get(id(module), 0)
    state.visits[id(module)] = visit + 1
    return mark.sites[visit]


def _with_prompt(
    base: str,
    forward: Attention,
    prompt: SiteState,
    state: CallState,
    site: AttentionLayer,
    arguments: tuple[nn.Module, Queries, Keys, Values, Shaped[Tensor, "..."] | BlockMask | None],
    kwargs: dict[str, Any],
) -> tuple[Float[Tensor, "rows length heads value_dim"], Float[Tensor, "..."] | None]:
    module, query, key, value, attention_mask = arguments
    is_causal = base != "eager" and _is_causal(module, kwargs)  # there a missing mask hides nothing
    length = query.shape[2]
    if attention_mask is None and is_causal and 1 < length < key.shape[2]:
        # Prefill of an empty static cache: the base function would slice here, before it sees our keys.
        key, value, kwargs = key[:, :, :length], value[:, :, :length], _with_short_bias(kwargs, length)
    prompt_keys, prompt_values = layer_prompt(prompt, state.rows_of_keys, site.layer, query.shape[0])
    mark: Mark = vars(module)[MARK]
    window = None if site.name == "cross" else mark.window
    depends_on = (base, site.name, window, length, key.shape[2], is_causal)
    mask = shared_mask(prompt, state, query, attention_mask, depends_on)
    if prompt.scores is not None:
        mask = with_scores(mask, prompt.scores[site.layer], state, query, key.shape[2])
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = _extend_bias(kwargs["position_bias"], state, site, prompt_keys.shape[2])
    key = torch.cat([prompt_keys.to(key), key], dim=2)
    value = torch.cat([prompt_values.to(value), value], dim=2)
    output, weights = forward(module, query, key, value, mask, **kwargs)
    # Flex attention returns no weights there but the logarithm of their sum, which has no axis of keys.
    return output, weights if weights is None or weights.ndim < 4 else weights[..., prompt_keys.shape[2] :]


def _with_short_bias(kwargs: dict[str, Any], length: int) -> dict[str, Any]:
    bias = kwargs.get("position_bias")
    return kwargs if bias is None else {**kwargs, "position_bias": bias[..., :length]}


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _base_function(base: str, module: nn.Module) -> Attention:
    return eager_function(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]


def eager_function(module: nn.Module) -> Attention:
    """Return the eager attention function of a module's own modeling file.

    Raises:
        UnsupportedError: If there is none.
    """
    # Every modeling file has an eager function of its own; FSDP puts a class of its own in front.
    for owner in type(module).__mro__:
        function = getattr(sys.modules.get(owner.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    raise UnsupportedError(f"{type(module).__name__} has no eager attention function; use 'sdpa'")


def _extend_bias(
    bias: Float[Tensor, "#rows heads length key_length"], state: CallState, site: AttentionLayer, tokens: int
) -> Float[Tensor, "#rows heads length positions"]:
    """Give the prompt's columns their bias: relative positions in a decoder, none elsewhere."""
    if state.bias is None or site.name == "cross":
        return functional.pad(bias, (tokens, 0))
    of_prompt = state.bias[site.layer].to(bias)
    rows = max(bias.shape[0], of_prompt.shape[0])
    return torch.cat([of_prompt.expand(rows, -1, -1, -1), bias.expand(rows, -1, -1, -1)], dim=-1)


def register_base(base: str, masks_of: str) -> None:
    """Register the attention function that adds prompts to a base implementation.

    Args:
        base: transformers' name of the implementation.
        masks_of: Name of the implementation whose masks it takes.
    """
    AttentionInterface.register(PREFIX + base, functools.partial(_prompt_attention, base))
    # The base's own mask function: without a prompt the model must stay bit-identical.
    AttentionMaskInterface.register(PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[masks_of])


for implementation in IMPLEMENTATIONS:
    register_base(implementation, implementation)
