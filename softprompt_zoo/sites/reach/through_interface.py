"""Through transformers' attention interface: the model passes a keyword down to our attention function."""

from collections.abc import Sequence

from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.sites.reach.attention_in_config import AttentionInConfig
from softprompt_zoo.sites.reach.hidden_states import show_hidden
from softprompt_zoo.sites.reach.reach import Look
from softprompt_zoo.sites.stack_facts import StackFacts


class ThroughInterface(AttentionInConfig):
    """Most models. Our function is in `attention_interface`."""

    shows_columns = True

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Return the calls that received the keyword."""
        return look.calls

    def show_hidden(self, stack: StackFacts, is_wanted: bool) -> None:
        """Add hooks to the attention modules, or remove them."""
        show_hidden(stack, is_wanted)

    def remove(self, stack: StackFacts) -> None:
        """Undo `install` and `show_hidden`."""
        self.show_hidden(stack, False)
        super().remove(stack)

    def refuse_single_layers(self, stack: StackFacts) -> None:
        """Refuse nothing: our function records a layer's arguments."""
