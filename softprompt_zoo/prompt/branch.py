"""What a prompt adds to the output of attention: the result of its method's `attend`, checked and weighted."""

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import ShapeError
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.shapes import Float
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.tokens.layer_shape import LayerShape

HOOK = "attend"
_LENGTH = 3
"""Number of tokens in the trial."""


class AttendingPrompt(Protocol):
    """What a branch needs from its prompt."""

    weight: float

    @property
    def loaded(self) -> LoadedMethod:
        """Its method."""

    @property
    def is_trained(self) -> bool:
        """Whether one of its parameters requires gradients."""

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook of its method with its own config and parameters."""


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBranch:
    """A prompt's branch alongside the attention of every layer."""

    prompt: AttendingPrompt
    backbone: Backbone

    @property
    def is_trained(self) -> bool:
        """Whether one of the prompt's parameters requires gradients."""
        return self.prompt.is_trained

    def __call__(
        self,
        place: AttentionLayer,
        query: Float[Tensor, "rows heads length head_dim"],
        hidden: Float[Tensor, "rows length hidden"] | None,
        output: Float[Tensor, "rows length heads value_dim"],
    ) -> Float[Tensor, "rows length heads value_dim"] | None:
        """Return what the hook adds.

        Raises:
            ShapeError: If it returns a shape or dtype other than that of `output`.
        """
        seen = {"site": place.name, "layer": place.layer, "query": query, "hidden": hidden, "output": output}
        added: Tensor | None = self.prompt.call(HOOK, backbone=self.backbone, **seen)
        if added is None:
            return None
        found, expected = _form(added), _form(output)
        if found != expected:
            raise ShapeError(
                f"{self.prompt.loaded.describe(HOOK)} returned {found} for {place.name!r} layer {place.layer}; "
                f"expected {expected} as that of `output`, or None"
            )
        return added if self.prompt.weight == 1.0 else added * self.prompt.weight

    def check(self) -> None:
        """Try the hook on zeros at every layer; not while compiling, when that would become part of the graph.

        Raises:
            ShapeError: If it returns a wrong shape or dtype.
            UnsupportedError: If nothing can be added to the output of the model's attention.
        """
        self.backbone.inside.refuse_branches()
        if torch.compiler.is_compiling():
            return
        with torch.no_grad():
            for site, shapes in self.backbone.layers.items():
                for layer, shape in enumerate(shapes):
                    self(AttentionLayer(site, layer), *_zeros(shape, self.backbone))


def _zeros(
    shape: LayerShape, backbone: Backbone
) -> tuple[
    Float[Tensor, "1 heads length head_dim"],
    Float[Tensor, "1 length hidden"],
    Float[Tensor, "1 length heads value_dim"],
]:
    query = torch.zeros(1, shape.heads, _LENGTH, shape.head_dim, device=backbone.device, dtype=backbone.dtype)
    hidden = query.new_zeros(1, _LENGTH, shape.hidden_size)
    return query, hidden, query.new_zeros(1, _LENGTH, shape.heads, shape.value_size[1])


def _form(value: object) -> str:
    """Describe shape and dtype in words."""
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
