"""Keys and values in DeBERTa's attention, which is not reached through transformers' attention interface.

The stack's own forward runs on a view of the stack, made for one call, in which the attention modules are replaced
by the function below. It adds the prompt's keys and values without a relative bias. Nothing is written on modules.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone import KEYWORD, Site, Stack
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.attention import CallState, Capture, SiteState, drop, rows_of, visible_to
from softprompt_zoo.sites.gates import add_gated
from softprompt_zoo.sites.views import view

SITE = "encoder"


def adopt(stack: Stack) -> None:
    """Let a stack with disentangled attention take its state; others are left alone."""
    module: Any = stack.module
    if stack.is_disentangled and not hasattr(type(module), "_softprompt_carried"):
        base: Any = type(module)
        module.__class__ = _carrying_class(base)


def release(stack: Stack) -> None:
    """Undo `adopt`."""
    module: Any = stack.module
    module.__class__ = type(module).__dict__.get("_softprompt_carried", type(module))


def run(module: Any, base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a stack's own forward with the state that is among its arguments.

    Args:
        module: The stack's module.
        base: The class whose forward it is.
        args: Positional arguments.
        kwargs: Keywords; the state is taken out.

    Returns:
        The stack's output.
    """
    state = kwargs.pop(KEYWORD, None)
    return base.forward(module if state is None else _view_of_stack(module, state), *args, **kwargs)


@functools.cache
def _carrying_class(base: Any) -> Any:
    """Make the subclass that an adopted stack gets; it answers to the name of its base."""

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, base, args, kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        return _rebuild, (base,), self.__dict__.copy()

    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(
        base.__name__, (base,), {**names, "forward": forward, "__reduce_ex__": reduce, "_softprompt_carried": base}
    )


def _rebuild(base: Any) -> Any:
    cls = _carrying_class(base)
    return cls.__new__(cls)


def _view_of_stack(module: Any, state: CallState | Capture) -> Any:
    layers = []
    for index, layer in enumerate(module.encoder.layer):
        for part in (layer, layer.attention):
            _refuse_replaced_forward(part)
        attend = functools.partial(_attend, layer.attention.self, state, index)
        layers.append(view(layer, attention=view(layer.attention, self=attend)))
    _refuse_replaced_forward(module.encoder)
    return view(module, encoder=view(module.encoder, layer=layers))


def _refuse_replaced_forward(module: nn.Module) -> None:
    if "forward" in module.__dict__:
        raise UnsupportedError(
            f"the forward of {type(module).__name__} was replaced on the module itself, so prompts would be ignored; "
            "remove the hooks that accelerate put there"
        )


def _attend(
    module: Any,
    state: CallState | Capture,
    layer: int,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Do what `DisentangledSelfAttention.forward` does, with the layer's prompt in front."""
    rows, heads = hidden_states.shape[0], module.num_attention_heads
    query = _split(module.query_proj(hidden_states if query_states is None else query_states), heads)
    key, value = _split(module.key_proj(hidden_states), heads), _split(module.value_proj(hidden_states), heads)
    if isinstance(state, Capture):
        place = Site(SITE, layer)
        state.keys[place], state.values[place] = key, value
    parts = 1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)
    scale = (query.shape[-1] * parts) ** 0.5
    scores = query @ key.transpose(-1, -2) / scale
    if module.relative_attention:
        flat = (query.flatten(0, 1), key.flatten(0, 1))
        bias = module.disentangled_attention_bias(*flat, relative_pos, module.pos_dropout(rel_embeddings), parts)
        scores = scores + bias.view(scores.shape)
    mask = attention_mask.bool()
    call = state.prior if isinstance(state, Capture) else state
    prompt = None if call is None else call.sites.get(SITE)
    tokens = 0
    if call is not None and prompt is not None:
        prompt_keys, prompt_values, visible = _prompt(prompt, call, layer, query)
        tokens = prompt_keys.shape[2]
        scores = torch.cat([query @ prompt_keys.transpose(-1, -2) / scale, scores], dim=-1)
        value = torch.cat([prompt_values, value], dim=2)
        mask = torch.cat([visible.expand(rows, -1, mask.shape[2], -1), mask.expand(rows, -1, -1, -1)], dim=-1)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = module.dropout(scores.softmax(dim=-1))
    output = (weights @ value).transpose(1, 2)
    for part in [] if call is None else call.gated.get(SITE, []):
        forward = functools.partial(_plain_attention, scale)
        added = add_gated(part, layer, forward, module, query, call.rows, {})  # type: ignore[union-attr]
        output = output if added is None else output + added
    return output.flatten(2), weights[..., tokens:] if output_attentions else None


def _prompt(prompt: SiteState, call: CallState, layer: int, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return one layer's keys and values `(rows, heads, tokens, head_dim)`, and which tokens each query sees."""
    count = query.shape[0]
    keys = rows_of(prompt.keys[layer], call.rows, count).to(query)
    values = rows_of(prompt.values[layer], call.rows, count).to(query)
    if prompt.dropout is not None:
        probability = rows_of(prompt.dropout, call.rows, count)[:, None, :, None]
        keys, values = drop(keys, probability), drop(values, probability)
    visible = visible_to(prompt, call, None)
    if visible is None:
        visible = torch.ones(1, 1, 1, keys.shape[2], dtype=torch.bool, device=query.device)
    return keys, values, visible


def _plain_attention(
    scale: float, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    scores = query @ key.transpose(-1, -2) / scale
    scores = scores if mask is None else scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2), None


def _split(states: Tensor, heads: int) -> Tensor:
    """Split features into heads: `(rows, heads, length, head_dim)`."""
    split: Tensor = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split
