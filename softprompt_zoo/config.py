"""What the user chose: frozen dataclasses that check their fields and survive a round trip through JSON."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, Self

from softprompt_zoo import typed

GIVEN = "given"
"""Stands in a saved config for start values that were handed over, and are not needed again."""
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
"""Of a prompt's name."""
PromptName = Annotated[str, typed.Allowed("letters, digits, '_' and '-'", NAME_PATTERN.fullmatch)]
LARGEST_WEIGHT = 65504.0
"""The largest factor on a prompt's share of attention: the largest number of float16."""


def check_positive_integer(name: str, value: object) -> None:
    """Refuse anything but an integer of at least 1.

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is not an integer (`True` and `2.0` are not).
        ValueError: If `value` is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected an integer of at least 1")
    if value < 1:
        raise ValueError(f"{name} is {value}; expected an integer of at least 1")


def check_boolean(name: str, value: object) -> None:
    """Refuse anything but `True` and `False`.

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected True or False")


def check_probability(name: str, value: object) -> None:
    """Refuse anything but a number in [0, 1).

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is outside [0, 1).
    """
    _check_number(name, value, "in [0, 1)", lambda number: 0 <= number < 1)


def check_not_negative(name: str, value: object) -> None:
    """Refuse anything but a finite number of at least 0.

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is below 0, infinite or not a number.
    """
    _check_number(name, value, "of at least 0", lambda number: 0 <= number < math.inf)


def check_positive(name: str, value: object) -> None:
    """Refuse anything but a finite number above 0.

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is not above 0, infinite or not a number.
    """
    _check_number(name, value, "above 0", lambda number: 0 < number < math.inf)


def check_weight(name: str, value: object) -> None:
    """Refuse anything but a number that every model's dtype can hold as a factor.

    Args:
        name: What is weighed, for the message.
        value: What the user or a file gave.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is below 0, above 65504, or not a number.
    """
    _check_number(name, value, f"from 0 to {LARGEST_WEIGHT:.0f}", is_weight)


def is_weight(number: float) -> bool:
    """Return whether a number can be a prompt's weight."""
    return 0 <= number <= LARGEST_WEIGHT


def _check_number(name: str, value: object, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected a number {allowed}")
    if not is_allowed(value):
        raise ValueError(f"{name} is {value}; expected a number {allowed}")


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    """Refuse a value that is not one of the allowed ones.

    Args:
        name: The option's name, for the message.
        value: What the user gave.
        allowed: The allowed values.

    Raises:
        ValueError: If `value` is not allowed.
    """
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} is {value!r}; expected one of {choices}")


def check_reparameterization(kind: object, size: object, allowed: Collection[object]) -> None:
    """Check the options of a net that makes the prompt while training.

    Args:
        kind: The option `reparameterization`; `None` for no net.
        size: The option `reparameterization_size`; `None` for the method's own width.
        allowed: The kinds of net that the method has.

    Raises:
        TypeError: If `size` is not an integer.
        ValueError: If `kind` is not allowed, `size` is below 1, or there is a size and no net.
    """
    check_choice("reparameterization", kind, (None, *allowed))
    if size is None:
        return
    check_positive_integer("reparameterization_size", size)
    if kind is None:
        raise ValueError(
            f"reparameterization_size is {size}, the width of a net, but reparameterization is None; leave it out, or "
            f"choose reparameterization={' or '.join(map(repr, allowed))}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Options that every method has; a method's own config extends it."""

    num_virtual_tokens: int = 20
    """Virtual tokens of the prompt, at least 1."""
    train_head: bool = False
    """Whether the model's task head is trained along, as a copy that belongs to the prompt."""
    pools_prompt: bool = False
    """Whether an encoder's classifier reads the first virtual token where it reads the text's first one, as in PEFT."""

    def __post_init__(self) -> None:
        check_positive_integer("num_virtual_tokens", self.num_virtual_tokens)
        check_choice("train_head", self.train_head, (False, True))
        check_choice("pools_prompt", self.pools_prompt, (False, True))

    @property
    def tasks(self) -> int | None:
        """How many tasks the prompt has; `None` if its method has no tasks."""
        return getattr(self, "num_tasks", None)

    @property
    def replaces_loss(self) -> bool:
        """Whether `training_loss` is asked; a method whose loss is an option says `False` where it is off."""
        return True

    def advice_to_shorten(self, most: int) -> str:
        """Say what makes the prompt shorter; a method that counts its tokens says what they come from.

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
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value, names = getattr(self, field.name), field.metadata.get("names")
            if not field.metadata.get("saved", True):
                continue
            if names is not None and value not in names:
                value = GIVEN
            values[field.name] = list(value) if isinstance(value, tuple) else value
            try:
                json.dumps(values[field.name])
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{field.name} is {value!r} ({type(value).__name__}), which cannot be saved; expected text, a "
                    "number, True, False, None, or a tuple of these. An option that need not be saved says so in its "
                    'field: metadata={"saved": False}'
                ) from error
        return values

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
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r} for {cls.__name__}; expected any of {', '.join(known)}")
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
    def _check_types(cls, values: dict[str, Any]) -> None:
        """Refuse values that are not what the fields' annotations say."""
        kind: Any = cls
        hints, _ = typed.fields_of(kind)
        for name, value in values.items():
            try:
                typed.convert(hints[name], value, name)
            except typed.MismatchError as error:
                raise TypeError(str(error)) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to train that was seen to work, and where it comes from."""

    learning_rate: float
    """Peak learning rate."""
    steps: int
    """Optimizer steps."""
    batch_size: int = 8
    """Rows per optimizer step."""
    warmup_steps: int = 5
    """Steps of linear warm-up."""
    schedule: str = "linear"
    """Name of a transformers learning-rate schedule."""
    weight_decay: float = 0.0
    """The optimizer's weight decay."""
    optimizer: str = "adamw_torch"
    """Name of a transformers optimizer; by default torch's AdamW."""
    source: str = ""
    """Where the numbers come from."""
