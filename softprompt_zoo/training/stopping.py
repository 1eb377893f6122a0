"""Early stopping: whether a run has ended, and which checkpoint's prompt it keeps."""

from pathlib import Path
from typing import Any

from softprompt_zoo.training.folder import read_state
from softprompt_zoo.training.settings import Settings

CALLBACK = "EarlyStoppingCallback"
"""Its name in the checkpoints of transformers."""


def result_of(checkpoint: Path, settings: Settings) -> Path | None:
    """Return the checkpoint that is the result of a run, if no steps remain.

    Args:
        checkpoint: The newest checkpoint of the run.
        settings: The run.

    Returns:
        The newest one, or the best one with early stopping; `None` if steps remain.
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
    """Describe in a line whether a run ended early, and which step its prompt is from.

    Args:
        state: Trainer's final state.
        settings: The run.

    Returns:
        The line; `None` without early stopping.
    """
    if settings.early_stopping is None:
        return None
    early = "" if state.global_step >= int(settings.steps or 0) else f"stopped early, after step {state.global_step}; "
    return f"{early}the prompt is that of step {state.best_global_step}, with the lowest validation loss"
