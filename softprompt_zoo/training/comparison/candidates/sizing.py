"""Sizes chosen so that candidates train equally many parameters."""

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Candidate, Options
from softprompt_zoo.training.comparison.candidates.restoring import unmarked
from softprompt_zoo.training.comparison.trial import Trial

FARTHEST = 0.5
"""Largest relative deviation from the wanted number; beyond it budgets are not equal. Our choice."""


def sized(candidate: Candidate, options: Options, size: str, wanted: int, bench: Bench) -> Options:
    """Choose a candidate's size so that it trains about as many parameters as wanted.

    Args:
        candidate: The candidate.
        options: Its options other than the size.
        size: Name of the option for the size; the number of parameters grows linearly with it.
        wanted: Number of parameters to train.
        bench: The loaded model.

    Returns:
        The options including the size.

    Raises:
        UnsupportedError: If no size comes close.
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
        raise UnsupportedError(f"the closest to {wanted:,} parameters is {size} {value}, with {found:,}")
    return {**options, size: value}
