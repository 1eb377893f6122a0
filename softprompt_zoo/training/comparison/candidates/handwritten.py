"""A prompt written by hand."""

import contextlib
from collections.abc import Iterator, Sequence

from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted, Options
from softprompt_zoo.training.comparison.candidates.written import written
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.trial import Trial


class Handwritten:
    """The text of `--handwritten` in front of every row; a `Candidate`."""

    name = "handwritten"
    recipe: Recipe | None = None
    is_trained = False
    varies = False

    def variants(self, choices: Choices, bench: Bench) -> Sequence[Options]:
        """Return its only variant; raise an error if the user gave no text."""
        if bench.settings.handwritten is None:
            raise UnsupportedError("no prompt was written for this data; give one with --handwritten")
        return [{"text": bench.settings.handwritten}]

    @contextlib.contextmanager
    def put_on(self, bench: Bench, trial: Trial) -> Iterator[Fitted]:
        """Put the text in front."""
        text = trial.options["text"]
        yield written(bench, [text], lambda objective: objective.with_instruction(text))
