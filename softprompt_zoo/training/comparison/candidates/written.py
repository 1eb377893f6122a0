"""What candidates of written text have in common."""

from pathlib import Path

from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted


def written(bench: Bench, text: str) -> Fitted:
    """Return the model with a text in front of every row.

    Args:
        bench: The model and the rows.
        text: What is put in front.
    """

    def save(folder: Path) -> None:
        (folder / "prompt.txt").write_text(text, "utf-8")

    tokens = bench.objective.instruction_tokens(text)
    return Fitted(model=bench.model, instruction=text, prompt_tokens=tokens, save=save)
