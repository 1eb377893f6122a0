"""Everything about a run that is known before weights are loaded, so that bad input fails early."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from softprompt_zoo.files.start_folders import with_absolute_folders
from softprompt_zoo.method import Method, get_method
from softprompt_zoo.training.arguments import check_choices
from softprompt_zoo.training.base import Base, fast_dtype, with_tokenizer
from softprompt_zoo.training.data import Data, read_data
from softprompt_zoo.training.evaluation import Evaluator
from softprompt_zoo.training.objectives.kinds import choose
from softprompt_zoo.training.objectives.objective import fitting
from softprompt_zoo.training.objectives.rows import TokenRow
from softprompt_zoo.training.objectives.tasks import with_tasks
from softprompt_zoo.training.report import printer
from softprompt_zoo.training.settings import Settings
from softprompt_zoo.training.streams import StreamedRows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prepared:
    """A run's method, rows and tokenizer, ready for the model."""

    def __init__(self, settings: Settings, method: Method, data: Data, console: Console) -> None:
        self.base = Base(settings.model, progress=printer(console))
        self.settings = dataclasses.replace(settings, dtype=settings.dtype or fast_dtype())
        objective, data = choose(settings, data, self.base)
        self.objective = with_tasks(objective, data, method)
        self.method, self.data, self.console = method, data, console
        self.options = {**self.objective.options, **method.options, **with_tokenizer(method, self.base.tokenizer)}
        self.left_out = 0
        """Number of rows that are too long; those of a stream are not counted."""
        self.rows: Any = self._training_rows(data.train)
        """The tokenized training rows: a list, or a stream."""
        validation = self._fitting(data.validation, "validation")
        if self.left_out:
            longest = settings.max_length
            console.print(f"left out {self.left_out} rows of more than --max-length {longest}", style="yellow")
        self.evaluator = Evaluator(validation, self.objective, settings.metric_rows, settings.handwritten)

    def _fitting(self, examples: Sequence[Any], what: str) -> list[Any]:
        kept = fitting(self.objective, examples, self.settings.max_length, what)
        self.left_out += len(examples) - len(kept)
        return kept

    def _training_rows(self, examples: Any) -> Any:
        if self.settings.streaming:
            rows = StreamedRows(self.objective, examples, self.settings.max_length, self.settings.seed)
            self.sample: Sequence[TokenRow] = rows.sample()
            """Training rows on which the model is tried out."""
            self.num_rows = len(examples)
            return rows
        kept = self._fitting(examples, "training")
        self.sample = self.objective.rows(kept)
        self.num_rows = len(kept)
        """Number of training rows; for a stream, including those that will turn out too long."""
        return self.sample

    def attach(self, check: Callable[[Any], None] = lambda backbone: None) -> "PreTrainedModel":
        """Load the model, attach the prompt and try it on the longest rows.

        Args:
            check: Called with the backbone before anything is tried; raises if it does not fit.

        Returns:
            The model, with the prompt `"default"` at its initial values.
        """
        from transformers import set_seed

        printer(self.console)(f"loading {self.settings.model} in {self.settings.dtype}")
        model = self.objective.load(str(self.settings.dtype))
        # Initial values are random; a resumed run draws the same ones, then overwrites them with its checkpoint.
        set_seed(self.settings.seed)
        model = self.method(model, **self.options)
        check(model.prompts.backbone)  # type: ignore[union-attr]
        self.evaluator.try_out(model, self.sample)
        return model


def prepare(settings: Settings, console: Console) -> Prepared:
    """Read and check everything that a new run needs, except the weights.

    Args:
        settings: The run, with absolute paths.
        console: Where progress is printed.

    Returns:
        The run, with every number set.

    Raises:
        ZooError: If some input cannot be used.
    """
    method = get_method(settings.method)
    options = with_absolute_folders(settings.options, method.config_class)
    method = method.configure(**options)
    settings = dataclasses.replace(settings, options=options).with_recipe(method.name, method.recipe)
    check_choices(settings)
    return Prepared(settings, method, read_data(settings), console)
