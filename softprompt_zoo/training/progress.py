"""Show the progress of a run, and stop it on request."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback


class ProgressBar(TrainerCallback):
    """A progress bar with losses and the time left; lines of text if the output is not a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._losses: dict[str, Any] = {"loss": "-", "eval_loss": "-"}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[eval_loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, **self._losses)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Show the losses."""
        self._losses |= {name: f"{logs[name]:.3f}" for name in self._losses if name in logs}
        if self._progress is not None:
            self._progress.update(self._task, **self._losses)
        elif "eval_loss" in logs:
            losses = f"loss {self._losses['loss']}, validation {self._losses['eval_loss']}"
            self.console.print(f"step {state.global_step} of {state.max_steps}: {losses}", highlight=False)

    def stop(self) -> None:
        """Stop the bar, leave it on the screen and release the terminal."""
        if self._progress is not None:
            self._progress.stop()


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C, lets the current step finish, so that the checkpoint is exact; a second Ctrl-C stops at once."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.is_requested = False
        self._is_installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
            self._is_installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_installed:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
        self.console.print("stopping after this step; Ctrl-C again stops at once, without a checkpoint", style="yellow")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if requested."""
        if self.is_requested:
            control.should_save = control.should_training_stop = True
