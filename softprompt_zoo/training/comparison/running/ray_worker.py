"""Workers for Tune, which load the model once and run trials, and a callback that keeps each result."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray import tune

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.running.run_trial import run_trial
from softprompt_zoo.training.comparison.trial import Trial, TrialResult
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.running.runner import Keep


class Worker(tune.Trainable):
    """Runs trials, one per step."""

    def setup(self, config: dict[str, Any], settings: Settings, choices: Choices) -> None:
        """Load the model."""
        import torch

        torch.set_num_threads(1)
        self.bench = Bench(settings, choices, _say_nothing)
        self.bench.load()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial; the model stays."""
        self.trial = Trial(**json.loads(new_config["trial"]))
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial.

        Raises:
            RuntimeError: If model, data or versions differ from those where the comparison was started.
        """
        shared = json.loads(json.dumps(dict(self.bench.shared)))
        for name, value in self.trial.shared.items():
            if shared.get(name) != value:
                raise RuntimeError(f"{name} is {shared.get(name)!r} on this worker and {value!r} in the comparison")
        result = run_trial(self.trial, self.bench)
        return {"key": self.trial.key, "found": json.dumps(dataclasses.asdict(result)), "done": True}


def _say_nothing(text: str) -> None:
    """Print nothing: a worker has no terminal."""


class Keeper(tune.Callback):
    """Keeps each result as soon as Tune has it."""

    def __init__(self, trials: Sequence[Trial], keep: "Keep") -> None:
        self.waiting = {trial.key: trial for trial in trials}
        """Trials without a result, by key."""
        self.keep = keep

    def on_trial_result(self, *args: Any, result: Mapping[str, Any], **info: Any) -> None:
        """Keep the result of a worker."""
        if "found" in result:
            self.keep(self.waiting.pop(result["key"]), TrialResult(**json.loads(result["found"])))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks to a file that is never read here
