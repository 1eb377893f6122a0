"""The attention function that configs choose by name: ours, around the one that the model, or somebody since, chose."""

from collections.abc import Iterable
from typing import Any

from softprompt_zoo.backbone.backbone import Stack, attention_configs
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.attention_interface import PREFIX, base_implementation, prompted_implementation


def prompt_implementation(stacks: Iterable[Stack]) -> None:
    """Let the stacks' configs choose our attention function, around the one that they chose.

    Args:
        stacks: The stacks; those that are reached through their cache are left alone.

    Raises:
        UnsupportedError: If prompts cannot be added to a function that was chosen. Nothing is changed.
    """
    reached = [stack.module for stack in stacks if not stack.through_cache]
    configs = [config for module in reached for config in attention_configs(module)]
    names = [prompted_implementation(base_implementation(config._attn_implementation)) for config in configs]
    for config, name in zip(configs, names, strict=True):
        config._attn_implementation_internal = name


def restore_implementation(configs: list[Any]) -> None:
    """Undo `prompt_implementation`."""
    for config in configs:
        config._attn_implementation_internal = base_implementation(config._attn_implementation_internal or "") or None


def follow_implementation(stack: Stack, before: str) -> None:
    """Go along with a name that was written to a prompted model's config, as Whisper does to find words' times.

    Args:
        stack: The stack that is about to run.
        before: The name of ours that its config had when the prompts came.

    Raises:
        UnsupportedError: If prompts cannot be added to that attention function; the config has the name `before` again.
    """
    written = stack.module.config._attn_implementation
    if written is not None and written.startswith(PREFIX):
        return
    try:
        prompt_implementation([stack])
    except (UnsupportedError, AttributeError) as error:
        for config in attention_configs(stack.module):
            config._attn_implementation_internal = before
        raise UnsupportedError(
            f"the attention implementation {written!r} was written to the config of a model with prompts, to which "
            f"they cannot be added; the config has {base_implementation(before)!r} again; choose 'eager', 'sdpa' or "
            "'flex_attention', with model.set_attn_implementation"
        ) from error
