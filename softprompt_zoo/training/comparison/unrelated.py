"""Forgetting: what a candidate costs on text that is unrelated to its data."""

import importlib.resources
from typing import TYPE_CHECKING, Any

from softprompt_zoo.examples import Example
from softprompt_zoo.training.evaluation import target_loss
from softprompt_zoo.training.objectives.writing import Writing

if TYPE_CHECKING:
    from softprompt_zoo.training.base import Base
    from softprompt_zoo.training.comparison.fitted import Fitted

TEMPLATE = "{input}"


class Unrelated:
    """A text of a few paragraphs, each to be continued after its first sentence."""

    def __init__(self, model: Any, base: "Base") -> None:
        self._writing = Writing(base, TEMPLATE)
        self._examples = [_split(paragraph) for paragraph in paragraphs()]
        self.loss = target_loss(model, self._writing.rows(self._examples), self._writing.collate)
        """Loss per token of the unchanged model, in nats."""

    @classmethod
    def of(cls, model: Any, base: "Base") -> "Unrelated | None":
        """Measure the unchanged model; return `None` if it does not generate text."""
        return cls(model, base) if model.can_generate() else None

    def forgetting(self, fitted: "Fitted") -> float:
        """Return the loss per token with a candidate minus that of the unchanged model, in nats."""
        writing = fitted.put_in_front(self._writing)
        return target_loss(fitted.model_for_texts, writing.rows(self._examples), writing.collate) - self.loss


def paragraphs() -> list[str]:
    """Return the paragraphs of the text that ships with this package."""
    text = (importlib.resources.files("softprompt_zoo") / "data" / "unrelated" / "text.txt").read_text("utf-8")
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _split(paragraph: str) -> Example:
    """Split a paragraph after its first sentence."""
    first, rest = paragraph.split(". ", 1)
    return Example(f"{first}.", f" {rest}", (rest,))
