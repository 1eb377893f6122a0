"""When a run ends before its last step, and whose prompt it then leaves."""

from pathlib import Path
from typing import Any

from softprompt_zoo.training.folder import read_state
from softprompt_zoo.training.settings import Settings

CALLBACK = "EarlyStoppingCallback"
"""As transformers writes it into a checkpoint."""


def result_of(checkpoint: Path, settings: Settings) -> Path | None:
    """Find the checkpoint that a run leaves, if it needs no more steps.

    Args:
        checkpoint: The newest one of the run.
        settings: The run.

    Returns:
        The newest one, the best one of a run with early stopping, or `None` if there are steps to do.
    """
    state = read_state(checkpoint)
    if state["global_step"] < int(settings.steps or 0) and not _has_stopped(state, settings.early_stopping):
        return None
    best = state.get("best_model_checkpoint") if settings.early_stopping is not None else None
    return checkpoint if best is None else checkpoint.parent / Path(best).name  # the folder may have been moved


def _has_stopped(state: dict[str, Any], patience: int | None) -> bool:
    if patience is None:
        return False
    count: int = state["stateful_callbacks"][CALLBACK]["attributes"]["early_stopping_patience_counter"]
    return count >= patience


def what_stopped(state: Any, settings: Settings) -> str | None:
    """Say in a line that a run ended early, or has not its last prompt.

    Args:
        state: Trainer's state at the end.
        settings: The run.

    Returns:
        The line; `None` without early stopping.
    """
    if settings.early_stopping is None:
        return None
    early = "" if state.global_step >= int(settings.steps or 0) else f"stopped early, after step {state.global_step}; "
    return f"{early}the prompt is that of step {state.best_global_step}, with the lowest validation loss"
