"""Virtual tokens at the input embeddings that differ for each task."""

import dataclasses
from collections.abc import Mapping
from typing import Self

from torch import Tensor

from softprompt_zoo.tokens.input_tokens import NAME, InputTokens
from softprompt_zoo.tokens.virtual_tokens import Sizes, VirtualTokens


@dataclasses.dataclass(frozen=True)
class TaskTokens(InputTokens):
    """Virtual tokens at the input embeddings that differ for each task: `embeddings` is `(tasks, tokens, hidden)`."""

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return self.embeddings.shape[0]

    def task(self, index: int) -> InputTokens:
        """Return the tokens of one task."""
        return InputTokens(self.embeddings[index])

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], sizes: Sizes) -> Self | None:
        """Undo `tensors`."""
        return cls.narrow(InputTokens(tensors[NAME]))

    @classmethod
    def narrow(cls, tokens: VirtualTokens) -> Self | None:
        """Return embeddings with three axes as tokens with tasks; else `None`."""
        return cls(tokens.embeddings) if isinstance(tokens, InputTokens) and tokens.embeddings.ndim == 3 else None
