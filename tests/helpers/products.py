"""The rule by which products of parameters are in the default run: values in turns, and the rest of a product is slow.

What is checked on methods on architectures is a product whose triples tell little more than their pairs. The default
run has every value of each list beside values of the others in turns; `pytest -m slow` has the rest.
"""

import itertools

import pytest


def is_in_turn(*places):
    """Return whether a combination of three values is in the default run, from the place of each in its list.

    Every third one is: for each pair of values of two lists, every third value of the other.
    """
    return sum(places) % 3 == 0


def in_turns(*lists):
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
