"""Time optimizer steps."""

import time
from typing import Any

from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """Times optimizer steps.

    Args:
        enough: Number of steps after which training stops; `None` for all.
    """

    def __init__(self, enough: int | None = None) -> None:
        self.times: list[float] = []
        """Seconds of each step."""
        self._enough, self._began = enough, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.times.append(time.perf_counter() - self._began)
        if len(self.times) == self._enough:
            control.should_training_stop = True
