"""The common part of candidates with a written text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted


def written(bench: Bench, pieces: Sequence[str], put_in_front: Callable[[Any], Any]) -> Fitted:
    """Return the model with a text in front of every row.

    Args:
        bench: The model and the rows.
        pieces: Parts of the text, which are tokenized separately.
        put_in_front: Returns an objective with the text in front of every row.
    """

    def save(folder: Path) -> None:
        (folder / "prompt.txt").write_text("".join(pieces), "utf-8")

    tokens = sum(map(bench.objective.instruction_tokens, pieces))
    return Fitted(model=bench.model, put_in_front=put_in_front, prompt_tokens=tokens, save=save)
