"""A combination of prompts as one plain prefix: the keys and values that the text sees, exactly."""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from softprompt_zoo.backbone.eval_mode import eval_mode
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model.attachment import prompts_of
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.prompt.plain import one_task, plain_prompt
from softprompt_zoo.sites.batch import join
from softprompt_zoo.sites.call import Call, Part, Segment, Selection, Trace
from softprompt_zoo.sites.select import check_combination
from softprompt_zoo.sites.shared_pass import causal_prefix
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.site_tokens import SiteTokens


@torch.no_grad()
def fold(
    model: PreTrainedModel, names: str | Sequence[str] | None = None, *, name: str = "folded", task: int | None = None
) -> PreTrainedModel:
    """Make one plain prefix of a combination of prompts, with the same outputs, and activate it.

    On a causal model any prompts that share the text's softmax fold: those at the input embeddings become the keys
    and values that the model computes for them after what is before. On other models prompts of keys and values
    fold, with as many tokens at every site. The folded prompt is merged: it has the outputs of eval mode, and no
    dropout. As all keys and values, it does not predict the first label of a loss.

    Args:
        model: A model with prompts. It gets one more; the others stay.
        names: The prompts, in order, or one; by default the active ones.
        name: Name of the new prompt.
        task: The task of those prompts that have tasks.

    Returns:
        The same model.

    Raises:
        PromptExistsError: If the name is taken.
        UnknownPromptError: If a prompt is not there.
        TypeError: If `names` is neither a name nor a list of names.
        ValueError: If there is nothing to fold, a prompt does not have that task, or none has tasks.
        UnsupportedError: If the prompts cannot be one prefix; says why. Nothing is changed.
    """
    host = prompts_of(model, "fold")
    combination = _combination(host, names, task)
    host.check_name(name)
    placements = {part: _plain_placement(host, part, task) for part in combination}
    is_visible = _always_visible(host, placements)
    tokens = _causal(model, host, placements) or _per_site(host, placements)
    heads = [host[part].head for part in combination if host[part].head is not None]
    like = Placement(tokens, always_visible=is_visible)
    folded = plain_prompt(tokens, host.backbone, like, head=copy.deepcopy(heads[-1]) if heads else None)
    folded.requires_grad_(any(host[part].is_trained for part in combination))
    host.insert(name, folded)
    host.activate(name)
    return model


def _combination(host: Prompts, names: str | Sequence[str] | None, task: int | None) -> tuple[str, ...]:
    combination = host.active if names is None else check_combination(names, host.keys(), "names")
    if not combination:
        known = ", ".join(map(repr, host)) or "none"
        raise ValueError(f"there is nothing to fold: no prompt is active; give the names of some of {known}")
    if task is not None and all(host[part].config.tasks is None for part in combination):
        raise ValueError(f"task is {task!r}, and the prompts have no tasks; leave it out")
    return combination


def _plain_placement(host: Prompts, name: str, task: int | None) -> Placement:
    """Place a prompt's plain tokens, those of one task; refuse tokens that do not share the text's softmax."""
    prompt = host[name]
    prompt.refuse_weight(f"prompt {name!r}", "a plain prefix")
    tokens = prompt.merged_tokens(host.backbone)
    if tokens.num_tasks is not None:
        if task is None:
            raise UnsupportedError(
                f"prompt {name!r} has {tokens.num_tasks} tasks and a prefix holds one; choose it with task=…"
            )
        tokens = one_task(tokens, task, name)
    if tokens.gates:
        raise UnsupportedError(
            f"prompt {name!r} has gated tokens, which have a softmax of their own and so are not a prefix; leave it out"
        )
    if tokens.at_input is not None and not host.backbone.kind.is_causal:
        raise UnsupportedError(
            f"prompt {name!r} is at the input of a bidirectional encoder, where virtual tokens see the text and so "
            "have no keys and values of their own; fold prompts of keys and values only"
        )
    arguments = {"config": prompt.config, "parameters": prompt.learned, "tokens": tokens, "backbone": host.backbone}
    placement: Placement = prompt.loaded.call("inject", **arguments)
    return placement


def _always_visible(host: Prompts, placements: dict[str, Placement]) -> bool:
    """Return whether the fold stays in sight of windows; refuse if only a part of it would."""
    if not any(shape.window for shapes in host.backbone.layers.values() for shape in shapes):
        return False
    kinds = {placement.always_visible for placement in placements.values()}
    if len(kinds) > 1:
        visible = next(name for name, placement in placements.items() if placement.always_visible)
        raise UnsupportedError(
            f"prompt {visible!r} has always_visible=True and others of the combination slide out of the model's "
            "windows; one prefix does one or the other; fold them apart"
        )
    return kinds.pop()


def _causal(model: Any, host: Prompts, placements: dict[str, Placement]) -> LayerTokens | None:
    if not host.backbone.kind.is_causal:
        return None
    [stack] = model._softprompt_stacks.values()
    if not host.backbone.layers:
        raise UnsupportedError(f"keys and values cannot be reached in this model: {stack.reach.problem}")
    if stack.rotation_limit is not None:
        for name, placement in placements.items():
            if placement.tokens.at_input is not None:
                raise UnsupportedError(
                    f"prompt {name!r} is at the input of a model that rotates all positions in another way where a "
                    f"text is longer than {stack.rotation_limit} tokens, so no keys and values of it hold for every "
                    "text; leave it as it is, or fold prompts of keys and values only"
                )
    parts = {Part(name): placement for name, placement in placements.items()}
    call = Call(Selection((tuple(parts),), None), parts, False, Trace())
    with eval_mode([stack.module]):
        [segment] = causal_prefix(stack, call).segments
    return LayerTokens({stack.name: _site(segment)})  # type: ignore[arg-type]


def _per_site(host: Prompts, placements: dict[str, Placement]) -> LayerTokens:
    sites = host.backbone.layers
    segments = {}
    for site in sites:
        segments[site] = functools.reduce(join, [Segment.of(placement, site) for placement in placements.values()])
    counts = {site: segment.length for site, segment in segments.items() if segment is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} at {site!r}" for site, count in counts.items())
        raise UnsupportedError(
            f"the prompts have {found}; a prefix has as many tokens at every site; fold prompts of the same sites"
        )
    return LayerTokens({site: _site(segment) for site, segment in segments.items() if segment is not None})


def _site(segment: Segment) -> SiteTokens:
    keys, values = ([layer.detach().clone() for layer in kind] for kind in (segment.keys, segment.values))
    return SiteTokens(tuple(keys), tuple(values))
