"""The attention function that configs choose by name: ours, wrapping the one chosen originally or since."""

from typing import Any

from softprompt_zoo.backbone.eval_mode import attention_configs
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.reach.implementations import PREFIX, base_implementation, prompted_implementation
from softprompt_zoo.sites.reach.marks import mark_sites, unmark_sites
from softprompt_zoo.sites.reach.reach import Reach
from softprompt_zoo.sites.stack_facts import StackFacts


class AttentionInConfig(Reach):
    """The base of all ways in which a stack's config names our attention function."""

    def choose_attention(self, stack: StackFacts) -> None:
        """Choose our function, wrapping the one that the config names."""
        configs = attention_configs(stack.module)
        names = [prompted_implementation(base_implementation(config._attn_implementation)) for config in configs]
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation_internal = name

    def follow_attention(self, stack: StackFacts, before: str) -> None:
        """Wrap the function written to the config since, as Whisper does to compute word timestamps."""
        written = stack.module.config._attn_implementation
        if written is not None and written.startswith(PREFIX):
            return
        try:
            self.choose_attention(stack)
        except (UnsupportedError, AttributeError) as error:
            for config in attention_configs(stack.module):
                config._attn_implementation_internal = before
            raise UnsupportedError(
                f"the attention implementation {written!r} was written to the config of a model with prompts, which "
                f"it does not support; the config is back to {base_implementation(before)!r}; choose 'eager', 'sdpa' "
                "or 'flex_attention', with model.set_attn_implementation"
            ) from error

    def install(self, stack: StackFacts, model: Any) -> None:
        """Choose our function, and mark the attention modules with their layers."""
        self.choose_attention(stack)
        mark_sites(stack)

    def remove(self, stack: StackFacts) -> None:
        """Remove the marks."""
        unmark_sites(stack)


def restore_attention(configs: list[Any]) -> None:
    """Restore the functions that configs named before ours wrapped them."""
    for config in configs:
        config._attn_implementation_internal = base_implementation(config._attn_implementation_internal or "") or None
