"""LoRA, through PEFT.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import check_packages
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted, Options
from softprompt_zoo.training.comparison.candidates.restoring import frozen, head_to_train, save_head
from softprompt_zoo.training.comparison.candidates.sizing import sized
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.trial import Trial

RANK = 8
"""PEFT's default."""


class Lora:
    """Low-rank updates of every linear layer; a `Candidate`."""

    name = "lora"
    recipe: Recipe | None = Recipe(
        learning_rate=1e-3,
        steps=200,
        source="between the paper's 2e-4 for GPT-2 and what short runs at small ranks need; our choice",
    )
    is_trained = True
    varies = True

    def variants(self, choices: Choices, bench: Bench) -> Sequence[Options]:
        """Return its only variant."""
        check_packages("the baseline lora needs", "peft", remedy='pip install "softprompt-zoo[peft]"')
        if choices.parameters is not None:
            return [sized(self, {}, "rank", choices.parameters, bench)]
        return [{"rank": RANK}]

    @contextlib.contextmanager
    def put_on(self, bench: Bench, trial: Trial) -> Iterator[Fitted]:
        """Wrap the linear layers, and unwrap them again."""
        import peft
        from transformers import Trainer

        rank = trial.options["rank"]
        # alpha of twice the rank, on all linear layers: Dettmers et al., "QLoRA", 2023, section 4.
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        with frozen(bench.model), head_to_train(bench) as head:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PEFT uses a deprecated name
                wrapped: Any = peft.get_peft_model(bench.model, config)
            head.requires_grad_(True)
            try:

                def save(folder: Path) -> None:
                    wrapped.save_pretrained(folder)
                    save_head(head, folder)

                yield Fitted(model=wrapped, trainer=Trainer, save=save)
            finally:
                wrapped.unload()
