"""Virtual tokens at keys and values with scores, which give each of them more or less attention, head by head."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from softprompt_zoo.errors import ShapeError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.layer_tokens import LayerTokens, check_sites, flatten_layers
from softprompt_zoo.tokens.virtual_tokens import Shapes, Sizes, VirtualTokens

_ENDING = "_scores"
"""Suffix of the name under which a site's scores are stored."""


@dataclasses.dataclass(frozen=True)
class ScoredTokens(LayerTokens):
    """Virtual tokens with scores at some sites, which are added to the attention scores of the tokens.

    They share the softmax of the text. Sites without scores are like those of `LayerTokens`.
    """

    stored_name: ClassVar[str] = f"{_ENDING}$"

    @property
    def where(self) -> str:
        """A description of where they are."""
        names = [name + (" (scored)" if name in self.scores else "") for name in sorted(self.sites)]
        return f"keys and values of {', '.join(names)}"

    @property
    def scores(self) -> Mapping[str, tuple[Float[Tensor, "kv_heads tokens"], ...]]:
        """Site name to the scores of its layers, possibly not yet validated by `check`."""
        return {name: site.scores for name, site in self.sites.items() if site.scores is not None}

    @property
    def beyond_prefix(self) -> str:
        """A description of the scores."""
        return "scores, which are not part of its keys and values and so would be lost in a prefix"

    def tensors(self) -> dict[str, Tensor]:
        """Name the tensors for storage.

        Returns:
            For each site, the tensor of `LayerTokens` and, if it has scores, `<site>_scores`, `(tokens, heads)`, with
            the key-value heads of all layers one after the other.
        """
        tensors = {}
        for name, site in self.sites.items():
            tensors[name] = flatten_layers(dataclasses.replace(site, scores=None))
            if site.scores is not None:
                tensors[name + _ENDING] = torch.cat([layer.T for layer in site.scores], dim=1)
        return tensors

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], sizes: Sizes) -> Self | None:
        """Undo `tensors`."""
        scored = {name: tensor for name, tensor in tensors.items() if name.endswith(_ENDING)}
        check_sites(scored, sizes)
        plain = LayerTokens.read({name: tensor for name, tensor in tensors.items() if name not in scored}, sizes)
        sites = dict(plain.sites) if plain is not None else {}
        for name, tensor in scored.items():
            site = name.removesuffix(_ENDING)
            if site not in sites:
                raise ShapeError(f"there is no {site!r} next to {name!r}")
            sites[site] = dataclasses.replace(sites[site], scores=_split(tensor, sizes.layers[site], name))
        return cls(sites)

    @classmethod
    def stored_shapes(cls, sizes: Sizes, count: int, num_tasks: int | None) -> Shapes:
        """Return the shapes of each site's scores."""
        return {
            name + _ENDING: (count, sum([layer.kv_heads for layer in layers])) for name, layers in sizes.layers.items()
        }

    @classmethod
    def narrow(cls, tokens: VirtualTokens) -> Self | None:
        """Return keys and values as scored tokens if some have scores; else `None`."""
        if isinstance(tokens, LayerTokens) and any([site.scores is not None for site in tokens.sites.values()]):
            return cls(tokens.sites)
        return None


def _split(
    tensor: Float[Tensor, "tokens heads"], layers: Sequence[LayerShape], name: str
) -> tuple[Float[Tensor, "kv_heads tokens"], ...]:
    heads = [layer.kv_heads for layer in layers]
    if tensor.ndim != 2 or tensor.shape[1] != sum(heads):
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; expected (tokens, {sum(heads)})")
    return tuple([own.T for own in tensor.split(heads, dim=1)])
