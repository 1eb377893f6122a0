"""The attention function that configs choose by name: ours, around the one that the model, or somebody since, chose."""

from typing import Any

from softprompt_zoo.backbone.eval_mode import attention_configs
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.implementations import PREFIX, base_implementation, prompted_implementation
from softprompt_zoo.sites.reach.marks import mark_sites, unmark_sites
from softprompt_zoo.sites.reach.reach import Reach
from softprompt_zoo.sites.stack_facts import StackFacts


class OnOurAttention(Reach):
    """What the ways have in common in which a stack's config names our attention function."""

    def choose_attention(self, stack: StackFacts) -> None:
        """Name our function, around the one that the config names."""
        configs = attention_configs(stack.module)
        names = [prompted_implementation(base_implementation(config._attn_implementation)) for config in configs]
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation_internal = name

    def follow_attention(self, stack: StackFacts, before: str) -> None:
        """Name ours around what was written to the config since, as Whisper does to find words' times."""
        written = stack.module.config._attn_implementation
        if written is not None and written.startswith(PREFIX):
            return
        try:
            self.choose_attention(stack)
        except (UnsupportedError, AttributeError) as error:
            for config in attention_configs(stack.module):
                config._attn_implementation_internal = before
            raise UnsupportedError(
                f"the attention implementation {written!r} was written to the config of a model with prompts, to which "
                f"they cannot be added; the config has {base_implementation(before)!r} again; choose 'eager', 'sdpa' "
                "or 'flex_attention', with model.set_attn_implementation"
            ) from error

    def install(self, stack: StackFacts, model: Any) -> None:
        """Choose our function, and tell the attention modules which layers they are."""
        self.choose_attention(stack)
        mark_sites(stack)

    def remove(self, stack: StackFacts) -> None:
        """Take the marks off."""
        unmark_sites(stack)


def restore_attention(configs: list[Any]) -> None:
    """Let configs name the functions that they named before ours came around them."""
    for config in configs:
        config._attn_implementation_internal = base_implementation(config._attn_implementation_internal or "") or None
