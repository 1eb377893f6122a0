"""The interface of all kinds of virtual tokens.

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
    """The sizes of a model that virtual tokens depend on."""

    @property
    def hidden_size(self) -> int:
        """Width of its embeddings."""

    @property
    def layers(self) -> Mapping[str, tuple[LayerShape, ...]]:
        """Site name to its layers."""


class VirtualTokens(abc.ABC):
    """The virtual tokens of one prompt, as returned by `build_virtual_tokens` and placed by `inject`."""

    stored_name: ClassVar[str] = ""
    """Regular expression that matches the name of some tensor of this kind; decides whether `read` is called."""

    share_softmax: ClassVar[bool] = False
    """Whether tokens of this kind are always just keys and values that share the softmax of the text."""

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """Number of virtual tokens."""

    @property
    @abc.abstractmethod
    def where(self) -> str:
        """A description of where they are."""

    @property
    @abc.abstractmethod
    def outline(self) -> object:
        """The properties that tokens must share to be combined numerically: sizes and layers, but not their number."""

    @property
    @abc.abstractmethod
    def form(self) -> Hashable:
        """Kind, sizes and dtypes: tokens of the same form pass the same checks."""

    @property
    def num_tasks(self) -> int | None:
        """Number of tasks that have their own tokens; `None` if there are no tasks."""
        return None

    @property
    def at_input(self) -> Float[Tensor, "... tokens hidden"] | None:
        """Embeddings to put among the text's; `None` if there are none."""
        return None

    @property
    def gates(self) -> Mapping[str, tuple[Float[Tensor, " #heads"] | None, ...]]:
        """Site name to a gate for each layer that has tokens, for sites where they have their own softmax."""
        return {}

    @property
    def scores(self) -> Mapping[str, tuple[Float[Tensor, "kv_heads tokens"], ...]]:
        """Site name to the numbers added to the attention scores of the tokens in each layer, if there are any."""
        return {}

    @property
    def beyond_prefix(self) -> str | None:
        """A description of what would be lost in a plain prefix of keys and values; `None` if nothing."""
        return None

    def at(self, site: str) -> SiteTokens | None:
        """Return the keys and values that share the softmax of the text at a site."""
        return None

    def gated_at(self, site: str) -> SiteTokens | None:
        """Return the keys and values that have their own softmax at a site."""
        return None

    def length(self, site: str) -> int:
        """Count the tokens whose keys and values share the softmax of the text at a site."""
        own = self.at(site)
        return 0 if own is None else own.count

    def columns(self, site: str) -> int:
        """Count the keys and values in front of the text at the self-attention of a causal stack."""
        return self.length(site)

    def task(self, index: int) -> "VirtualTokens":
        """Return the tokens of one task; all of them if there are no tasks."""
        return self

    @abc.abstractmethod
    def map(
        self,
        function: Callable[..., Float[Tensor, "... tokens width"]],
        *others: Self,
        gates: Callable[..., Float[Tensor, " #heads"]] | None = None,
    ) -> "VirtualTokens":
        """Apply a function to the tensors of these tokens and others with the same outline.

        Args:
            function: Takes a tensor from each of them and returns one like them.
            *others: Further tokens.
            gates: The same for gates; `None` to keep these tokens' own. Also used for scores, which have no direction;
                with `None`, `function` is applied to them as vectors of width 1.

        Returns:
            The resulting tokens.
        """

    @abc.abstractmethod
    def features(self, with_keys: bool = True) -> Float[Tensor, "tokens features"]:
        """Return all values of each token.

        Args:
            with_keys: Whether to include keys, or, of keys and values, only the values.

        Returns:
            One row per token, in float32 on the CPU.
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
            sizes: Sizes of the model that the tokens are for.

        Returns:
            The tokens, through which gradients flow to `tensors`; `None` if these are of another kind.

        Raises:
            ShapeError: If the shapes do not match the model.
        """

    @classmethod
    @abc.abstractmethod
    def stored_shapes(cls, sizes: Sizes, count: int, num_tasks: int | None) -> Shapes:
        """Return the shapes of all tensors that `tensors` may return.

        Args:
            sizes: Sizes of the model.
            count: Number of virtual tokens.
            num_tasks: Number of tasks; `None` if there are none.

        Returns:
            Name to shape; gates with one number per head.
        """

    @abc.abstractmethod
    def check(self, sizes: Sizes, count: int, num_tasks: int | None, source: str) -> None:
        """Check what a hook returned against a model's sizes.

        Args:
            sizes: Sizes of the model.
            count: Virtual tokens that the prompt is to have.
            num_tasks: Its tasks; `None` if it has none.
            source: Plugin and hook, for the message.

        Raises:
            ShapeError: If a shape or dtype is wrong.
        """

    @classmethod
    def narrow(cls, tokens: "VirtualTokens") -> Self | None:
        """Return tokens as this kind if a hook returned them as a wider one; else `None`."""
        return None
