"""Sizes chosen so that candidates train equally many numbers."""

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Candidate, Options
from softprompt_zoo.training.comparison.candidates.restoring import unmarked
from softprompt_zoo.training.comparison.trial import Trial

FARTHEST = 0.5
"""Share of the wanted number by which a candidate may be off; more is no equal budget. Our choice."""


def sized(candidate: Candidate, options: Options, size: str, wanted: int, bench: Bench) -> Options:
    """Choose a candidate's size so that it trains about as many numbers as wanted.

    Args:
        candidate: The candidate.
        options: Its options besides the size.
        size: Name of the option that says how large it is; numbers grow evenly with it.
        wanted: Numbers to train.
        bench: The model, loaded.

    Returns:
        The options, with the size.

    Raises:
        UnsupportedError: If no size comes near.
    """

    def count(value: int) -> int:
        trial = Trial(candidate=candidate.name, options={**options, size: value}, shared=bench.shared)
        with unmarked(bench.model), candidate.put_on(bench, trial) as fitted:
            return fitted.parameters

    one, each = count(1), count(2) - count(1)
    if each <= 0:
        raise UnsupportedError(f"it trains {one:,} parameters whatever its {size}, not {wanted:,}")
    value = max(1, 1 + round((wanted - one) / each))
    found = one + (value - 1) * each
    if abs(found - wanted) > FARTHEST * wanted:
        raise UnsupportedError(f"with {size} {value} it trains {found:,} parameters, the nearest to {wanted:,}")
    return {**options, size: value}
