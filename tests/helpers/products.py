"""The rule that decides which combinations of parameters are in the default run; the others are slow.

Checks of methods on architectures form a product whose triples tell little more than its pairs. The default run
combines every value of each list with values of the other lists in turn; `pytest -m slow` runs the rest.
"""

import itertools

import pytest


def is_in_turn(turns, *places):
    """Return whether a combination of values is in the default run, from the place of each in its list.

    One in `turns` combinations is. If no list is shorter than `turns`, the default run has every value of each of two
    lists, or every pair of values from any two of three lists.
    """
    return sum(places) % turns == 0


def in_turns(ids=None, **lists):
    """Parametrize a test by a product, with as many turns as the shortest list has values; the rest is slow."""
    turns = min(map(len, lists.values()))
    return pytest.mark.parametrize(
        tuple(lists),
        [
            pytest.param(*values, marks=[pytest.mark.slow] * (not is_in_turn(turns, *places)))
            for places, values in zip(
                itertools.product(*(range(len(values)) for values in lists.values())),
                itertools.product(*lists.values()),
                strict=True,
            )
        ],
        ids=ids,
    )


def suite_in_turns(suite, turns=2):
    """Make a suite run each of its checks on only some of its models, and the next check on the next models."""
    suite.turns, suite.in_turns = turns, {"architecture": suite.architectures}
    return suite


def each_once(*lists):
    """Return the combinations of lists; the default run has each value at least once and repeats the shortest list.

    Returns:
        Each combination's values and marks.
    """
    shortest = min(map(len, lists))
    return [
        (
            tuple(value for _, value in combination),
            [pytest.mark.slow] * (len({p % shortest for p, _ in combination}) > 1),
        )
        for combination in itertools.product(*map(enumerate, lists))
    ]
