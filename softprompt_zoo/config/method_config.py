"""What the user chose: frozen dataclasses that check their fields and survive a round trip through JSON."""

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Self

from softprompt_zoo.config import typed
from softprompt_zoo.config.checks import check_choice, check_positive_integer

GIVEN = "given"
"""Stands in a saved config for start values that were handed over, and are not needed again."""
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
"""Of a prompt's name."""
PromptName = Annotated[str, typed.Allowed("letters, digits, '_' and '-'", NAME_PATTERN.fullmatch)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Options that every method has; a method's own config extends it."""

    num_virtual_tokens: int = 20
    """Virtual tokens of the prompt, at least 1."""
    train_head: bool = False
    """Whether the model's task head is trained, too, as a copy that belongs to the prompt."""
    pools_prompt: bool = False
    """Whether an encoder's classifier reads the first virtual token where it reads the text's first one, as in PEFT."""

    def __post_init__(self) -> None:
        check_positive_integer("num_virtual_tokens", self.num_virtual_tokens)
        check_choice("train_head", self.train_head, (False, True))
        check_choice("pools_prompt", self.pools_prompt, (False, True))

    def settle(self, **values: Any) -> None:
        """Replace options of a config that is being made by what they amount to, a default say.

        Args:
            **values: Field name to value. For `__post_init__` alone: nobody has seen the config yet.
        """
        for name, value in values.items():
            object.__setattr__(self, name, value)

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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are saved, as JSON values.

        Returns:
            Field name to value. Fields marked `saved=False` (a tokenizer, say) are left out, and a value that
            is not one of a field's `names` (a folder or a prompt to start from) is written as `"given"`.

        Raises:
            TypeError: If JSON has no place for a value.
        """
        fields = [field for field in dataclasses.fields(self) if field.metadata.get("saved", True)]
        return {field.name: _json_value(field, getattr(self, field.name)) for field in fields}

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Build the config from keyword options.

        Args:
            options: Field name to value. Not changed.

        Returns:
            The config.

        Raises:
            TypeError: If an option is unknown, or has a wrong type.
            ValueError: If an option has a value that is not allowed.
        """
        cls._check_known(options)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
        }
        try:
            config = cls(**values)
        except Exception as error:
            if not any(name in str(error) for name in values):  # a check that did not think of such a type
                cls._check_types(values)
            raise
        cls._check_types(values)
        return config

    @classmethod
    def _check_known(cls, names: Iterable[str]) -> None:
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r} for {cls.__name__}; expected any of {', '.join(known)}")

    @classmethod
    def _check_types(cls, values: dict[str, Any]) -> None:
        """Refuse values that are not what the fields' annotations say."""
        kind: Any = cls
        hints, _ = typed.fields_of(kind)
        for name, value in values.items():
            try:
                typed.convert(hints[name], value, name)
            except typed.MismatchError as error:
                raise TypeError(str(error)) from None


def _json_value(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """Return what is saved of a field's value."""
    names = field.metadata.get("names")
    if names is not None and value not in names:
        return GIVEN
    saved = list(value) if isinstance(value, tuple) else value
    try:
        json.dumps(saved)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{field.name} is {value!r} ({type(value).__name__}), which cannot be saved; expected text, a "
            "number, True, False, None, or a tuple of these. An option that need not be saved says so in its "
            'field: metadata={"saved": False}'
        ) from error
    return saved
