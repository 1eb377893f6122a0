"""What every candidate of a comparison offers."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from softprompt_zoo.config.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from softprompt_zoo.training.comparison.bench import Bench
    from softprompt_zoo.training.comparison.choices import Choices
    from softprompt_zoo.training.comparison.trial import Trial

Options = Mapping[str, Any]
"""Options of a candidate, as JSON values."""


def keep_nothing(folder: Path) -> None:
    """Write nothing: there is nothing to keep."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A candidate on a model, ready to be trained and measured."""

    model: "PreTrainedModel"
    instruction: str = ""
    """Text that is put in front of every text; empty for none."""
    prompt_tokens: int = 0
    """Tokens in front of the text."""
    trainer: "type[Trainer] | None" = None
    """What trains it; `None` if nothing is trained."""
    save: Callable[[Path], None] = keep_nothing
    """Writes what has to be kept into a folder."""

    def file_bytes(self) -> int:
        """Write what has to be kept once, and return its size."""
        with tempfile.TemporaryDirectory() as name:
            self.save(Path(name))
            return sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())

    @property
    def parameters(self) -> int:
        """Count the numbers that are trained."""
        trained = (p.numel() for p in self.model.parameters() if p.requires_grad) if self.trainer else ()
        return sum(trained)


class Candidate(Protocol):
    """Something to compare: how it is put on a model, and how it is trained."""

    name: str
    recipe: Recipe | None
    """How it is trained where the user says nothing; `None` if it is not trained, or its method has none."""
    is_trained: bool
    varies: bool
    """Whether a seed changes anything about it."""

    def variants(self, choices: "Choices", bench: "Bench") -> Sequence[Options]:
        """Return the options of each line of the table that it has.

        Raises:
            UnsupportedError: If it cannot be tried; says why.
        """

    def put_on(self, bench: "Bench", trial: "Trial") -> AbstractContextManager[Fitted]:
        """Put it on the model of the bench within the block, which leaves the model bitwise as it was."""
