"""Studies of a search: the number of trials, what is pruned, and trials whose process has died."""

import math

import optuna
import pytest

from softprompt_zoo.training.comparison.search.pruning import Pruning
from softprompt_zoo.training.comparison.search.space import spaces_of
from softprompt_zoo.training.comparison.search.study import Study
from softprompt_zoo.training.comparison.search.workers import Workers
from softprompt_zoo.training.comparison.trial import Trial


def trials(*rates, options=({},)):
    return [
        Trial(candidate="prompt_tuning", steps=4, learning_rate=rate, options=own) for rate in rates for own in options
    ]


@pytest.fixture
def workers(tmp_path):
    return Workers(tmp_path / "search")


def study(workers, worker, count=3):
    [space] = spaces_of(trials(0.01, 0.3))
    return Study(workers.folder, space, count, workers, worker)


def test_a_space_has_the_options_and_the_range_of_the_rates():
    untrained = Trial(candidate="untrained")
    [space] = spaces_of([untrained, *trials(0.3, 0.01, 0.1, options=({"length": 2}, {"length": 4}))])
    assert space.rates == (0.01, 0.3)
    assert space.options == ('{"length": 2}', '{"length": 4}')
    [around] = spaces_of(trials(0.1))
    assert around.rates == pytest.approx((0.01, 1.0))
    asked = optuna.trial.FixedTrial({"options": '{"length": 4}', "learning_rate": 0.123456})
    assert space.suggest(asked).learning_rate == 0.123
    assert space.suggest(asked).options == {"length": 4}


def test_two_workers_take_as_many_trials_as_were_asked_for(workers):
    with workers.join() as first, workers.join() as second:
        assert (first, second) == (0, 1)
        one, other = study(workers, first), study(workers, second)
        taken = [one.ask(), other.ask(), one.ask()]
        assert None not in taken
        assert other.ask() is None
        assert one.ask() is None
        for value, trial in zip((3.0, math.nan, 2.0), taken, strict=True):
            trial.suggest_float("learning_rate", 0.01, 0.3, log=True)
            other.tell(trial, value)
        assert other.is_over
        assert one.best.number == taken[2].number


def test_the_trials_of_a_process_that_is_gone_are_run_again(workers):
    with workers.join() as first:
        with workers.join() as second:
            gone = study(workers, second)
            lost = gone.ask()
            rate = lost.suggest_float("learning_rate", 0.01, 0.3, log=True)
            here = study(workers, first, count=1)
            assert here.ask() is None
            assert not here.take_up()
            assert workers.any_there()
        assert not here.is_over
        assert here.take_up()
        again = here.ask()
        assert again.suggest_float("learning_rate", 0.01, 0.3, log=True) == rate
        assert here.ask() is None


class State:
    """The part of Trainer's state that shows a run's losses."""

    def __init__(self, losses):
        self.log_history = [{"loss": 1.0, "step": 1}, *({"eval_loss": x, "step": n} for n, x in enumerate(losses))]


def test_a_training_is_given_up_that_is_worse_than_half_of_the_others(workers):
    with workers.join() as worker:
        found = study(workers, worker, count=6)
        for _ in range(5):
            trial = found.ask()
            Pruning(trial).on_step_begin(None, State([2.0, 1.0]), None)
            found.tell(trial, 1.0)
        trial = found.ask()
        watching = Pruning(trial)
        watching.on_step_begin(None, State([1.5]), None)
        with pytest.raises(optuna.TrialPruned):
            watching.on_step_begin(None, State([1.5, 1.4]), None)
        found.prune(trial)
        assert found.ask() is None
        assert found.is_over
