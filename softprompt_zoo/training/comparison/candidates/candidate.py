"""What every candidate of a comparison offers."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.training.comparison.fitted import Fitted as Fitted

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.bench import Bench
    from softprompt_zoo.training.comparison.choices import Choices
    from softprompt_zoo.training.comparison.trial import Trial

Options = Mapping[str, Any]
"""Options of a candidate, as JSON values."""


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
