"""What all kinds of virtual tokens can be asked.

Axes: `tokens` virtual tokens of one prompt, `hidden` the embedding width, `kv_heads` key-value heads,
`head_dim` the width of one head. A *site* is a stack's self-attention (`"encoder"`, `"decoder"`) or the
decoder's attention over the encoder (`"cross"`).
"""

import abc
from collections.abc import Callable, Hashable, Mapping
from typing import ClassVar, Protocol, Self

from torch import Tensor

from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.site_tokens import SiteTokens

Shapes = dict[str, tuple[int, ...]]
"""Shapes of tensors by name."""


class Sizes(Protocol):
    """What virtual tokens must know of a model."""

    @property
    def hidden_size(self) -> int:
        """Width of its embeddings."""

    @property
    def layers(self) -> Mapping[str, tuple[LayerShape, ...]]:
        """Site name to its layers."""


class VirtualTokens(abc.ABC):
    """The virtual tokens of one prompt: what `build_virtual_tokens` returns and what `inject` places."""

    stored_name: ClassVar[str] = ""
    """Regular expression that the name of some tensor of this kind has: what `read` is asked for."""

    share_softmax: ClassVar[bool] = False
    """Whether all of this kind are keys and values that share the softmax of the text, and nothing else."""

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """Virtual tokens."""

    @property
    @abc.abstractmethod
    def where(self) -> str:
        """Where they are, in words."""

    @property
    @abc.abstractmethod
    def outline(self) -> object:
        """What tokens that are computed with each other have in common: sizes and layers, but not their number."""

    @property
    @abc.abstractmethod
    def form(self) -> Hashable:
        """Kind, sizes and dtypes: tokens of one form pass the same checks."""

    @property
    def num_tasks(self) -> int | None:
        """Tasks that each have tokens of their own; `None` where there are no tasks."""
        return None

    @property
    def at_input(self) -> Float[Tensor, "... tokens hidden"] | None:
        """Embeddings that stand among the text's; `None` for none."""
        return None

    @property
    def gates(self) -> Mapping[str, tuple[Float[Tensor, " #heads"] | None, ...]]:
        """Site name to a gate for each layer that has tokens, where they have a softmax of their own."""
        return {}

    @property
    def scores(self) -> Mapping[str, tuple[Float[Tensor, "kv_heads tokens"], ...]]:
        """Site name to what is added to the attention scores of the tokens in each layer, where there is something."""
        return {}

    @property
    def beyond_prefix(self) -> str | None:
        """What a prefix, keys and values in front of the text alone, cannot hold of them, in words; `None` if all."""
        return None

    def at(self, site: str) -> SiteTokens | None:
        """Return the keys and values that share the softmax of the text at a site."""
        return None

    def gated_at(self, site: str) -> SiteTokens | None:
        """Return the keys and values that have a softmax of their own at a site."""
        return None

    def length(self, site: str) -> int:
        """Count the tokens whose keys and values share the softmax of the text at a site."""
        own = self.at(site)
        return 0 if own is None else own.count

    def columns(self, site: str) -> int:
        """Count the keys and values in front of the text at the self-attention of a causal stack."""
        return self.length(site)

    def task(self, index: int) -> "VirtualTokens":
        """Return the tokens of one task; without tasks all of them."""
        return self

    @abc.abstractmethod
    def map(
        self,
        function: Callable[..., Float[Tensor, "... tokens width"]],
        *others: Self,
        gates: Callable[..., Float[Tensor, " #heads"]] | None = None,
    ) -> "VirtualTokens":
        """Apply a function to the tensors of these tokens and of others with the same outline.

        Args:
            function: Takes a tensor of each of them, and returns one like them.
            *others: Further tokens.
            gates: The same of gates; `None` to keep these tokens' own. Of scores, too, which have no direction; `None`
                to apply `function` to them, as vectors of the width 1.

        Returns:
            The tokens that it makes.
        """

    @abc.abstractmethod
    def features(self, with_keys: bool = True) -> Float[Tensor, "tokens features"]:
        """Return all numbers of each token.

        Args:
            with_keys: Whether keys count, or of keys and values the values alone.

        Returns:
            Those of one token in a row, in float32 on the CPU.
        """

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Name the tensors for storage; `read` undoes it."""

    @classmethod
    @abc.abstractmethod
    def read(cls, tensors: Mapping[str, Tensor], sizes: Sizes) -> Self | None:
        """Undo `tensors`.

        Args:
            tensors: Named tensors.
            sizes: Of the model the tokens are for.

        Returns:
            The tokens, through which gradients flow to `tensors`; `None` if those are of another kind.

        Raises:
            ShapeError: If the shapes are not the model's.
        """

    @classmethod
    @abc.abstractmethod
    def stored_shapes(cls, sizes: Sizes, count: int, num_tasks: int | None) -> Shapes:
        """Return the shapes of all tensors that `tensors` may give.

        Args:
            sizes: Of the model.
            count: Virtual tokens.
            num_tasks: Tasks; `None` if there are none.

        Returns:
            Name to shape; of gates with a number per head.
        """

    @abc.abstractmethod
    def check(self, sizes: Sizes, count: int, num_tasks: int | None, source: str) -> None:
        """Check what a hook returned against a model's sizes.

        Args:
            sizes: Of the model.
            count: Virtual tokens that the prompt is to have.
            num_tasks: Its tasks; `None` if it has none.
            source: Plugin and hook, for the message.

        Raises:
            ShapeError: If a shape or a kind of numbers is another one.
        """

    @classmethod
    def narrow(cls, tokens: "VirtualTokens") -> Self | None:
        """Return tokens as this kind, if a hook gave them as a wider one; else `None`."""
        return None
