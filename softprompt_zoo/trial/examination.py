"""Examines a model before a prompt is attached: its sizes, its stacks, and whether prompts can reach them."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.eval_mode import attention_configs
from softprompt_zoo.backbone.families import FAMILIES
from softprompt_zoo.backbone.inside import Inside
from softprompt_zoo.backbone.memory import find_part
from softprompt_zoo.backbone.offloading import check_embeddings
from softprompt_zoo.backbone.own_parameters import OwnParameters
from softprompt_zoo.backbone.peft_layers import model_inside
from softprompt_zoo.backbone.replaced_forward import check_forward
from softprompt_zoo.backbone.traits import max_positions
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.prompt.task_heads import find_heads, task_head
from softprompt_zoo.sites.hooks import Binding
from softprompt_zoo.sites.reach.implementations import base_implementation, prompted_implementation
from softprompt_zoo.sites.reach.marks import mark_of
from softprompt_zoo.sites.reach.reach import Refusals
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.stack_facts import BINDING_ATTRIBUTE
from softprompt_zoo.sites.text_states import states_of
from softprompt_zoo.trial.projections import Projector
from softprompt_zoo.trial.rehearsal import Findings, rehearse, sees_later_tokens
from softprompt_zoo.trial.stacks import find_stacks
from softprompt_zoo.trial.use_of_cache import uses_cache
from softprompt_zoo.trial.words import embed, keys_values

SEES_LATER = ", as text sees what comes after it, as in prefix language models such as PaliGemma, and a prompt cannot"
"""Why keys and values are wrong in a model whose tokens see later ones."""


Found = TypeVar("Found")


def examine(model: PreTrainedModel) -> tuple[Backbone, Mapping[str, Stack]]:
    """Collect what prompts need to know about a model. Nothing is changed.

    Args:
        model: A transformers model without prompts.

    Returns:
        The backbone that plugins see, and the stacks that the sites act on.

    Raises:
        UnsupportedError: If no prompt can be attached to it.
    """
    model = model_inside(model)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(
            f"cannot attach a prompt to {type(model).__name__}; expected a transformers PreTrainedModel, "
            "or a PeftModel around one"
        )
    _check_is_free(model)
    check_forward(model)
    check_embeddings(model)
    family, stacks, findings = _reached(model)
    first = next(iter(stacks.values()))
    weight: Any = first.embedding.weight
    probe = torch.zeros(1, dtype=torch.long, device=weight.device)
    backbone = Backbone(
        family=family,
        hidden_size=embed(stacks, probe).shape[-1],
        vocab_size=weight.shape[0],
        layers=_by_site([stack.shapes for stack in stacks.values()]),
        max_positions=max_positions(model),
        takes_cache=_takes_cache(family, list(stacks.values())[-1]),
        dtype=weight.dtype,
        device=weight.device,
        embed=functools.partial(embed, stacks),
        keys_values=functools.partial(keys_values, stacks),
        project=Projector(stacks),
        states=functools.partial(states_of, first),
        module_names=_module_names(model, stacks),
        parameter_names=frozenset(name for name, _ in model.named_parameters(remove_duplicate=False)),
        model_type=str(model.config.model_type),
        has_lm_head=model.get_output_embeddings() is not None,
        through_cache=any(stack.reach.uses_cache for stack in stacks.values()),
        inside=_inside(model, stacks, _refusals(family, stacks, findings)),
    )
    return backbone, stacks


def _takes_cache(family: str, last: Stack) -> bool:
    """Return whether the last stack takes a cache; whoever has a decoder uses it."""
    kind = FAMILIES[family]
    return last.cache_argument != "" if kind.is_causal or kind.has_two_texts else uses_cache(last)


def _by_site(found: Iterable[Mapping[str, Found]]) -> dict[str, Found]:
    """Merge the findings about the sites of all stacks."""
    return dict(itertools.chain.from_iterable(sites.items() for sites in found))


def _module_names(model: PreTrainedModel, stacks: Mapping[str, Stack]) -> dict[str, tuple[str, ...]]:
    """Return the names of the attention modules of each site."""
    names = {id(module): name for name, module in model.named_modules()}
    sites = _by_site([stack.attentions for stack in stacks.values()])
    return {site: tuple(names[id(module)] for module in modules) for site, modules in sites.items()}


def _refusals(family: str, stacks: Mapping[str, Stack], findings: Findings) -> Refusals:
    has_windows = any(shape.window for stack in stacks.values() for found in stack.shapes.values() for shape in found)
    reaches = tuple(stack.reach for stack in stacks.values())
    return Refusals(reaches, has_windows, FAMILIES[family].is_causal, findings.inputs)


def _inside(model: PreTrainedModel, stacks: Mapping[str, Stack], refusals: Refusals) -> Inside:
    heads = find_heads(model, [stack.module for stack in stacks.values()])
    return Inside(
        task_head(model, heads),
        heads,
        OwnParameters(_places(model, stacks, heads)),
        functools.partial(find_part, _parts(model, stacks)),
        refusals,
        refusals.check_branches,
        input_problem=refusals.input_problem,
        reads_tokens=not next(iter(stacks.values())).is_audio_encoder,
        scales_ids=next(iter(stacks.values())).ids_scale != 1.0,
    )


def _check_is_free(model: nn.Module) -> None:
    """Refuse modules that already have prompts: examining them would remove those prompts' hooks."""
    for name, module in model.named_modules():
        binding: Binding | None = module.__dict__.get(BINDING_ATTRIBUTE)
        if binding is not None or mark_of(module) is not None:
            part = ".".join(filter(None, (type(model).__name__, name)))
            raise UnsupportedError(
                f"{part} already has the prompts of {_owner(binding)}, and a module can only hold those of one model; "
                "use that model, call zoo.detach on it first, or give this model its own layers"
            )


def _owner(binding: Binding | None) -> str:
    """Name the model that a module's prompts belong to, for a message."""
    return getattr(binding and binding.prompts, "architecture", None) or "another model"


def _parts(model: PreTrainedModel, stacks: Mapping[str, Stack]) -> list[nn.Module]:
    """List the modules of a model that hold its weights."""
    head: Any = model.get_output_embeddings()
    return [stack.module for stack in stacks.values()] + ([] if head is None else [head])


def _places(
    model: PreTrainedModel, stacks: Mapping[str, Stack], heads: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Return the parts of a model that prompts refer to, by all names that they have in it."""
    parts = [part for stack in stacks.values() for part in (stack.module, stack.embedding)]
    known = {id(part) for part in (*parts, *heads.values())}
    return {name: module for name, module in model.named_modules(remove_duplicate=False) if id(module) in known}


def _no_method(model: PreTrainedModel, problem: str) -> UnsupportedError:
    return UnsupportedError(
        f"cannot attach a prompt of any method to {type(model).__name__}: {problem}; choose a model "
        "whose attention is transformers' AttentionInterface (gpt2, llama, qwen3, bert, t5 and many others)"
    )


def _reached(model: PreTrainedModel) -> tuple[str, dict[str, Stack], Findings]:
    """Find the stacks, and test whether prompts work on them; if keys and values do not, do without them."""
    family, stacks = find_stacks(model)
    _check_ways(model, stacks)
    findings = rehearse(family, stacks)
    if findings.keys_values is not None:
        family, stacks = find_stacks(model, (), findings.keys_values)
        _check_ways(model, stacks, _why_wrong(family, stacks))
        findings = rehearse(family, stacks)
    if findings.inputs is not None and not any(stack.shapes for stack in stacks.values()):
        raise _no_method(model, findings.inputs)
    return family, _with_padding(stacks, findings.padding is not None), findings


def _with_padding(stacks: Mapping[str, Stack], is_sensitive: bool) -> dict[str, Stack]:
    """Record on the stacks whether padding changes their states."""
    return {name: dataclasses.replace(stack, is_padding_sensitive=is_sensitive) for name, stack in stacks.items()}


def _why_wrong(family: str, stacks: Mapping[str, Stack]) -> str:
    """Return why keys and values are wrong, if it is evident."""
    first = next(iter(stacks.values()))
    return SEES_LATER if FAMILIES[family].is_causal and sees_later_tokens(first) else ""


def _check_ways(model: PreTrainedModel, stacks: Mapping[str, Stack], reason: str = "") -> None:
    """Refuse a model if one of its stacks takes no prompts, or uses an attention function that takes none."""
    for stack in stacks.values():
        if not stack.reach.lets_in and not _keeps_nothing(stack, is_alone=len(stacks) == 1):
            raise _no_method(model, f"{stack.reach.problem}{reason}")
        for config in attention_configs(stack.module):
            prompted_implementation(base_implementation(config._attn_implementation))


def _keeps_nothing(stack: Stack, is_alone: bool) -> bool:
    """Return whether a stack is an encoder that takes a cache but keeps none: its tokens see later ones."""
    return is_alone and not stack.is_causal and sees_later_tokens(stack)
