"""Checks of option values: what was given, and what is allowed."""

import math
from collections.abc import Callable, Collection

LARGEST_WEIGHT = 65504.0
"""The largest factor for a prompt's share of attention: the largest float16 number."""


def check_positive_integer(name: str, value: object) -> None:
    """Reject anything but an integer of at least 1.

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
    """Reject anything but `True` and `False`.

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected True or False")


def check_probability(name: str, value: object) -> None:
    """Reject anything but a number in [0, 1).

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is outside [0, 1).
    """
    _check_number(name, value, "in [0, 1)", lambda number: 0 <= number < 1)


def check_not_negative(name: str, value: object) -> None:
    """Reject anything but a finite number of at least 0.

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is below 0, infinite or NaN.
    """
    _check_number(name, value, "of at least 0", lambda number: 0 <= number < math.inf)


def check_positive(name: str, value: object) -> None:
    """Reject anything but a finite number above 0.

    Args:
        name: The option's name, for the message.
        value: What the user gave.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is not above 0, infinite or NaN.
    """
    _check_number(name, value, "above 0", lambda number: 0 < number < math.inf)


def check_weight(name: str, value: object) -> None:
    """Reject anything but a number that can be a factor in every model's dtype.

    Args:
        name: What is weighted, for the message.
        value: What the user or a file gave.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If `value` is below 0, above 65504, or NaN.
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
    """Reject a value that is not allowed.

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
    """Check the options of a network that computes the prompt during training.

    Args:
        kind: The option `reparameterization`; `None` for no network.
        size: The option `reparameterization_size`; `None` for the method's default width.
        allowed: The kinds of network that the method supports.

    Raises:
        TypeError: If `size` is not an integer.
        ValueError: If `kind` is not allowed, `size` is below 1, or there is a size but no network.
    """
    check_choice("reparameterization", kind, (None, *allowed))
    if size is None:
        return
    check_positive_integer("reparameterization_size", size)
    if kind is None:
        raise ValueError(
            f"reparameterization_size is {size}, the width of a network, but reparameterization is None; leave it "
            f"out, or choose reparameterization={' or '.join(map(repr, allowed))}"
        )
