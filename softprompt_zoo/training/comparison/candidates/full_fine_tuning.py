"""Full fine-tuning: every weight is trained, if the model is small."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.writing import write_tensors
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted, Options
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.trial import Trial

MOST_PARAMETERS = 500_000_000
"""Size limit of a small model; training takes 16 bytes per parameter, 8 GB in total. Our choice."""


class FullFineTuning:
    """All weights of a float32 copy of the model; a `Candidate`."""

    name = "full-fine-tuning"
    recipe: Recipe | None = Recipe(
        learning_rate=5e-5,
        steps=200,
        source="the largest of those for BERT, Devlin et al. 2019, appendix A.3",
    )
    is_trained = True
    varies = True

    def variants(self, choices: Choices, bench: Bench) -> Sequence[Options]:
        """Return its only variant; refuse a model that is not small."""
        count = sum(parameter.numel() for parameter in bench.model.parameters())
        if count > MOST_PARAMETERS:
            raise UnsupportedError(
                f"the model has {count:,} parameters, and full fine-tuning is tried up to {MOST_PARAMETERS:,}, "
                "which take 16 bytes of memory each"
            )
        if choices.parameters is not None:
            raise UnsupportedError(f"it trains all {count:,} parameters, not {choices.parameters:,}")
        return [{}]

    @contextlib.contextmanager
    def put_on(self, bench: Bench, trial: Trial) -> Iterator[Fitted]:
        """Copy the model to float32: small updates would be lost in bfloat16."""
        from transformers import Trainer

        model = copy.deepcopy(bench.model).to(torch.float32)  # type: ignore[arg-type]

        def save(folder: Path) -> None:
            write_tensors(folder / "model.safetensors", dict(model.to(bench.model.dtype).named_parameters()), {})

        yield Fitted(model=model.requires_grad_(True), trainer=Trainer, save=save)
