"""The stacks of a model, found by one tiny forward, and the way to reach each.

There is no table of model types: the probe replaces attention by a function that records its callers, their
sizes, and whether the per-call keyword arrived.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.eval_mode import eval_mode
from softprompt_zoo.backbone.lookup import config_value, part_of
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
    cache_argument,
    embedding_scales,
    find_position_table,
    max_positions,
    rotation_limit,
    zero_features,
)
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.reach import Look, Reach
from softprompt_zoo.sites.reach.reaches import REACHES
from softprompt_zoo.sites.reach.real_positions import RealPositions
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.trial.built_alike import built, remember

SUPPORTED_LAYER_TYPES = {"attention", "full_attention", "sliding_attention"}
_FOUND: dict[Any, Any] = {}
"""The reach, scales, and calls with module names of stacks that were reached without their weights."""


def find_stacks(
    model: PreTrainedModel, reaches: Sequence[Reach] = REACHES, problem: str | None = None
) -> tuple[str, dict[str, Stack]]:
    """Find the stacks of a model, their attention modules and sizes. The model is not changed.

    Args:
        model: Any transformers model; may be on the `meta` device.
        reaches: The ways to reach them, in the order to try.
        problem: Why none of these works, if known.

    Returns:
        The family, and the stacks by name; if no way is found, with `RealPositions`, which says why.

    Raises:
        UnsupportedError: If the model has no token embeddings, or has layers whose state no prompt can enter.
    """
    _refuse_uncarried_layers(model)
    modules = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    # A single stack of an encoder-decoder shares the whole model's config.
    if model.config.is_encoder_decoder and modules["encoder"] is not modules["decoder"]:
        encoder = _find_stack("encoder", modules["encoder"], model, None, reaches, problem)
        decoder = _find_stack("decoder", modules["decoder"], model, encoder, reaches, problem)
        return "encoder_decoder", {"encoder": encoder, "decoder": decoder}
    stack = _find_stack("decoder", _single_stack(model), model, None, reaches, problem)
    if stack.is_causal:
        return "causal", {"decoder": stack}
    attentions = {"encoder": stack.attentions.get("decoder", ())}
    shapes = {"encoder": stack.shapes["decoder"]} if stack.shapes else {}
    return "encoder", {"encoder": dataclasses.replace(stack, name="encoder", attentions=attentions, shapes=shapes)}


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


def _find_stack(
    name: str,
    module: PreTrainedModel,
    model: PreTrainedModel,
    encoder: Stack | None,
    reaches: Sequence[Reach],
    problem: str | None,
) -> Stack:
    features = zero_features(module)
    embedding = _embedding(model if features is not None else module, model)
    cache = cache_argument(type(module).forward)
    look = Look(module, embedding, cache, is_alone=encoder is None and name == "decoder")
    look, found, calls = _tried(reaches, look, name, encoder, features)
    is_causal = _is_causal(calls or look.calls, model)
    sites = _by_site(name, calls)
    return Stack(
        name=name,
        module=module,
        embedding=embedding,
        reach=found or _real_positions(look, encoder, is_causal, problem),
        attentions={site: tuple([call.module for call in own]) for site, own in sites.items()},
        shapes={site: tuple([call.shape for call in own]) for site, own in sites.items()},
        is_causal=is_causal,
        takes_position_ids="position_ids" in inspect.signature(type(module).forward).parameters,
        cache_argument=cache,
        position_table=find_position_table(module, embedding, max_positions(model)),
        ids_scale=look.scales[0],
        embeddings_scale=look.scales[1],
        rotation_limit=rotation_limit(module.config),
        is_audio_encoder=features is not None,
    )


def _tried(
    reaches: Sequence[Reach], look: Look, name: str, encoder: Stack | None, features: Tensor | None
) -> tuple[Look, Reach | None, Sequence[AttentionCall]]:
    """Look for a way without the stack's weights, and then with them, so that problems are reported for them."""
    construction = built(look.module)
    key = name, look.is_alone, _table_sizes(look, encoder), construction, tuple(reaches)
    if key in _FOUND:
        return _remembered(look, *_FOUND[key])
    for mode in (Idle(), contextlib.nullcontext()):
        look = _run(look, name, encoder, features, mode)
        found, calls = _first(reaches, look)
        if found is not None:
            break
    if found is not None and look.is_idle and construction is not None:
        names = {module: name for name, module in look.module.named_modules()}
        remember(_FOUND, key, (look.scales, found, [(names[call.module], *call[1:]) for call in calls]))
    return look, found, calls


def _table_sizes(look: Look, encoder: Stack | None) -> tuple[Any, ...]:
    """Return the sizes of the embedding tables, which need not be in the stack's module."""
    tables: list[Any] = [look.embedding] if encoder is None else [look.embedding, encoder.embedding]
    return tuple([table.weight.shape for table in tables])


def _remembered(
    look: Look, scales: tuple[float, float], reach: Reach, calls: Sequence[tuple[Any, ...]]
) -> tuple[Look, Reach, Sequence[AttentionCall]]:
    """Apply the findings about a stack that is built alike to this one's modules."""
    modules = dict(look.module.named_modules())
    return (
        dataclasses.replace(look, scales=scales),
        reach,
        [AttentionCall(modules[name], *facts) for name, *facts in calls],
    )


def _is_causal(calls: Sequence[AttentionCall], model: PreTrainedModel) -> bool:
    return any([call.is_causal for call in calls]) if calls else model.can_generate()


def _by_site(name: str, calls: Sequence[AttentionCall]) -> dict[str, list[AttentionCall]]:
    """Sort the calls of a stack by site; the self-attention's site has the stack's name."""
    sites: dict[str, list[AttentionCall]] = {}
    for call in calls:
        sites.setdefault("cross" if call.is_cross else name, []).append(call)
    return sites


def _first(reaches: Sequence[Reach], look: Look) -> tuple[Reach | None, Sequence[AttentionCall]]:
    """Return the first way that reaches every layer, and the calls that it reaches."""
    for reach in reaches:
        calls = reach.find(look)
        if _problem(look, calls) is None:
            return reach, calls
    return None, ()


def _problem(look: Look, calls: Sequence[AttentionCall]) -> str | None:
    """Return why keys and values cannot be placed in a stack with these calls; `None` if they can."""
    found = len([call for call in calls if not call.is_cross])
    if not found:
        return "its attention is not reached through transformers' attention interface"
    counts = _layer_counts(look.module.config) if look.is_alone else [found]
    if counts and found not in counts:
        return f"only {found} of its {max(counts)} layers are attention that a prompt can enter"
    return None


def _layer_counts(config: Any) -> list[int]:
    """Return the number of layers in a stack according to its config; for an encoder-decoder, both numbers."""
    counts = [config_value(config, "decoder_layers"), config_value(config, "num_hidden_layers")]
    return [count for count in counts if count is not None]


def _real_positions(look: Look, encoder: Stack | None, is_causal: bool, problem: str | None) -> RealPositions:
    """Return why there is no way to keys and values, and whether input-level prompts can do without."""
    reason = problem or look.error or _problem(look, look.calls) or ""
    if look.error or (is_causal and look.is_alone):
        return RealPositions(reason, lets_in=False)
    # Of two stacks, only the encoder gets them, and it is never cached.
    return RealPositions(reason, encoder is not None or _takes_embeddings(look))


def _takes_embeddings(look: Look) -> bool:
    """Return whether a stack takes embeddings and their mask and, if alone, keeps nothing of an earlier text."""
    parameters = set(inspect.signature(type(look.module).forward).parameters)
    keeps = {"cache_params", "use_cache"} & parameters or look.cache_argument
    return {"inputs_embeds", "attention_mask"} <= parameters and not (look.is_alone and keeps)


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


def _run(
    look: Look,
    name: str,
    encoder: Stack | None,
    features: Tensor | None,
    mode: contextlib.AbstractContextManager[Any],
) -> Look:
    """Run a stack once on a few tokens, or on silence; record its attention calls and how it scales embeddings."""
    module, embedding, probe = look.module, look.embedding, Probe()
    look = dataclasses.replace(look, is_idle=isinstance(mode, Idle), calls=(), error=None)
    weight: Any = embedding.weight
    ids = torch.arange(PROBE_LENGTH, device=weight.device)[None] % weight.shape[0]
    # Given a mask, no model looks for padding in the ids, which have no values on the meta device.
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), STATE_KEYWORD: probe}
    try:
        with eval_mode([module], PROBE), _noting_widths(module, probe), torch.no_grad():
            if features is not None:
                with mode:
                    module(input_features=features, **{STATE_KEYWORD: probe})
                return dataclasses.replace(look, calls=probe.calls)
            if encoder is not None:
                width = encoder.embed(ids).shape[-1]
                states = torch.zeros(1, PROBE_ENCODER_LENGTH, width, device=weight.device, dtype=weight.dtype)
                inputs |= {"encoder_hidden_states": states, "use_cache": False}
            embedded = embedding(ids)
            if not isinstance(embedded, Tensor):
                raise UnsupportedError(f"its embeddings are more than a tensor ({type(embedded).__name__})")
            with mode:
                shown = module(**inputs).last_hidden_state.shape[1]
            if shown != PROBE_LENGTH:
                raise UnsupportedError(f"it returns {shown} states for {PROBE_LENGTH} tokens")
            scales = embedding_scales(module, embedding, {**inputs, STATE_KEYWORD: None})
    except Exception as error:
        problem = f"a trial run of its {name} failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        return dataclasses.replace(look, error=problem)
    return dataclasses.replace(look, calls=probe.calls, scales=scales)


@contextlib.contextmanager
def _noting_widths(module: nn.Module, probe: Probe) -> Iterator[None]:
    """Let a probe see the hidden states that each module of a stack reads."""
    parts = [part for part in module.modules() if not type(part).__module__.startswith("torch.")]  # none is attention
    handles = [part.register_forward_pre_hook(probe.note_width, with_kwargs=True) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
