"""The stacks of a model, and the facts about each."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.lookup import config_value, part_of
from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.backbone.traits import (
    cache_argument,
    find_position_table,
    max_positions,
    rotation_limit,
    zero_features,
)
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.reach import Reach
from softprompt_zoo.sites.reach.reaches_to_try import REACHES
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.trial.choice_of_reach import Unreached, choose_reach

SUPPORTED_LAYER_TYPES = {"attention", "full_attention", "sliding_attention"}


def find_stacks(
    model: PreTrainedModel, reaches: Sequence[Reach] = REACHES, problem: str | None = None
) -> tuple[str, dict[str, Stack]]:
    """Find the stacks of a model, their attention modules and sizes. The model is not changed.

    Args:
        model: Any transformers model; may be on the `meta` device.
        reaches: The ways to reach them, in the order to try; none if it is known that none works.
        problem: In that case, why none works.

    Returns:
        The family, and the stacks by name; if no way is found, with `RealPositions`, which says why.

    Raises:
        UnsupportedError: If the model has no token embeddings, or has layers whose state no prompt can enter.
    """
    _refuse_uncarried_layers(model)
    modules = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    if model.config.is_encoder_decoder and not _is_one_stack(**modules):
        encoder = _find_stack(_unreached("encoder", modules["encoder"], model), reaches, problem)
        decoder = _find_stack(_unreached("decoder", modules["decoder"], model, encoder), reaches, problem)
        return "encoder_decoder", {"encoder": encoder, "decoder": decoder}
    stack = _find_stack(_unreached("decoder", _single_stack(model), model, is_alone=True), reaches, problem)
    if stack.is_causal:
        return "causal", {"decoder": stack}
    attentions = {"encoder": stack.attentions.get("decoder", ())}
    shapes = {"encoder": stack.shapes["decoder"]} if stack.shapes else {}
    return "encoder", {"encoder": dataclasses.replace(stack, name="encoder", attentions=attentions, shapes=shapes)}


def _is_one_stack(encoder: nn.Module, decoder: nn.Module) -> bool:
    """Return whether a model has one stack of an encoder-decoder, whose config it shares.

    Asked for a part that it lacks, a model returns itself, or what is around its only stack.
    """
    return any(module is encoder for module in decoder.modules())


def _single_stack(model: PreTrainedModel) -> PreTrainedModel:
    base = model.base_model
    for find in (base.get_decoder, base.get_encoder):
        inner = find()
        if isinstance(inner, PreTrainedModel) and inner is not base:
            return inner
    return base


def _refuse_uncarried_layers(model: PreTrainedModel) -> None:
    """Refuse layers with a state other than keys and values, which would be silently wrong."""
    config = model.config.get_text_config()
    types = {*(config_value(config, "layer_types") or ()), *(config_value(config, "layers_block_type") or ())}
    strange = sorted(types - SUPPORTED_LAYER_TYPES)
    if strange:
        raise UnsupportedError(
            f"{type(model).__name__} has layers of type {strange[0]!r}, whose state a prompt cannot enter; "
            f"supported layer types: {', '.join(sorted(SUPPORTED_LAYER_TYPES))}; no method works on this model; "
            "choose one that has only these"
        )
    if config_value(config, "reorder_and_upcast_attn", False):
        raise UnsupportedError(
            f"{type(model).__name__} has reorder_and_upcast_attn=True, which leaves the attention interface; "
            "load it with reorder_and_upcast_attn=False"
        )


def _unreached(
    name: str, module: PreTrainedModel, model: PreTrainedModel, encoder: Stack | None = None, is_alone: bool = False
) -> Unreached:
    features = zero_features(module)
    return Unreached(
        name=name,
        module=module,
        model=model,
        embedding=_embedding(model if features is not None else module, model),
        cache_argument=cache_argument(type(module).forward),
        encoder=encoder,
        is_alone=is_alone,
        features=features,
    )


def _find_stack(stack: Unreached, reaches: Sequence[Reach], problem: str | None) -> Stack:
    module, chosen = stack.module, choose_reach(stack, reaches, problem)
    sites = _by_site(stack.name, chosen.calls)
    return Stack(
        name=stack.name,
        module=module,
        embedding=stack.embedding,
        reach=chosen.reach,
        attentions={site: tuple([call.module for call in own]) for site, own in sites.items()},
        shapes={site: tuple([call.shape for call in own]) for site, own in sites.items()},
        is_causal=chosen.is_causal,
        takes_position_ids="position_ids" in inspect.signature(type(module).forward).parameters,
        cache_argument=stack.cache_argument,
        position_table=find_position_table(module, stack.embedding, max_positions(stack.model)),
        ids_scale=chosen.scales[0],
        embeddings_scale=chosen.scales[1],
        rotation_limit=rotation_limit(module.config),
        is_audio_encoder=stack.features is not None,
    )


def _by_site(name: str, calls: Sequence[AttentionCall]) -> dict[str, list[AttentionCall]]:
    """Sort the calls of a stack by site; the self-attention's site has the stack's name."""
    sites: dict[str, list[AttentionCall]] = {}
    for call in calls:
        sites.setdefault("cross" if call.is_cross else name, []).append(call)
    return sites


def _embedding(module: Any, model: PreTrainedModel) -> nn.Module:
    try:
        embedding = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Module) or part_of(part_of(embedding, "weight"), "ndim") != 2:
        raise UnsupportedError(
            f"{type(model).__name__} has no token embeddings to put a prompt next to; "
            "expected a model whose get_input_embeddings() returns an embedding table"
        )
    return embedding
