"""Through transformers' attention interface: the model hands a keyword down to an attention function of ours."""

from collections.abc import Sequence

from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.sites.reach.hidden_states import show_hidden
from softprompt_zoo.sites.reach.on_our_attention import OnOurAttention
from softprompt_zoo.sites.reach.reach import Look
from softprompt_zoo.sites.stack_facts import StackFacts


class ThroughInterface(OnOurAttention):
    """Most models. What our function does is in `attention_interface`."""

    shows_columns = True

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Take the calls that brought the keyword along."""
        return look.calls

    def show_hidden(self, stack: StackFacts, is_wanted: bool) -> None:
        """Put hooks on the attention modules, or take them off."""
        show_hidden(stack, is_wanted)

    def remove(self, stack: StackFacts) -> None:
        """Undo `install` and `show_hidden`."""
        self.show_hidden(stack, False)
        super().remove(stack)

    def refuse_single_layers(self, stack: StackFacts) -> None:
        """Refuse none: our function records what a layer is called with."""
