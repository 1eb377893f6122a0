"""What the frozen model computes for real words: the initial values of prefixes."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.eval_mode import eval_mode
from softprompt_zoo.sites.reach.implementations import PREFIX
from softprompt_zoo.sites.reach.marks import mark_of
from softprompt_zoo.sites.shared_pass import record_keys_values
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import KeyValueRecording
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.site_tokens import SiteTokens


@torch.no_grad()
def embed(stacks: Mapping[str, Stack], ids: Tensor) -> Tensor:
    """Embed token ids as the model does.

    Args:
        stacks: The model's stacks.
        ids: `(...)` token ids.

    Returns:
        `(..., hidden)`, the output of the embedding module (Gemma scales it), without gradient.
    """
    stack = next(iter(stacks.values()))
    weight: Any = stack.embedding.weight  # the model may have been moved
    return stack.embed(ids.to(weight.device))


@torch.no_grad()
def keys_values(stacks: Mapping[str, Stack], ids: Tensor) -> LayerTokens:
    """Run the model on a text alone and return the keys and values of every site.

    Args:
        stacks: The model's stacks. Not changed.
        ids: `(tokens,)` token ids, at positions `0 … tokens - 1`. An encoder-decoder reads them on both sides; an
            audio encoder reads silence instead, from the beginning.

    Returns:
        Keys and values per site and layer, without gradient.
    """
    recorded = []
    states = None
    with ready(stacks):
        for stack in stacks.values():
            inputs = stack.reading(ids[None])
            if states is not None:
                inputs |= {"encoder_hidden_states": states, "use_cache": False}
            output, seen = record_keys_values(stack, inputs)
            states = output.last_hidden_state
            recorded.append((stack, seen))
    count = ids.shape[0]
    return LayerTokens(
        {site: _site_tokens(seen, site, stack, count) for stack, seen in recorded for site in stack.attentions}
    )


def _site_tokens(recorded: KeyValueRecording, site: str, stack: Stack, count: int) -> SiteTokens:
    places = [AttentionLayer(site, layer) for layer in range(len(stack.attentions[site]))]
    keys, values = ([seen[place][0] for place in places] for seen in (recorded.keys, recorded.values))
    length = keys[0].shape[1]
    if length != count:  # an audio encoder reads silence of its fixed length
        wanted = torch.arange(count, device=keys[0].device) % length
        keys, values = ([part[:, wanted] for part in parts] for parts in (keys, values))
    return SiteTokens(tuple(keys), tuple(values))


def is_ready(stack: Stack) -> bool:
    """Return whether a stack's attention modules know their sites and call our function, as when attached."""
    is_prompted = stack.module.config._attn_implementation.startswith(PREFIX)
    return is_prompted and mark_of(stack.attentions[stack.name][0]) is not None


@contextlib.contextmanager
def ready(stacks: Mapping[str, Stack]) -> Iterator[None]:
    """Prepare a model for recording, attached or not; restore it afterwards."""
    new = _without_marks(stacks)
    with eval_mode([stack.module for stack in stacks.values()]):
        try:
            for stack in stacks.values():
                if stack in new:
                    stack.reach.install(stack, None)
                else:
                    stack.reach.choose_attention(stack)
            yield
        finally:
            for stack in new:
                stack.reach.remove(stack)


def _without_marks(stacks: Mapping[str, Stack]) -> list[Stack]:
    """List the stacks that are not ready for prompts yet."""
    return [stack for stack in stacks.values() if not all(map(mark_of, stack.attentions.get(stack.name, ())))]
