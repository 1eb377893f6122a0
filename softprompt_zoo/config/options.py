"""The options of a method or a wrapper: a frozen dataclass that is validated, and saved as JSON."""

import dataclasses
import difflib
import json
import operator
import re
from typing import Any, Self

from softprompt_zoo.config.checks import check_choice, check_positive_integer

GIVEN = "given"
"""Written to a saved config in place of given start values, which are not needed again."""
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
"""Pattern of prompt names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a wrapper, whose `Config` extends this class; those of a method are a `MethodConfig`."""

    def settle(self, **values: Any) -> None:
        """Replace options while the config is being created, such as `None` by the actual default.

        Args:
            **values: Field name to value. Call this only in `__post_init__`, before anyone has seen the config.
        """
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are saved, as JSON values.

        Returns:
            Field name to value. Fields marked `saved=False` (such as a tokenizer) are left out, and a value that
            is not one of a field's `names` (such as a folder or a prompt to start from) is written as `"given"`.

        Raises:
            TypeError: If a value would not survive saving and loading.
        """
        fields = [field for field in dataclasses.fields(self) if field.metadata.get("saved", True)]
        return {field.name: _json_value(field, getattr(self, field.name)) for field in fields}

    @classmethod
    def from_options(cls, options: dict[str, Any], owner: str = "") -> Self:
        """Build the config from keyword options.

        Args:
            options: Field name to value. Not changed.
            owner: The method or wrapper whose options they are, for messages.

        Returns:
            The config.

        Raises:
            TypeError: If an option is unknown, or has a wrong type.
            ValueError: If an option has a value that is not allowed.
        """
        owner = owner or cls.__name__
        cls._check_known(options, owner)
        values: dict[str, Any] = {name: _with_tuples(value) for name, value in options.items()}
        try:
            config = cls(**values)
        except Exception as error:
            if not any(name in str(error) for name in values):  # a check that did not expect this type
                cls._check_types(values, owner)
            raise
        cls._check_types(values, owner)
        return config

    @classmethod
    def _check_known(cls, options: dict[str, Any], owner: str) -> None:
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = next((name for name in options if name not in known), None)
        if unknown is not None:
            near = difflib.get_close_matches(str(unknown), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(
                f"unknown option {unknown!r} for {owner}; {hint}expected any of {', '.join(known) or 'none'}"
            )

    @classmethod
    def _check_types(cls, values: dict[str, Any], owner: str) -> None:
        """Reject values that do not match the annotations of the fields."""
        from softprompt_zoo.config import typed  # only a config that is made needs it

        kind: Any = cls
        hints, _ = typed.fields_of(kind)
        for name, value in values.items():
            try:
                typed.convert(hints[name], value, name)
            except typed.MismatchError as error:
                raise TypeError(f"{error} (an option of {owner})") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig(Options):
    """Options that every method has; a method's config extends this class."""

    num_virtual_tokens: int = 20
    """Virtual tokens of the prompt, at least 1; 0 in the config of a method that has none."""
    train_head: bool = False
    """Whether to train the model's task head as well, as a copy that belongs to the prompt."""
    pools_prompt: bool = False
    """Whether an encoder's classifier reads the first virtual token in place of the text's first one, as in PEFT."""

    def __post_init__(self) -> None:
        if self.num_virtual_tokens != 0 or type(self).num_virtual_tokens != 0:
            check_positive_integer("num_virtual_tokens", self.num_virtual_tokens)
        check_choice("train_head", self.train_head, (False, True))
        check_choice("pools_prompt", self.pools_prompt, (False, True))

    @classmethod
    def from_options(cls, options: dict[str, Any], owner: str = "") -> Self:
        """Build the config from keyword options, like `Options.from_options`."""
        config = super().from_options(options, owner)
        MethodConfig.__post_init__(config)  # a method's own `__post_init__` may not call it
        return config

    @property
    def tasks(self) -> int | None:
        """Number of tasks of the prompt; `None` if its method has no tasks."""
        return getattr(self, "num_tasks", None)

    @property
    def replaces_loss(self) -> bool:
        """Whether `training_loss` is used; a method with an optional loss returns `False` if it is off."""
        return True

    def advice_to_shorten(self, most: int) -> str:
        """Return advice on how to shorten the prompt; a method that derives its length says what from.

        Args:
            most: Number of virtual tokens that fit.

        Returns:
            The advice, for a message.
        """
        return f"choose at most {most}"


def _json_value(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """Return a field's value as it is saved."""
    names = field.metadata.get("names")
    if names is not None and value not in names:
        return GIVEN
    try:
        saved = json.loads(json.dumps(value, allow_nan=False))
        is_whole = bool(_with_tuples(saved) == _with_tuples(value))
    except (TypeError, ValueError, RecursionError):
        is_whole = False
    if not is_whole:
        raise TypeError(
            f"{field.name} is {value!r} ({type(value).__name__}), which cannot be saved; expected text, a finite "
            "number, True, False, None, or tuples or dictionaries of these, with text as keys. For an option that "
            'need not be saved, set metadata={"saved": False} in its field'
        )
    return saved


def _with_tuples(value: Any) -> Any:
    """Return a value with lists replaced by tuples, as options are stored: JSON has no tuples."""
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    if isinstance(value, tuple):
        parts = tuple(map(_with_tuples, value))
        return value if all(map(operator.is_, parts, value)) else parts  # it may be an instance of a subclass
    if isinstance(value, dict):
        found = {key: _with_tuples(part) for key, part in value.items()}
        return value if all(map(operator.is_, found.values(), value.values())) else found
    return value
