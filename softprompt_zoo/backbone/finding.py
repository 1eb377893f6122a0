"""Finding the stacks of a model by one tiny forward.

No table of model types: the probe replaces attention by a function that records who called it, with
which sizes, and whether the per-call keyword arrived there.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.backbone import Stack, trial
from softprompt_zoo.backbone.probe import (
    PROBE,
    PROBE_ENCODER_LENGTH,
    PROBE_LENGTH,
    STATE_KEYWORD,
    AttentionCall,
    Idle,
    Probe,
)
from softprompt_zoo.backbone.traits import (
    CARRIED,
    cache_argument,
    carried_name,
    embedding_scales,
    find_position_table,
    max_positions,
    rotation_limit,
    silent_features,
)
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.tokens.tokens import LayerShape

CARRIED_LAYER_TYPES = {"attention", "full_attention", "sliding_attention"}


def find_stacks(model: PreTrainedModel) -> tuple[str, dict[str, Stack]]:
    """Find the stacks of a model, their attention modules and sizes. The model is left as it was.

    Args:
        model: Any transformers model; may be on the `meta` device.

    Returns:
        The family, and the stacks by name.

    Raises:
        UnsupportedError: If the model has no token embeddings, or layers whose state no prompt can enter.
    """
    modules = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    # One stack of an encoder-decoder by itself shares the whole model's config.
    if model.config.is_encoder_decoder and modules["encoder"] is not modules["decoder"]:
        _refuse_uncarried_layers(model)
        encoder = _find_stack("encoder", modules["encoder"], model, None)
        decoder = _find_stack("decoder", modules["decoder"], model, encoder)
        return "encoder_decoder", {"encoder": encoder, "decoder": decoder}
    _refuse_uncarried_layers(model)
    stack = _find_stack("decoder", _single_stack(model), model, None)
    if stack.is_causal:
        return "causal", {"decoder": stack}
    attentions = {"encoder": stack.attentions.get("decoder", ())}
    shapes = {"encoder": stack.shapes["decoder"]} if stack.shapes else {}
    return "encoder", {"encoder": dataclasses.replace(stack, name="encoder", attentions=attentions, shapes=shapes)}


def _single_stack(model: PreTrainedModel) -> PreTrainedModel:
    base = model.base_model
    for find in ("get_decoder", "get_encoder"):
        inner = getattr(base, find)()
        if isinstance(inner, PreTrainedModel) and inner is not base:
            return inner
    return base


def _refuse_uncarried_layers(model: PreTrainedModel) -> None:
    """Refuse layers that carry a state other than keys and values: they would be silently wrong."""
    config = model.config.get_text_config()
    types = set(getattr(config, "layer_types", None) or []) | set(getattr(config, "layers_block_type", None) or [])
    strange = sorted(types - CARRIED_LAYER_TYPES)
    if strange:
        raise UnsupportedError(
            f"{type(model).__name__} has layers of type {strange[0]!r}, whose state a prompt cannot enter; "
            f"supported layer types: {', '.join(sorted(CARRIED_LAYER_TYPES))}; no method works on this model; "
            "choose one that has only these"
        )
    if getattr(config, "reorder_and_upcast_attn", False):
        raise UnsupportedError(
            f"{type(model).__name__} has reorder_and_upcast_attn=True, which leaves the attention interface; "
            "load it with reorder_and_upcast_attn=False"
        )


def _find_stack(name: str, module: nn.Module, model: PreTrainedModel, encoder: Stack | None) -> Stack:
    features = silent_features(module)
    embedding = _embedding(module if features is None else model, model)
    for mode in (Idle(), contextlib.nullcontext()):
        calls, scales, error = _probe(name, module, embedding, encoder, features, mode)
        calls = calls or _carried(module)
        problem = error or _problem(name, module, calls, encoder)
        if problem is None:  # what is wrong is told of the model with its weights
            break
    shapes: dict[str, list[LayerShape]] = {}
    attentions: dict[str, list[nn.Module]] = {}
    for attention, shape, is_cross, _ in calls:
        site = "cross" if is_cross else name
        attentions.setdefault(site, []).append(attention)
        shapes.setdefault(site, []).append(shape)
    if problem:
        attentions, shapes = {}, {}
    parameters = inspect.signature(type(module).forward).parameters
    cache = cache_argument(type(module).forward)
    is_causal = any(is_causal for *_, is_causal in calls) if calls else model.can_generate()
    return Stack(
        name=name,
        module=module,
        embedding=embedding,
        attentions={site: tuple(modules) for site, modules in attentions.items()},
        shapes={site: tuple(layer_shapes) for site, layer_shapes in shapes.items()},
        is_causal=is_causal,
        takes_position_ids="position_ids" in parameters,
        cache_argument=cache,
        position_table=find_position_table(module, embedding, max_positions(model)),
        problem=problem,
        takes_real_positions=error is None
        and not (is_causal and name == "decoder" and encoder is None)
        and _takes_real_positions(set(parameters), bool(cache), name, encoder is not None),
        ids_scale=scales[0],
        embeddings_scale=scales[1],
        rotation_limit=rotation_limit(module.config),
        reads_sound=features is not None,
    )


def _problem(name: str, module: Any, calls: Sequence[AttentionCall], encoder: Stack | None) -> str | None:
    """Say why keys and values cannot be placed in a stack that makes these calls; `None` if they can."""
    found = [call for call in calls if not call.is_cross]
    # Of an encoder-decoder's stack by itself, num_hidden_layers are the encoder's.
    counts = [
        getattr(module.config, name)
        for name in ("decoder_layers", "num_hidden_layers")
        if getattr(module.config, name, None) is not None
    ]
    if not found:
        return "its attention is not reached through transformers' attention interface"
    if encoder is None and name == "decoder" and counts and len(found) not in counts:
        return f"only {len(found)} of its {max(counts)} layers are attention that a prompt can enter"
    return None


def _takes_real_positions(parameters: set[str], has_cache: bool, name: str, is_behind_encoder: bool) -> bool:
    """Say whether input-level prompts can do without this stack's keys and values."""
    if name == "encoder" or is_behind_encoder:  # of these the encoder alone gets them, which is never cached
        return {"inputs_embeds", "attention_mask"} <= parameters or is_behind_encoder
    has_cache = has_cache or bool({"cache_params", "use_cache"} & parameters)
    return {"inputs_embeds", "attention_mask"} <= parameters and not has_cache


def _embedding(module: Any, model: PreTrainedModel) -> nn.Module:
    try:
        embedding = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Module) or getattr(getattr(embedding, "weight", None), "ndim", 0) != 2:
        raise UnsupportedError(
            f"{type(model).__name__} has no token embeddings to put a prompt beside; "
            "expected a model whose get_input_embeddings() returns an embedding table"
        )
    return embedding


def _probe(
    name: str,
    module: nn.Module,
    embedding: nn.Module,
    encoder: Stack | None,
    features: Tensor | None,
    mode: contextlib.AbstractContextManager[Any],
) -> tuple[list[AttentionCall], tuple[float, float], str | None]:
    """Run a stack once on a few tokens, or on silence; record its attention calls and how it scales embeddings."""
    probe = Probe()
    weight: Any = embedding.weight
    ids = torch.arange(PROBE_LENGTH, device=weight.device)[None] % weight.shape[0]
    # With a mask, no model looks for padding in the ids, which have no values on the meta device.
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), STATE_KEYWORD: probe}
    try:
        with trial([module], lambda before: PROBE), torch.no_grad():
            if features is not None:
                with mode:
                    module(input_features=features, **{STATE_KEYWORD: probe})
                return probe.calls, (1.0, 1.0), None
            if encoder is not None:
                width = encoder.embed(ids).shape[-1]
                states = torch.zeros(1, PROBE_ENCODER_LENGTH, width, device=weight.device, dtype=weight.dtype)
                inputs |= {"encoder_hidden_states": states, "use_cache": False}
            if not isinstance(embedding(ids), Tensor):
                raise UnsupportedError("its embeddings are more than a tensor")
            with mode:
                shown = module(**inputs).last_hidden_state.shape[1]
            if shown != PROBE_LENGTH:
                raise UnsupportedError(f"it makes {shown} states of {PROBE_LENGTH} tokens")
            scales = embedding_scales(module, embedding, {**inputs, STATE_KEYWORD: None})
    except Exception as error:
        problem = f"a trial run of its {name} failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        return [], (1.0, 1.0), problem
    return probe.calls, scales, None


def _carried(module: Any) -> list[AttentionCall]:
    """Find the attention modules of an encoder off the interface."""
    calls = []
    for layer in getattr(getattr(module, "encoder", None), "layer", ()):
        name = carried_name(layer)
        if name is None:
            return []
        attention = getattr(layer.attention, name)
        width = getattr(attention, CARRIED[name][1]).out_features
        heads = attention.num_attention_heads
        calls.append(AttentionCall(attention, LayerShape(heads, width // heads, heads), False, False))
    return calls
