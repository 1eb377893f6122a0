"""A candidate on a model."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from softprompt_zoo.training.objectives.objective import Objective


def keep_nothing(folder: Path) -> None:
    """Write nothing: there is nothing to keep."""


def as_it_is(objective: Any) -> Any:
    """Put nothing in front."""
    return objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A candidate on a model, ready to be trained and measured."""

    model: "PreTrainedModel"
    objective: "Objective[Any, Any] | None" = None
    """The objective that it reads rows with; `None` for that of the comparison."""
    one_task: Any = None
    """The model for texts without a task if its prompt has tasks, else `None`."""
    put_in_front: Callable[[Any], Any] = as_it_is
    """Returns an objective with the candidate's text in front of every row."""
    prompt_tokens: int = 0
    """Number of tokens in front of the text."""
    trainer: "type[Trainer] | None" = None
    """The class that trains it; `None` if nothing is trained."""
    save: Callable[[Path], None] = keep_nothing
    """Writes what has to be kept to a folder."""

    def file_bytes(self) -> int:
        """Return the size of what has to be kept, by writing it to a temporary folder."""
        with tempfile.TemporaryDirectory() as name:
            self.save(Path(name))
            return sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())

    @property
    def model_for_texts(self) -> Any:
        """The model for texts that name no task."""
        return self.model if self.one_task is None else self.one_task

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        trained = (p.numel() for p in self.model.parameters() if p.requires_grad) if self.trainer else ()
        return sum(trained)
