"""Through transformers' attention interface: the model hands a keyword down to an attention function of ours."""

from collections.abc import Sequence

from softprompt_zoo.backbone.probe import AttentionCall
from softprompt_zoo.sites.reach.on_our_attention import OnOurAttention
from softprompt_zoo.sites.stack import Look, Stack


class ThroughInterface(OnOurAttention):
    """Most models. What our function does is in `attention_interface`."""

    shows_columns = True

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Take the calls that brought the keyword along."""
        return look.calls

    def refuse_single_layers(self, stack: Stack) -> None:
        """Refuse none: our function records what a layer is called with."""
