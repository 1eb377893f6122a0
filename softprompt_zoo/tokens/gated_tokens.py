"""Virtual tokens at keys and values that have their own softmax."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from torch import Tensor

from softprompt_zoo.errors import ShapeError
from softprompt_zoo.shapes import Shaped
from softprompt_zoo.tokens.checks import check_gate
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.layer_tokens import LayerTokens, check_sites, flatten_layers, unflatten_layers
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.tokens.virtual_tokens import Shapes, Sizes, VirtualTokens


@dataclasses.dataclass(frozen=True)
class GatedTokens(LayerTokens):
    """Virtual tokens with gates at some sites, where they have their own softmax and no positions.

    Their result, times the gate, is added to the text's. Sites without gates are like those of `LayerTokens`.
    """

    share_softmax: ClassVar[bool] = False
    stored_name: ClassVar[str] = r"_\d+(_gate)?$"

    @property
    def where(self) -> str:
        """A description of where they are."""
        names = [name + (" (gated)" if site.is_gated else "") for name, site in sorted(self.sites.items())]
        return f"keys and values of {', '.join(names)}"

    @property
    def gates(self) -> Mapping[str, tuple[Shaped[Tensor, "..."] | None, ...]]:
        """Site name to the gates of its layers, possibly not yet validated by `check`."""
        return {name: site.gates for name, site in self.sites.items() if site.gates is not None}

    @property
    def beyond_prefix(self) -> str:
        """A description of the gates."""
        return "gated tokens, which have their own softmax and so are not a prefix"

    def at(self, site: str) -> SiteTokens | None:
        """Return the keys and values at a site that has no gates."""
        return None if site in self.gates else self.sites.get(site)

    def gated_at(self, site: str) -> SiteTokens | None:
        """Return the keys and values at a site that has gates."""
        return self.sites[site] if site in self.gates else None

    def tensors(self) -> dict[str, Tensor]:
        """Name the tensors for storage.

        Returns:
            `<site>_<layer>`, `(tokens, features)`, and `<site>_<layer>_gate` for each layer that has tokens; for a
            site without gates, one tensor as in `LayerTokens`.
        """
        tensors = {}
        for name, site in self.sites.items():
            if site.gates is None:
                tensors[name] = flatten_layers(site)
                continue
            for layer, gate in enumerate(site.gates):
                if gate is not None:
                    one = slice(layer, layer + 1)
                    tensors[f"{name}_{layer}"] = flatten_layers(SiteTokens(site.keys[one], site.values[one]))
                    tensors[f"{name}_{layer}_gate"] = gate
        return tensors

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], sizes: Sizes) -> Self | None:
        """Undo `tensors`."""
        check_sites(tensors, sizes)
        sites = {}
        for name, layers in sizes.layers.items():
            if name in tensors:
                sites[name] = unflatten_layers(tensors[name], layers)
            elif any(key.startswith(f"{name}_") for key in tensors):
                sites[name] = _read_site(tensors, name, layers)
        return cls(sites)

    @classmethod
    def stored_shapes(cls, sizes: Sizes, count: int, num_tasks: int | None) -> Shapes:
        """Return the shapes of each layer's tokens and gate."""
        shapes: Shapes = {}
        for name, layers in sizes.layers.items():
            for index, layer in enumerate(layers):
                shapes |= {f"{name}_{index}": (count, layer.features), f"{name}_{index}_gate": (layer.heads,)}
        return shapes

    @classmethod
    def narrow(cls, tokens: VirtualTokens) -> Self | None:
        """Return keys and values as gated tokens if some have gates; else `None`."""
        if isinstance(tokens, LayerTokens) and any([site.is_gated for site in tokens.sites.values()]):
            return cls(tokens.sites)
        return None


def _read_site(tensors: Mapping[str, Tensor], site: str, layers: Sequence[LayerShape]) -> SiteTokens:
    keys: list[Tensor | None] = [None] * len(layers)
    values: list[Tensor | None] = [None] * len(layers)
    gates: list[Tensor | None] = [None] * len(layers)
    remaining = {name for name in tensors if name.startswith(f"{site}_")}
    for index, layer in enumerate(layers):
        names = {f"{site}_{index}", f"{site}_{index}_gate"}
        if not names & remaining:
            continue
        if not names <= remaining:
            raise ShapeError(f"there is no {min(names - remaining)!r} next to {min(names & remaining)!r}")
        remaining -= names
        one = unflatten_layers(tensors[f"{site}_{index}"], [layer])
        gate = tensors[f"{site}_{index}_gate"]
        check_gate(gate, layer, f"{site}_{index}_gate", "the merged prompt")
        keys[index], values[index], gates[index] = one.keys[0], one.values[0], gate
    if remaining:
        raise ShapeError(f"there is {min(remaining)!r}; this backbone's site {site!r} has {len(layers)} layers")
    return SiteTokens(tuple(keys), tuple(values), tuple(gates))
