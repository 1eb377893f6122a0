"""The history of one training, extracted from the log of all trainings that shared batches."""

from collections.abc import Iterable, Mapping


def history_of(log: Iterable[Mapping[str, float]], name: str, rows: int, batch_size: int) -> list[dict[str, float]]:
    """Return what Trainer would have logged for a training alone.

    Args:
        log: `trainer.state.log_history` of all trainings.
        name: Name of the training.
        rows: Number of rows of the data.
        batch_size: Its rows per step.

    Returns:
        Its entries for steps and validations.
    """
    ending, steps_per_epoch = f"/{name}", -(-rows // batch_size)
    history = []
    for entry in log:
        own = {key.removesuffix(ending): value for key, value in entry.items() if key.endswith(ending)}
        if own:
            history.append({**own, "epoch": entry["step"] / steps_per_epoch, "step": entry["step"]})
    return history
