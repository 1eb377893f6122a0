"""Comparisons whose trials share batches write the same files as with trials run one by one."""

import pytest
from helpers.tiny_comparisons import assert_same_results, compare_in, make_place

import softprompt_zoo as zoo
from softprompt_zoo.training.comparison.choices import Rate
from softprompt_zoo.training.comparison.running import run_group
from softprompt_zoo.training.comparison.running.choice import Running
from softprompt_zoo.training.comparison.running.together import groups
from softprompt_zoo.training.comparison.trial import Trial


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


def test_rates_and_lengths_give_the_results_of_one_by_one(place):
    changes = {"rates": (Rate(0.3), Rate(0.003)), "lengths": (2, 4)}
    printed, together = compare_in(place, "together", Running(together=3), **changes)
    assert "one by one" not in printed
    _, alone = compare_in(place, "alone", **changes)
    assert len(alone) == 4
    assert_same_results(together, alone)


def test_time_and_memory_are_those_of_the_batch_and_marked_so(place):
    printed, together = compare_in(place, "timed", Running(together=2), rates=(Rate(0.3), Rate(0.003)))
    first, second = together.values()
    for name in ("step_seconds", "peak_memory", "seconds"):
        assert first[name] == second[name]
        assert first[name] is not None
    assert first["together"] == 2
    assert "* for a batch shared by up to 2 trials" in " ".join(printed.split())


def test_a_group_that_was_stopped_goes_on_from_its_checkpoint(place, monkeypatch):
    changes, measure, left = {"rates": (Rate(0.2), Rate(0.02))}, run_group.target_loss, [4]

    def stop_later(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(run_group, "target_loss", stop_later)
    with pytest.raises(zoo.StoppedError):
        compare_in(place, "stopped", Running(together=2), **changes)
    left[0] = 4  # two trials, and the validations of the last two of four steps
    _, together = compare_in(place, "stopped", Running(together=2), **changes)
    assert left == [0]
    assert not (place / "stopped" / "together").exists()
    _, alone = compare_in(place, "not stopped", **changes)
    assert_same_results(together, alone)


def test_what_cannot_share_a_batch_is_run_one_by_one_which_is_said_once(place):
    printed, results = compare_in(
        place, "refused", Running(together=2), methods=("cpt",), seeds=(0, 1, 2, 3), steps=1, shots=1
    )
    assert printed.count("cpt is trained one by one: it has its own training loss, which is computed") == 1
    assert len(results) == 4


def trial(candidate, rate, **more):
    return Trial(candidate=candidate, learning_rate=rate, steps=4, **more)


def test_groups_have_one_method_and_one_budget():
    trials = [trial("prompt_tuning", 0.1), trial("lora", 0.1), trial("prompt_tuning", 0.2), trial("lora", 0.2)]
    trials += [trial("prompt_tuning", 0.3), trial("prompt_tuning", 0.1, batch_size=2)]
    found = [[trials.index(one) for one in group] for group in groups(trials, 2)]
    assert found == [[0, 2], [4], [1], [3], [5]]
