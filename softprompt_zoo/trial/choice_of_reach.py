"""Chooses the way to reach a stack, by running it on a few tokens.

There is no table of model types: the probe replaces attention by a function that records its callers, their
sizes, and whether the per-call keyword arrived. Each reach is asked which attention modules it finds. It answers from
the `Look`, which holds what the run has shown, or runs the stack once more with a probe of its own.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.eval_mode import eval_mode
from softprompt_zoo.backbone.lookup import config_value
from softprompt_zoo.backbone.probe import (
    PROBE,
    PROBE_ENCODER_LENGTH,
    PROBE_LENGTH,
    STATE_KEYWORD,
    AttentionCall,
    Idle,
    Probe,
)
from softprompt_zoo.backbone.traits import embedding_scales
from softprompt_zoo.errors import UnsupportedError, described
from softprompt_zoo.sites.reach.reach import Look, Reach
from softprompt_zoo.sites.reach.real_positions import RealPositions
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.trial.built_alike import built, remember

_FOUND: dict[Any, Any] = {}
"""The reach, the calls with module names, and the scales of stacks that were reached without their weights."""


@dataclasses.dataclass(frozen=True)
class Unreached:
    """A stack before it is run. Each run of it gives a `Look`, and the last look a `ChosenReach`."""

    name: str
    module: PreTrainedModel
    model: PreTrainedModel
    """The model that it is a part of, or the same."""
    embedding: nn.Module
    cache_argument: str
    encoder: Stack | None
    """The stack whose states it reads, if any."""
    is_alone: bool
    """Whether it is the model's only stack."""
    features: Tensor | None
    """Silence to run on, if it reads audio."""


class ChosenReach(NamedTuple):
    """The way to reach a stack, and what the runs have shown."""

    reach: Reach
    calls: Sequence[AttentionCall]
    """The calls of attention that it reaches, in the order of the layers."""
    is_causal: bool
    scales: tuple[float, float]
    """Its `ids_scale` and `embeddings_scale`."""


def choose_reach(stack: Unreached, reaches: Sequence[Reach], problem: str | None) -> ChosenReach:
    """Choose the first way that reaches every layer of a stack, by running it without its weights, or else with them.

    If no way does, the reason comes from the run with the weights: what fails without them may work with them.

    Args:
        stack: The stack. Not changed.
        reaches: The ways to reach it, in the order to try; none if it is known that none works.
        problem: In that case, why none works.

    Returns:
        That way; if there is none, `RealPositions`, which says why.
    """
    construction = built(stack.module)
    key = stack.name, stack.is_alone, _table_sizes(stack), construction, tuple(reaches)
    if key in _FOUND:
        return _remembered(stack, *_FOUND[key])
    look, reach, calls = _try(stack, reaches)
    if reach is None:
        is_causal = _is_causal(look.calls, stack.model)
        return ChosenReach(_real_positions(look, stack.encoder, is_causal, problem), (), is_causal, look.scales)
    if look.is_idle and construction is not None:
        names = {module: name for name, module in stack.module.named_modules()}
        remember(_FOUND, key, (reach, [(names[call.module], *call[1:]) for call in calls], look.scales))
    return ChosenReach(reach, calls, _is_causal(calls, stack.model), look.scales)


def _try(stack: Unreached, reaches: Sequence[Reach]) -> tuple[Look, Reach | None, Sequence[AttentionCall]]:
    """Return what the last run of a stack has shown, the first way that reaches every layer then, and its calls."""
    if reaches:
        look = _run(stack, is_idle=True)
        reach, calls = _first(reaches, look)
        if reach is not None:
            return look, reach, calls
    look = _run(stack, is_idle=False)
    return look, *_first(reaches, look)


def _table_sizes(stack: Unreached) -> tuple[Any, ...]:
    """Return the sizes of the embedding tables, which need not be in the stack's module."""
    tables: list[Any] = [stack.embedding] if stack.encoder is None else [stack.embedding, stack.encoder.embedding]
    return tuple([table.weight.shape for table in tables])


def _remembered(
    stack: Unreached, reach: Reach, found: Sequence[tuple[Any, ...]], scales: tuple[float, float]
) -> ChosenReach:
    """Apply the findings about a stack that is built alike to this one's modules."""
    modules = dict(stack.module.named_modules())
    calls = [AttentionCall(modules[name], *facts) for name, *facts in found]
    return ChosenReach(reach, calls, _is_causal(calls, stack.model), scales)


def _is_causal(calls: Sequence[AttentionCall], model: PreTrainedModel) -> bool:
    return any([call.is_causal for call in calls]) if calls else model.can_generate()


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
    counts = _layer_counts(look.module.config) if look.is_alone else []
    if not counts or found in counts:
        return None
    layers = max(counts)
    if found > layers:
        return f"its attention is called {found} times, but a prompt can only enter once per layer (layers: {layers})"
    return f"only {found} of its {layers} layers are attention that a prompt can enter"


def _layer_counts(config: Any) -> list[int]:
    """Return the number of layers in a stack according to its config; for an encoder-decoder, both numbers."""
    counts = [config_value(config, "decoder_layers"), config_value(config, "num_hidden_layers")]
    return [count for count in counts if count is not None]


def _real_positions(look: Look, encoder: Stack | None, is_causal: bool, problem: str | None) -> RealPositions:
    """Return the fallback for a stack that no way reaches: why none does, and whether input-level prompts can enter."""
    reason = problem or look.error or _problem(look, look.calls) or ""
    if look.error or (is_causal and look.is_alone):
        return RealPositions(reason, lets_in=False)
    # Of two stacks, only the encoder gets them, and it is never cached.
    return RealPositions(reason, encoder is not None or _takes_embeddings(look))


def _takes_embeddings(look: Look) -> bool:
    """Return whether a stack takes embeddings and their mask and, if alone, keeps nothing of an earlier text."""
    parameters = set(inspect.signature(type(look.module).forward).parameters)
    takes_both = {"inputs_embeds", "attention_mask"} <= parameters
    keeps_past = look.cache_argument != "" or not parameters.isdisjoint({"cache_params", "use_cache"})
    return takes_both and not (look.is_alone and keeps_past)


def _run(stack: Unreached, is_idle: bool) -> Look:
    """Run a stack once, with its weights or idle, and return what that shows."""
    probe = Probe()
    weight: Any = stack.embedding.weight
    ids = torch.arange(PROBE_LENGTH, device=weight.device)[None] % weight.shape[0]
    look = Look(
        module=stack.module,
        embedding=stack.embedding,
        cache_argument=stack.cache_argument,
        is_alone=stack.is_alone,
        is_idle=is_idle,
    )
    try:
        with eval_mode([stack.module], PROBE), _noting_widths(stack.module, probe), torch.no_grad():
            scales = _run_with_probe(stack, ids, probe, is_idle)
    except Exception as error:
        return dataclasses.replace(look, error=f"a trial run of its {stack.name} failed: {described(error)}")
    return dataclasses.replace(look, calls=probe.calls, scales=scales)


def _run_with_probe(stack: Unreached, ids: Tensor, probe: Probe, is_idle: bool) -> tuple[float, float]:
    """Run a stack on ids, or on silence, with a probe, and return how it scales embeddings."""
    mode = Idle() if is_idle else contextlib.nullcontext()
    if stack.features is not None:
        with mode:
            stack.module(input_features=stack.features, **{STATE_KEYWORD: probe})
        return 1.0, 1.0
    # Given a mask, no model looks for padding in the ids, which have no values on the meta device.
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), STATE_KEYWORD: probe}
    if stack.encoder is not None:
        width = stack.encoder.embed(ids).shape[-1]
        weight: Any = stack.embedding.weight
        states = torch.zeros(1, PROBE_ENCODER_LENGTH, width, device=weight.device, dtype=weight.dtype)
        inputs |= {"encoder_hidden_states": states, "use_cache": False}
    embedded = stack.embedding(ids)
    if not isinstance(embedded, Tensor):
        raise UnsupportedError(f"its embeddings are more than a tensor ({type(embedded).__name__})")
    with mode:
        shown = stack.module(**inputs).last_hidden_state.shape[1]
    if shown != PROBE_LENGTH:
        raise UnsupportedError(f"it returns {shown} states for {PROBE_LENGTH} tokens")
    return embedding_scales(stack.module, stack.embedding, {**inputs, STATE_KEYWORD: None})


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
