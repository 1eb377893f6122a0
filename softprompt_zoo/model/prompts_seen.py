"""A model's prompts as files, the hub and users see them."""

from typing import Any

from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model.entry import Entry
from softprompt_zoo.prompt.prompt_set import PromptSet
from softprompt_zoo.prompt.shown import shown
from softprompt_zoo.sites.selection import Selection


class PromptsSeen(nn.Module):
    """The read-only views of `model.prompts`; mixed into it."""

    backbone: Backbone
    architecture: str
    base_name: str | None
    chosen: Selection
    entry: Entry
    items: Any

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the prompts that rows see when a call names none, in order."""
        return tuple([part.name for part in self.chosen.combinations[0]])

    def saved(self) -> PromptSet:
        """Return these prompts in the form that files are written from."""
        return PromptSet(self.backbone, self.architecture, self.base_name, self.active, dict(self.items()))

    def push_to_hub(self, repo_id: str, **how: Any) -> Any:
        """Push the prompts; the same as the model's `push_to_hub`, with the same arguments."""
        model = self.entry.branch_inputs.model
        if model is None:
            raise UnsupportedError(
                f"these prompts are not on a model, so {repo_id!r} would not say which model they are for"
            )
        return model.push_to_hub(repo_id, **how)

    def __repr__(self) -> str:
        lines = [f"{'*' if name in self.active else ' '} {name}: {shown(prompt)}" for name, prompt in self.items()]
        return "\n".join([f"prompts of {self.architecture or 'a model'} (* active):", *(lines or ["  none"])])
