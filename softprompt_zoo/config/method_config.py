"""What the user chose: frozen dataclasses that check their fields and survive a round trip through JSON."""

import dataclasses
import re
from typing import Annotated, Any, Self

from softprompt_zoo.config import typed
from softprompt_zoo.config.checks import check_choice, check_positive_integer
from softprompt_zoo.config.options import Options

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
"""Of a prompt's name."""
PromptName = Annotated[str, typed.Allowed("letters, digits, '_' and '-'", NAME_PATTERN.fullmatch)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig(Options):
    """Options that every method has; a method's own config extends it."""

    num_virtual_tokens: int = 20
    """Virtual tokens of the prompt, at least 1; 0 in the config of a method that has none."""
    train_head: bool = False
    """Whether the model's task head is trained, too, as a copy that belongs to the prompt."""
    pools_prompt: bool = False
    """Whether an encoder's classifier reads the first virtual token where it reads the text's first one, as in PEFT."""

    def __post_init__(self) -> None:
        if self.num_virtual_tokens != 0 or type(self).num_virtual_tokens != 0:
            check_positive_integer("num_virtual_tokens", self.num_virtual_tokens)
        check_choice("train_head", self.train_head, (False, True))
        check_choice("pools_prompt", self.pools_prompt, (False, True))

    @classmethod
    def from_options(cls, options: dict[str, Any], owner: str = "") -> Self:
        """Build the config from keyword options; as `Options.from_options`."""
        config = super().from_options(options, owner)
        MethodConfig.__post_init__(config)  # one of a method may have left it out
        return config

    @property
    def tasks(self) -> int | None:
        """How many tasks the prompt has; `None` if its method has no tasks."""
        return getattr(self, "num_tasks", None)

    @property
    def replaces_loss(self) -> bool:
        """Whether `training_loss` is asked; a method whose loss is an option says `False` where it is off."""
        return True

    def advice_to_shorten(self, most: int) -> str:
        """Return what makes the prompt shorter; a method that counts its tokens says what they come from.

        Args:
            most: Virtual tokens that there is room for.

        Returns:
            What to do, for a message.
        """
        return f"choose at most {most}"
