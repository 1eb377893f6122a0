"""No virtual tokens, for a method that only changes the text's embeddings or the output of attention."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from softprompt_zoo.errors import ShapeError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.virtual_tokens import Shapes, Sizes, VirtualTokens


@dataclasses.dataclass(frozen=True)
class NoTokens(VirtualTokens):
    """No virtual tokens; used by the host for a method without `build_virtual_tokens`."""

    share_softmax: ClassVar[bool] = True

    @property
    def count(self) -> int:
        """None."""
        return 0

    @property
    def where(self) -> str:
        """A description of where they are."""
        return "no virtual tokens"

    @property
    def outline(self) -> object:
        """A value that no other tokens share."""
        return None

    @property
    def form(self) -> Hashable:
        """Only the kind."""
        return type(self)

    def map(
        self,
        function: Callable[..., Float[Tensor, "... tokens width"]],
        *others: Self,
        gates: Callable[..., Float[Tensor, " #heads"]] | None = None,
    ) -> "NoTokens":
        """Apply a function to nothing."""
        return self

    def features(self, with_keys: bool = True) -> Float[Tensor, "tokens features"]:
        """Return no rows."""
        return torch.empty(0, 0)

    def tensors(self) -> dict[str, Tensor]:
        """Name no tensors."""
        return {}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], sizes: Sizes) -> Self | None:
        """Return `None`: nothing of this kind is stored, as such a prompt has no merged form."""
        return None

    @classmethod
    def stored_shapes(cls, sizes: Sizes, count: int, num_tasks: int | None) -> Shapes:
        """Return no shapes."""
        return {}

    def check(self, sizes: Sizes, count: int, num_tasks: int | None, source: str) -> None:
        """Refuse a prompt that is to have tokens."""
        if count:
            raise ShapeError(
                f"{source} makes no virtual tokens, but num_virtual_tokens is {count}; a method without any needs "
                "`num_virtual_tokens: int = 0` in its Config"
            )
