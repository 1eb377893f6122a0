"""Intervals and differences, against arithmetic."""

import math

import pytest

from softprompt_zoo.training.comparison import statistics


@pytest.mark.parametrize("freedom", [1, 2, 5, 20])
def test_quantiles_leave_a_fortieth_above(freedom):
    """The oracle is the density of Student's t, summed in small steps from 0."""
    factor = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    end, count = statistics.QUANTILES[freedom - 1], 20_000
    width = end / count
    middles = ((index + 0.5) * width for index in range(count))
    below = sum(factor * (1 + t * t / freedom) ** (-(freedom + 1) / 2) for t in middles) * width
    assert below == pytest.approx(0.475, abs=2e-5)


def test_an_interval_is_that_of_the_textbook():
    found = statistics.interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 * 1.0 / math.sqrt(3))


def test_one_seed_has_no_interval():
    assert statistics.interval([0.7]).half_width is None


def test_a_difference_is_paired_by_rows():
    """Rows differ much more than the two sides, which are always 0.1 apart."""
    rows = [0.0, 5.0, 10.0, 20.0]
    found = statistics.difference([[row + 0.1 for row in rows]], [rows])
    assert found.value == pytest.approx(0.1)
    assert found.error == pytest.approx(0.0, abs=1e-12)


def test_seeds_that_disagree_make_a_difference_unsure():
    found = statistics.difference([[1.0, 1.0], [3.0, 3.0]], [[0.0, 0.0]])
    assert found.value == 2.0
    assert found.error == pytest.approx(math.sqrt(2) / math.sqrt(2))
    assert found.p_value == pytest.approx(0.0455, abs=1e-4)


def test_holm_corrects_as_in_his_procedure():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
