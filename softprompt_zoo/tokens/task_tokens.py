"""Virtual tokens at the input embeddings, others for each task."""

import dataclasses
from collections.abc import Mapping
from typing import Self

from torch import Tensor

from softprompt_zoo.tokens.input_tokens import NAME, InputTokens
from softprompt_zoo.tokens.virtual_tokens import Sizes, VirtualTokens


@dataclasses.dataclass(frozen=True)
class TaskTokens(InputTokens):
    """Virtual tokens at the input embeddings, others for each task; `embeddings` is `(tasks, tokens, hidden)`."""

    @property
    def num_tasks(self) -> int:
        """Tasks."""
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
        """Return embeddings of three axes as tokens with tasks."""
        return cls(tokens.embeddings) if isinstance(tokens, InputTokens) and tokens.embeddings.ndim == 3 else None
