"""Keys and values at one site, the building block of all kinds of tokens at keys and values."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import ShapeError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.checks import check_gate, check_shape
from softprompt_zoo.tokens.layer_shape import LayerShape

Layers = tuple[Float[Tensor, "..."] | None, ...]


@dataclasses.dataclass(frozen=True)
class SiteTokens:
    """Keys and values of the virtual tokens at one site, one tensor per layer."""

    keys: tuple[Float[Tensor, "kv_heads tokens head_dim"] | None, ...]
    """Per layer, as attention sees them (after rotary embedding); `None` for a layer without tokens, which is only
    possible with gates."""
    values: tuple[Float[Tensor, "kv_heads tokens value_dim"] | None, ...]
    """Per layer, or `None` as in `keys`; in most models, values are as wide as keys."""
    gates: tuple[Float[Tensor, " #heads"] | None, ...] | None = None
    """Per layer, one number or one per head: the tokens get their own softmax, whose result, times the gate, is added
    to the text's, and they take up no positions. `None`: they share the softmax of the text."""
    scores: tuple[Float[Tensor, "kv_heads tokens"], ...] | None = None
    """Per layer, numbers added to the attention scores of each token before the softmax: the logarithm of a factor on
    its share. Query heads that share keys and values share them. `None` if there are none; gated tokens have none."""

    @property
    def is_gated(self) -> bool:
        """Whether they have their own softmax."""
        return self.gates is not None

    @property
    def beyond_keys_values(self) -> list[str]:
        """Names of the parts besides keys and values: gates or scores."""
        return [name for name, own in (("gates", self.gates), ("scores", self.scores)) if own is not None]

    @property
    def count(self) -> int:
        """Number of virtual tokens."""
        return next(key.shape[1] for key in self.keys if key is not None)

    @property
    def device(self) -> torch.device:
        """The device of the first layer that has tokens; other layers may be on other devices."""
        return next(key.device for key in self.keys if key is not None)

    @property
    def outline(self) -> object:
        """Heads and width in each layer, and whether there are gates and scores."""
        sizes = [[None if t is None else (t.shape[0], t.shape[2]) for t in kind] for kind in (self.keys, self.values)]
        return sizes, self.is_gated, self.scores is None

    def layer(
        self, index: int
    ) -> (
        tuple[
            Float[Tensor, "kv_heads tokens head_dim"],
            Float[Tensor, "kv_heads tokens value_dim"],
            Float[Tensor, " #heads"],
        ]
        | None
    ):
        """Return key, value and gate of one layer; `None` if it has no gated tokens."""
        key, value = self.keys[index], self.values[index]
        gate = None if self.gates is None else self.gates[index]
        return None if key is None or value is None or gate is None else (key, value, gate)

    def differing_layer(self, shapes: Sequence[LayerShape]) -> tuple[int, int] | None:
        """Find a layer whose tokens differ from those of the layer whose text keys and values it reuses.

        Args:
            shapes: The shape of each layer.

        Returns:
            The layer and its source; `None` if there is no such layer.
        """
        for layer, shape in enumerate(shapes):
            source = shape.shared_with
            if source is not None and not all(
                _is_equal(kind[layer], kind[source]) for kind in (self.keys, self.values)
            ):
                return layer, source
        return None

    def weighted(self, weight: float) -> "SiteTokens":
        """Return these tokens with every gate multiplied by a weight."""
        if self.gates is None or weight == 1.0:
            return self
        gates = tuple([None if gate is None else gate * weight for gate in self.gates])
        return dataclasses.replace(self, gates=gates)

    def map(
        self,
        function: Callable[..., Float[Tensor, "... tokens width"]],
        *others: "SiteTokens",
        gates: Callable[..., Float[Tensor, " #heads"]] | None = None,
    ) -> "SiteTokens":
        """Apply a function to the tensors of each layer, like `VirtualTokens.map`."""
        every = (self, *others)
        keys, values = _map(function, [own.keys for own in every]), _map(function, [own.values for own in every])
        if self.scores is not None:
            return SiteTokens(keys, values, scores=_map_scores(function, gates, every))
        if self.gates is None or gates is None:
            return SiteTokens(keys, values, self.gates)
        return SiteTokens(keys, values, _map(gates, [own.gates for own in every if own.gates is not None]))

    def check(self, site: str, shapes: Sequence[LayerShape], count: int, source: str) -> None:
        """Check what a hook returned, like `VirtualTokens.check`."""
        parts: dict[str, Any] = {"keys": self.keys, "values": self.values}
        parts |= {kind: getattr(self, kind) for kind in self.beyond_keys_values}
        for kind, layers in parts.items():
            _check_depth(layers, len(shapes), kind, site, source)
        if self.gates is not None and all(gate is None for gate in self.gates):
            raise ShapeError(f"{source} returned no gate for any layer of {site!r}; leave the site out")
        for index, shape in enumerate(shapes):
            self._check_layer(index, shape, site, count, source)

    def _check_layer(self, index: int, shape: LayerShape, site: str, count: int, source: str) -> None:
        where = f"{site!r} layer {index}"
        pairs = {
            f"keys of {where}": (self.keys[index], shape.key_size),
            f"values of {where}": (self.values[index], shape.value_size),
        }
        if self.gates is not None and self.gates[index] is None:
            for what, (tensor, _) in pairs.items():
                if tensor is not None:
                    raise ShapeError(f"{source} returned {what} without a gate; expected None")
            return
        for what, (tensor, (heads, width)) in pairs.items():
            check_shape(tensor, (heads, count, width), what, source)
        if self.scores is not None:
            check_shape(self.scores[index], (shape.kv_heads, count), f"scores of {where}", source)
        if self.gates is not None:
            check_gate(self.gates[index], shape, f"the gate of {where}", source)


def _is_equal(one: Float[Tensor, "..."] | None, other: Float[Tensor, "..."] | None) -> bool:
    return one is other or (one is not None and other is not None and one.equal(other))


def _map(function: Callable[..., Float[Tensor, "..."]], columns: Sequence[Layers]) -> Layers:
    return tuple([None if own[0] is None else function(*own) for own in zip(*columns, strict=True)])


def _map_scores(
    function: Callable[..., Float[Tensor, "... tokens width"]],
    numbers: Callable[..., Float[Tensor, "..."]] | None,
    every: Sequence[SiteTokens],
) -> tuple[Float[Tensor, "... kv_heads tokens"], ...]:
    """Apply the function for plain numbers to scores; if there is none, the one for vectors, of width 1."""
    columns = zip(*[own.scores for own in every if own.scores is not None], strict=True)
    if numbers is not None:
        return tuple([numbers(*own) for own in columns])
    return tuple([function(*[scores[..., None] for scores in own])[..., 0] for own in columns])


def _check_depth(layers: object, depth: int, kind: str, site: str, source: str) -> None:
    if not isinstance(layers, Sequence | Tensor):
        found = type(layers).__name__
        raise ShapeError(f"{source} returned {found} as {kind} of {site!r}; expected a tuple, one for each layer")
    if len(layers) != depth:
        raise ShapeError(f"{source} returned {kind} for {len(layers)} layers of {site!r}; expected {depth}")
