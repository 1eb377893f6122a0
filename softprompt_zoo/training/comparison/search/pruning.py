"""Reports the progress of a training to its study, and stops the training if the study prunes it."""

from typing import Any

import optuna
from transformers import TrainerCallback


class Pruning(TrainerCallback):
    """Reports every validation of a training."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self._reported = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the validations since the last step.

        Raises:
            TrialPruned: If the study prunes the trial.
        """
        for entry in state.log_history[self._reported :]:
            if "eval_loss" in entry:
                self._trial.report(entry["eval_loss"], entry["step"])
                if self._trial.should_prune():
                    raise optuna.TrialPruned
        self._reported = len(state.log_history)
