"""The input of attention, for the branches of prompts that read it: it is shown only while there is one."""

import weakref
from collections.abc import Iterable
from typing import Any

from softprompt_zoo.prompt.prompt import Prompt


class BranchInputs:
    """Shows the input of a model's attention to branches, as long as one of the prompts reads it."""

    def __init__(self, model: Any = None) -> None:
        self._model = None if model is None else weakref.ref(model)
        self._are_shown = False

    @property
    def model(self) -> Any:
        """The model, as long as it exists; otherwise `None`."""
        return None if self._model is None else self._model()

    def follow(self, prompts: Iterable[Prompt]) -> None:
        """Add hooks to the attention modules of the model, or remove them.

        Args:
            prompts: Those of the model.
        """
        model = self.model
        if hasattr(model, "_softprompt_stacks"):  # it has none while its first prompts are attached
            beyond = [prompt.beyond_tokens for prompt in prompts]
            is_wanted = any(own is not None and own.reads_hidden for own in beyond)
            if is_wanted or self._are_shown:
                self._show(model, is_wanted)

    def _show(self, model: Any, is_wanted: bool) -> None:
        for stack in model._softprompt_stacks.values():
            stack.reach.show_hidden(stack, is_wanted)
        self._are_shown = is_wanted

    def __reduce__(self) -> Any:
        """Copy nothing: it belongs to one model, and a copy of that model creates a new one."""
        return BranchInputs, ()
