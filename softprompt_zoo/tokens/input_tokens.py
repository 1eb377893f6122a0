"""Virtual tokens at the input embeddings."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Self

from torch import Tensor

from softprompt_zoo.shapes import Float, Shaped
from softprompt_zoo.tokens.checks import check_shape
from softprompt_zoo.tokens.virtual_tokens import Shapes, Sizes, VirtualTokens

NAME = "embeddings"
"""The name under which they are stored."""


@dataclasses.dataclass(frozen=True)
class InputTokens(VirtualTokens):
    """Virtual tokens at the input embeddings."""

    embeddings: Float[Tensor, "... tokens hidden"]
    """In the scale of the embedding module's output; for a method with tasks,
    `(tasks, tokens, hidden)`, which the host converts to `TaskTokens`."""
    stored_name: ClassVar[str] = f"^{NAME}$"

    @property
    def count(self) -> int:
        """Number of virtual tokens."""
        return self.embeddings.shape[-2]

    @property
    def where(self) -> str:
        """A description of where they are."""
        return "input embeddings"

    @property
    def outline(self) -> object:
        """The width of an embedding."""
        return self.embeddings.shape[-1]

    @property
    def form(self) -> Hashable:
        """Kind, sizes and dtype."""
        return type(self), self.embeddings.shape, self.embeddings.dtype

    @property
    def at_input(self) -> Shaped[Tensor, "..."]:
        """The embeddings, possibly not yet validated by `check`."""
        return self.embeddings

    def columns(self, site: str) -> int:
        """Count the tokens: in a causal stack, each gets a key and a value in every layer."""
        return self.count

    def map(
        self,
        function: Callable[..., Float[Tensor, "... tokens width"]],
        *others: Self,
        gates: Callable[..., Float[Tensor, " #heads"]] | None = None,
    ) -> "InputTokens":
        """Apply a function to the embeddings of these and other tokens."""
        return type(self)(function(self.embeddings, *[other.embeddings for other in others]))

    def features(self, with_keys: bool = True) -> Float[Tensor, "tokens features"]:
        """Return the embeddings, in float32 on the CPU."""
        return self.embeddings.float().cpu()

    def tensors(self) -> dict[str, Tensor]:
        """Name the tensor for storage: `{"embeddings": (tokens, hidden)}`."""
        return {NAME: self.embeddings}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], sizes: Sizes) -> Self | None:
        """Undo `tensors`."""
        return cls(tensors[NAME])

    @classmethod
    def stored_shapes(cls, sizes: Sizes, count: int, num_tasks: int | None) -> Shapes:
        """Return the shape of the embeddings."""
        return {NAME: _shape(sizes, count, num_tasks)}

    def check(self, sizes: Sizes, count: int, num_tasks: int | None, source: str) -> None:
        """Check what a hook returned against a model's sizes."""
        check_shape(self.embeddings, _shape(sizes, count, num_tasks), NAME, source)


def _shape(sizes: Sizes, count: int, num_tasks: int | None) -> Any:
    return (*(() if num_tasks is None else (num_tasks,)), count, sizes.hidden_size)
