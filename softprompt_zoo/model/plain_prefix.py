"""Prompts as one plain prefix: exactly the keys and values that the text sees."""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.peft_layers import model_inside
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model.attachment import is_attached
from softprompt_zoo.prompt.plain import one_task, plain_prompt
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.sites.batch import join
from softprompt_zoo.sites.call import Call, Segment, Trace
from softprompt_zoo.sites.selection import Part, Selection
from softprompt_zoo.sites.shared_pass import causal_prefix
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.trial.examination import examine
from softprompt_zoo.trial.words import ready


@dataclasses.dataclass(frozen=True)
class PrefixMaker:
    """Builds plain prefixes for a model, which may have prompts and is not changed."""

    model: Any
    """The model, without a `PeftModel` around it."""
    backbone: Backbone
    """Its sizes."""
    stacks: Mapping[str, Stack]
    """Its stacks of layers."""

    @classmethod
    def of(cls, model: Any) -> "PrefixMaker":
        """Examine a model.

        Args:
            model: A transformers model, or a `PeftModel`, with prompts or without.

        Returns:
            A maker of prefixes for it.

        Raises:
            UnsupportedError: If no prompt can be attached to it.
        """
        inside = model_inside(model)
        if is_attached(model):
            return cls(inside, inside.prompts.backbone, inside._softprompt_stacks)
        return cls(inside, *examine(model))

    @torch.no_grad()
    def fold(self, prompts: Mapping[str, Prompt], task: int | None = None) -> Prompt:
        """Combine prompts into one plain prefix.

        Args:
            prompts: Prompts of a model of these sizes, by name, in order. Not changed.
            task: The task to use for those that have tasks.

        Returns:
            The prefix, not on any model, with the last trained task head; trainable if one of them is.

        Raises:
            ValueError: If a prompt does not have that task.
            UnsupportedError: If they cannot become one prefix; says why.
        """
        placements = {name: _plain_placement(self.backbone, name, prompt, task) for name, prompt in prompts.items()}
        is_visible = _always_visible(self.backbone, placements)
        if self.backbone.kind.is_causal:
            tokens = _causal(self.backbone, self.stacks, placements)
        else:
            tokens = _per_site(self.backbone, placements)
        heads = [prompt.head for prompt in prompts.values() if prompt.head is not None]
        like = Placement(tokens, always_visible=is_visible)
        folded = plain_prompt(tokens, self.backbone, like, head=copy.deepcopy(heads[-1]) if heads else None)
        return folded.requires_grad_(any(prompt.is_trained for prompt in prompts.values()))


def _plain_placement(backbone: Backbone, name: str, prompt: Prompt, task: int | None) -> Placement:
    """Place the plain tokens of a prompt and one task; refuse tokens that do not share the text's softmax."""
    prompt.refuse_weight(f"prompt {name!r}", "a plain prefix")
    tokens = prompt.merged_tokens(backbone)
    if tokens.num_tasks is not None:
        if task is None:
            raise UnsupportedError(
                f"prompt {name!r} has {tokens.num_tasks} tasks, but a prefix holds one; choose it with task=…"
            )
        tokens = one_task(tokens, task, name)
    if tokens.beyond_prefix is not None:
        raise UnsupportedError(f"prompt {name!r} has {tokens.beyond_prefix}; leave it out")
    if tokens.at_input is not None and not backbone.kind.is_causal:
        raise UnsupportedError(
            f"prompt {name!r} is at the input of a bidirectional encoder, where virtual tokens see the text and so "
            "have no keys and values of their own; fold prompts of keys and values only"
        )
    placement: Placement = prompt.call("inject", tokens=tokens, backbone=backbone, text=None)
    return placement


def _always_visible(backbone: Backbone, placements: dict[str, Placement]) -> bool:
    """Return whether the fold is always visible under sliding windows; refuse if only a part of it is."""
    if not any(shape.window for shapes in backbone.layers.values() for shape in shapes):
        return False
    kinds = {placement.always_visible for placement in placements.values()}
    if len(kinds) > 1:
        visible = next(name for name, placement in placements.items() if placement.always_visible)
        raise UnsupportedError(
            f"prompt {visible!r} has always_visible=True, but others in the combination slide out of the model's "
            "windows; a prefix can only do one or the other; fold them separately"
        )
    return kinds.pop()


def _causal(backbone: Backbone, stacks: Mapping[str, Stack], placements: dict[str, Placement]) -> LayerTokens:
    [stack] = stacks.values()
    if not backbone.layers:
        raise UnsupportedError(f"keys and values cannot be reached in this model: {stack.reach.problem}")
    if stack.rotation_limit is not None:
        for name, placement in placements.items():
            if placement.tokens.at_input is not None:
                raise UnsupportedError(
                    f"prompt {name!r} is at the input of a model that rotates all positions differently if a "
                    f"text is longer than {stack.rotation_limit} tokens, so none of its keys and values hold for every "
                    "text; leave it as it is, or fold prompts of keys and values only"
                )
    parts = {Part(name): placement for name, placement in placements.items()}
    call = Call(Selection((tuple(parts),), None), parts, False, Trace())
    with ready(stacks):
        [segment] = causal_prefix(stack, call).segments
    return LayerTokens({stack.name: _site(segment)})  # type: ignore[arg-type]


def _per_site(backbone: Backbone, placements: dict[str, Placement]) -> LayerTokens:
    sites = backbone.layers
    segments = {}
    for site in sites:
        segments[site] = functools.reduce(join, [Segment.of(placement, site) for placement in placements.values()])
    counts = {site: segment.length for site, segment in segments.items() if segment is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} at {site!r}" for site, count in counts.items())
        raise UnsupportedError(
            f"the prompts have {found}; a prefix has equally many tokens at every site; fold prompts of the same sites"
        )
    return LayerTokens({site: _site(segment) for site, segment in segments.items() if segment is not None})


def _site(segment: Segment) -> SiteTokens:
    keys, values = ([layer.detach().clone() for layer in kind] for kind in (segment.keys, segment.values))
    return SiteTokens(tuple(keys), tuple(values))
