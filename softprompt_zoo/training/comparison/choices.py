"""The choices of the user for a comparison, with all checks that need no file."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from softprompt_zoo.training.settings import LARGEST_RATE, check_count

T = TypeVar("T")
BASELINES = ("untrained", "handwritten", "few-shot", "lora", "adapter-tuning", "full-fine-tuning")
"""Baselines that methods are compared with, in the order of the table."""
SHOTS = 8
"""Maximum number of examples in a few-shot prompt, the same as in benchmarks/methods.py. Our choice."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """A learning rate: a number, or a multiple of each candidate's default."""

    value: float
    is_multiple: bool = False

    def of(self, own: float | None) -> float | None:
        """Return the rate for a candidate.

        Args:
            own: The candidate's default rate; `None` if it has none.

        Returns:
            The rate; `None` if it is a multiple of a rate that the candidate does not have.
        """
        if not self.is_multiple:
            return self.value
        return None if own is None else self.value * own


OWN_RATE = Rate(1.0, is_multiple=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """The candidates of a comparison and their budget."""

    methods: tuple[str, ...] | None = None
    """Names of methods; `None` for all that fit the model."""
    baselines: tuple[str, ...] = BASELINES
    """Names of the baselines they are compared with."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each trial is run once with each seed."""
    rates: tuple[Rate, ...] = (OWN_RATE,)
    """Learning rates of trained candidates."""
    lengths: tuple[int, ...] = ()
    """Numbers of virtual tokens; empty for each method's default."""
    starts: tuple[str, ...] = ()
    """Start values, as a method's option `init` takes them; empty for each method's default."""
    parameters: int | None = None
    """Approximate number of parameters that each candidate trains; `None` for its default size."""
    steps: int = 200
    """Optimizer steps per training."""
    batch_size: int = 8
    """Rows per step."""
    rows: int | None = None
    """Maximum number of training rows; `None` for all."""
    validation_rows: int | None = None
    """Maximum number of validation rows; `None` for all."""
    shots: int = SHOTS
    """Maximum number of examples in a few-shot prompt."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "shots", "rows", "validation_rows", "parameters"):
            check_count(name, vars(self)[name])
        for name in ("seeds", "rates", "lengths", "starts", "baselines", "methods"):
            _check_list(name, vars(self)[name])
        self._check_values()
        if self.parameters is not None and self.lengths:
            raise ValueError(
                f"parameters is {self.parameters} and lengths is {self.lengths}; parameters determines the lengths, "
                "so leave one of the two out"
            )

    def _check_values(self) -> None:
        """Reject lists with a value that is not allowed."""
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one, such as --seeds 0")
        for seed in self.seeds:
            _check_seed(seed)
        for rate in self.rates:
            _check_rate(rate)
        for length in self.lengths:
            check_count("lengths", length)
        for name in self.baselines:
            _check_baseline(name)


def read_list(flag: str, text: str, read: Callable[[str], T], what: str) -> tuple[T, ...]:
    """Read a list as users write it: `0,1,2`.

    Args:
        flag: The flag it was given with, for messages.
        text: As the user typed it.
        read: Converts one part to a value.
        what: What the parts are, for messages.

    Returns:
        The values.

    Raises:
        ValueError: If a part is empty or cannot be read.
    """
    values = []
    for part in text.split(","):
        try:
            values.append(read(part.strip()) if part.strip() else _refuse())
        except ValueError:
            raise ValueError(f"{flag} is {text!r}, with {part!r}; expected {what}, separated by commas") from None
    return tuple(values)


def read_rate(text: str) -> Rate:
    """Read a learning rate: `0.03`, or `2x` for twice each candidate's default."""
    found = re.fullmatch(r"([0-9.eE+-]+)(x?)", text)
    if found is None:
        raise ValueError(text)
    return Rate(float(found[1]), bool(found[2]))


def _refuse() -> Any:
    raise ValueError("empty")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:  # NumPy's limit
        raise ValueError(f"seeds has {seed}; expected integers from 0 to {2**32 - 1}")


def _check_rate(rate: Rate) -> None:
    if not 0 < rate.value <= LARGEST_RATE:
        raise ValueError(f"learning_rates has {rate.value}; expected numbers above 0 and at most {LARGEST_RATE:g}")


def _check_list(name: str, values: Sequence[Any] | None) -> None:
    """Reject a value that is listed twice: one trial would count as two."""
    for index, value in enumerate(values or ()):
        if value in (values or ())[:index]:
            raise ValueError(f"{name} has {value!r} twice; give each once")


def _check_baseline(name: str) -> None:
    if name not in BASELINES:
        near = difflib.get_close_matches(name, BASELINES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"baselines has {name!r}; {hint}expected some of {', '.join(BASELINES)}")


QUICK = Choices(steps=30, validation_rows=60)
"""A first look: about 45 minutes on two cores for a model of 135 million parameters. Our choice."""
