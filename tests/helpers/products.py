"""The rule by which products of parameters are in the default run: values in turns, and the rest of a product is slow.

What is checked on methods on architectures is a product whose triples tell little more than their pairs. The default
run has every value of each list beside values of the others in turns; `pytest -m slow` has the rest.
"""

import itertools

import pytest


def is_in_turn(turns, *places):
    """Return whether a combination of values is in the default run, from the place of each in its list.

    One in as many as there are turns is. If no list is shorter, these have every value of each of two lists, and every
    pair of values of each two of three.
    """
    return sum(places) % turns == 0


def in_turns(ids=None, **lists):
    """Parametrize a test by a product; as many turns as the shortest list has values, the rest is slow."""
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
    """Let a suite run each of its checks on some of its models, the next check on the next of them."""
    suite.turns, suite.in_turns = turns, {"architecture": suite.architectures}
    return suite


def each_once(*lists):
    """Return the combinations of lists: in the default run each value at least once, the shortest list again and again.

    Returns:
        The values of each combination, and its marks.
    """
    shortest = min(map(len, lists))
    return [
        (
            tuple(value for _, value in combination),
            [pytest.mark.slow] * (len({p % shortest for p, _ in combination}) > 1),
        )
        for combination in itertools.product(*map(enumerate, lists))
    ]
