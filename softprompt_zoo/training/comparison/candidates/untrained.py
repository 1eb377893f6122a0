"""The unchanged model."""

import contextlib
from collections.abc import Iterator, Sequence

from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted, Options
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.trial import Trial


class Untrained:
    """The model without a prompt or adapter; a `Candidate`."""

    name = "untrained"
    recipe: Recipe | None = None
    is_trained = False
    varies = False

    def variants(self, choices: Choices, bench: Bench) -> Sequence[Options]:
        """Return its only variant."""
        return [{}]

    @contextlib.contextmanager
    def put_on(self, bench: Bench, trial: Trial) -> Iterator[Fitted]:
        """Do nothing."""
        yield Fitted(model=bench.model)
