"""The interface of all candidates of a comparison."""

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
    """Something to compare: how it is applied to a model, and how it is trained."""

    name: str
    recipe: Recipe | None
    """How it is trained by default; `None` if it is not trained, or its method has no recipe."""
    is_trained: bool
    varies: bool
    """Whether its results depend on the seed."""

    def variants(self, choices: "Choices", bench: "Bench") -> Sequence[Options]:
        """Return the options of each of its lines in the table.

        Raises:
            UnsupportedError: If it cannot be tried; the message says why.
        """

    def put_on(self, bench: "Bench", trial: "Trial") -> AbstractContextManager[Fitted]:
        """Apply it to the model of the bench within the block; afterwards the model is bitwise unchanged."""
