"""What a run knows before any weights are loaded, so that bad input fails early."""

import dataclasses
from collections.abc import Callable
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
from softprompt_zoo.training.report import printer
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prepared:
    """A run's method, rows and tokenizer, ready for the model."""

    def __init__(self, settings: Settings, method: Method, data: Data, console: Console) -> None:
        self.base = Base(settings.model, progress=printer(console))
        self.settings = dataclasses.replace(settings, dtype=settings.dtype or fast_dtype())
        self.objective, data = choose(settings, data, self.base)
        self.method, self.data, self.console = method, data, console
        self.options = {**self.objective.options, **method.options, **with_tokenizer(method, self.base.tokenizer)}
        kept = {
            name: fitting(self.objective, examples, settings.max_length, name)
            for name, examples in (("training", data.train), ("validation", data.validation))
        }
        self.left_out = len(data.train) + len(data.validation) - sum(map(len, kept.values()))
        """Rows that are too long."""
        if self.left_out:
            longest = settings.max_length
            console.print(f"left out {self.left_out} rows of more than --max-length {longest}", style="yellow")
        self.rows = self.objective.rows(kept["training"])
        self.evaluator = Evaluator(kept["validation"], self.objective, settings.metric_rows, settings.handwritten)

    def attach(self, check: Callable[[Any], None] = lambda backbone: None) -> "PreTrainedModel":
        """Load the model, put the prompt in and try it on the longest rows.

        Args:
            check: Refuses a backbone, before anything is tried.

        Returns:
            The model, with the prompt `"default"` at its start values.
        """
        from transformers import set_seed

        printer(self.console)(f"loading {self.settings.model} in {self.settings.dtype}")
        model = self.objective.load(str(self.settings.dtype))
        # Start values are drawn; a resumed run draws the same ones and then reads its checkpoint over them.
        set_seed(self.settings.seed)
        model = self.method(model, **self.options)
        check(model.prompts.backbone)  # type: ignore[union-attr]
        self.evaluator.try_out(model, self.rows)
        return model


def prepare(settings: Settings, console: Console) -> Prepared:
    """Read and check everything that a new run needs but its weights.

    Args:
        settings: The run, with absolute paths.
        console: Where progress goes.

    Returns:
        The run, with every number set.

    Raises:
        ZooError: If something the user gave cannot be used.
    """
    method = get_method(settings.method)
    options = with_absolute_folders(settings.options, method.config_class)
    method = method.configure(**options)
    settings = dataclasses.replace(settings, options=options).with_recipe(method.name, method.recipe)
    check_choices(settings)
    return Prepared(settings, method, read_data(settings), console)
