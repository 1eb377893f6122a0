"""The weights of the prompts in a blend."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

from softprompt_zoo.operations.blends import Blend


def read_weights(weights: Any, count: int, how: str, blend: Blend) -> list[float]:
    """Read a user's weights.

    Args:
        weights: A sequence, tensor or array of real numbers; `None` for equal ones.
        count: Number of prompts.
        how: Name of the blend, for messages.
        blend: What it takes.

    Returns:
        A number for each prompt, adding up to one if they are shares; empty if the blend has no weights.

    Raises:
        TypeError: If one is not a real number.
        ValueError: If their number differs from that of the prompts, or the blend does not accept them.
    """
    if not blend.has_weights:
        if weights is not None:
            raise ValueError(f"weights is {weights!r}; how={how!r} takes none")
        return []
    if weights is None:
        return [1 / count if blend.has_shares else 1.0] * count
    factors = _numbers(weights, count)
    return _shares(factors, how) if blend.has_shares else factors


def _numbers(weights: Any, count: int) -> list[float]:
    weights = _plain(weights)
    if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != count:
        raise ValueError(f"weights is {weights!r}; expected {count} numbers, one for each prompt")
    return [_number(_plain(weight)) for weight in weights]


def _plain(value: Any) -> Any:
    """Convert the numbers of a tensor or an array to Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _number(weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TypeError(f"weights has {weight!r} ({type(weight).__name__}); expected real numbers")
    if not math.isfinite(weight):
        raise ValueError(f"weights has {weight}; expected finite numbers")
    return float(weight)


def _shares(factors: list[float], how: str) -> list[float]:
    if min(factors) < 0 or not sum(factors) > 0:
        raise ValueError(
            f"weights is {factors}; how={how!r} takes numbers of at least 0 that are not all 0 (how='sum' and "
            "how='task_vectors' take any)"
        )
    return [factor / sum(factors) for factor in factors]
