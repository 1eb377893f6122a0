"""The time left that a comparison shows."""

from softprompt_zoo.training.comparison.trial import Trial
from softprompt_zoo.training.comparison.watching import estimate


def trial(candidate, steps, seed=0):
    return Trial(candidate=candidate, steps=steps, seed=seed)


def test_the_time_left_is_that_of_the_same_candidates_else_of_what_is_trained_likewise():
    waiting = [trial("lora", 30, 1), trial("prompt_tuning", 30), trial("few-shot", 0)]
    assert estimate([], waiting) is None
    quick = [(trial("untrained", 0), 2.0)]
    assert estimate(quick, waiting) is None  # nothing is known about trained candidates
    assert estimate(quick, waiting[2:]) == 2
    there = [*quick, (trial("lora", 30), 10.0), (trial("cpt", 30), 40.0)]
    assert estimate(there, waiting) == 10 + 25 + 2
    assert estimate(there, []) == 0
