"""Trials on Ray: two local workers give what the plain run gives; impossible options are refused at once."""

import pytest
from helpers.tiny_comparisons import assert_same_results, compare_in, make_place

import softprompt_zoo as zoo
from softprompt_zoo.training.comparison.choices import Rate
from softprompt_zoo.training.comparison.running.choice import Running


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the warnings of Ray and Tune
def test_two_workers_give_what_the_plain_run_gives(tmp_path):
    pytest.importorskip("ray")
    place = make_place(tmp_path)
    changes = {"methods": ("prompt_tuning", "prefix_tuning"), "rates": (Rate(0.3), Rate(0.003))}
    printed, on_ray = compare_in(place, "ray", Running(on="ray", workers=2), **changes)
    assert "running on Ray, with 2 processors" in printed
    _, plain = compare_in(place, "plain", **changes)
    assert len(plain) == 4
    assert_same_results(on_ray, plain, within=0)


REFUSED = {
    "on is 'cluster'; expected one of 'here', 'ray'": {"on": "cluster"},
    "--workers 2 applies to a cluster; give --on ray": {"workers": 2},
    "workers is 0": {"workers": 0, "on": "ray"},
    "--together 2 shares batches in one process; leave it out": {"together": 2, "on": "ray"},
    "together is 0": {"together": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_sense_is_refused(message):
    with pytest.raises(ValueError, match=message):
        Running(**REFUSED[message])


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(zoo.errors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(zoo.MissingPackageError, match=r'--on ray needs ray.*pip install "softprompt-zoo\[ray\]"'):
        Running(on="ray")
