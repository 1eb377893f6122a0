"""Virtual tokens at the keys and values of every layer of some sites, and their layout as one row per token."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from softprompt_zoo.errors import ShapeError, UnsupportedError
from softprompt_zoo.shapes import Float, Shaped
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.tokens.virtual_tokens import Shapes, Sizes, VirtualTokens


@dataclasses.dataclass(frozen=True)
class LayerTokens(VirtualTokens):
    """Virtual tokens at the keys and values of every layer of some sites."""

    sites: Mapping[str, SiteTokens]
    """Site name to its keys and values; if some have gates, the host converts them to `GatedTokens`; if some have
    scores, to `ScoredTokens`."""
    stored_name: ClassVar[str] = "^[^_]+$"  # that of a site, which has no underscore
    share_softmax: ClassVar[bool] = True

    @property
    def count(self) -> int:
        """Number of virtual tokens."""
        return next(site.count for site in self.sites.values())

    @property
    def where(self) -> str:
        """A description of where they are."""
        return f"keys and values of {', '.join(sorted(self.sites))}"

    @property
    def outline(self) -> object:
        """Heads and width in each layer of each site."""
        return {name: site.outline for name, site in self.sites.items()}

    @property
    def form(self) -> Hashable:
        """Kind, sizes and dtypes."""
        form: list[Any] = [type(self)]
        for name, site in self.sites.items():
            gates = () if site.gates is None else site.gates
            scores = () if site.scores is None else site.scores
            form += [name, type(site), len(site.keys), len(site.values), site.gates is None, site.scores is None]
            parts = (*site.keys, *site.values, *gates, *scores)
            form += [None if part is None else (part.shape, part.dtype) for part in parts]
        return tuple(form)

    def at(self, site: str) -> SiteTokens | None:
        """Return the keys and values at a site."""
        return self.sites.get(site)

    def map(
        self,
        function: Callable[..., Float[Tensor, "... tokens width"]],
        *others: Self,
        gates: Callable[..., Float[Tensor, " #heads"]] | None = None,
    ) -> "LayerTokens":
        """Apply a function to the tensors of these and other tokens."""
        mapped = {}
        for name, site in self.sites.items():
            mapped[name] = site.map(function, *[other.sites[name] for other in others], gates=gates)
        return type(self)(mapped)

    def features(self, with_keys: bool = True) -> Float[Tensor, "tokens features"]:
        """Return all numbers of each token, in float32 on the CPU."""
        sites = [self.sites[name] for name in sorted(self.sites)]
        layers = [layer for site in sites for layer in (*(site.keys if with_keys else ()), *site.values)]
        return torch.cat([t.float().transpose(0, 1).flatten(1).cpu() for t in layers if t is not None], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Name the tensors for storage: `(tokens, features)` for each site, under its name."""
        return {name: flatten_layers(site) for name, site in self.sites.items()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], sizes: Sizes) -> Self | None:
        """Undo `tensors`."""
        check_sites(tensors, sizes)
        return cls(
            {name: unflatten_layers(tensors[name], sizes.layers[name]) for name in sizes.layers if name in tensors}
        )

    @classmethod
    def stored_shapes(cls, sizes: Sizes, count: int, num_tasks: int | None) -> Shapes:
        """Return the shape of each site's tensor."""
        return {name: (count, sum([layer.features for layer in layers])) for name, layers in sizes.layers.items()}

    def check(self, sizes: Sizes, count: int, num_tasks: int | None, source: str) -> None:
        """Check what a hook returned against a model's sizes."""
        there = ", ".join(map(repr, sizes.layers)) or "none"
        if not isinstance(self.sites, Mapping) or not self.sites:
            raise ShapeError(
                f"{source} returned LayerTokens of {self.sites!r}; expected softprompt_zoo.SiteTokens by site, of "
                f"which this backbone has {there}"
            )
        for name, site in self.sites.items():
            if name not in sizes.layers:
                raise ShapeError(f"{source} returned tokens for the site {name!r}; this backbone has {there}")
            if not isinstance(site, SiteTokens):
                found = type(site).__name__
                raise ShapeError(f"{source} returned {found} for the site {name!r}; expected softprompt_zoo.SiteTokens")
            site.check(name, sizes.layers[name], count, source)
        self._check_one_of_two(source)
        if num_tasks is not None:
            raise ShapeError(
                f"{source} returned {type(self).__name__} ({self.where}), but num_tasks is {num_tasks}; expected "
                f"InputTokens with embeddings of shape {(num_tasks, count, sizes.hidden_size)}, as only these differ "
                "by task; or leave num_tasks out of the Config, add a prompt for each task, and choose each row's with "
                "prompts=[…]"
            )

    def _check_one_of_two(self, source: str) -> None:
        """Refuse a prompt with both gates and scores."""
        found = {kind: name for name, site in self.sites.items() for kind in site.beyond_keys_values}
        if len(found) > 1:
            raise ShapeError(
                f"{source} returned gates at the site {found['gates']!r} and scores at {found['scores']!r}; a prompt "
                "has one or the other"
            )


def check_sites(names: Iterable[str], sizes: Sizes) -> None:
    """Refuse stored tensors for a site that a model does not have.

    Args:
        names: Names of tensors, which begin with that of their site.
        sizes: Sizes of the model.

    Raises:
        ShapeError: If the model lacks the site of one.
    """
    lacking = next((name for name in names if name.split("_")[0] not in sizes.layers), None)
    if lacking is not None:
        there = ", ".join(map(repr, sizes.layers))
        raise ShapeError(f"there are tokens for the site {lacking!r}; this backbone has {there}")


def flatten_layers(tokens: SiteTokens) -> Float[Tensor, "tokens features"]:
    """Flatten keys and values to one row of features per token.

    Args:
        tokens: Keys and values of one site.

    Returns:
        For each layer, its key and then its value, heads first within each. If all layers
        are equal, this is the layout of PEFT's `prompt_embeddings`. Gradients flow.

    Raises:
        UnsupportedError: If the tokens have scores, which this layout cannot hold.
    """
    if tokens.scores is not None:
        raise UnsupportedError(
            "these tokens have scores, which rows of keys and values alone cannot hold; start from a prompt without "
            "scores, or keep this one in our format"
        )
    pairs = [pair for layer in zip(tokens.keys, tokens.values, strict=True) for pair in layer if pair is not None]
    return torch.cat([pair.permute(1, 0, 2).flatten(1) for pair in pairs], dim=1)


def unflatten_layers(flat: Shaped[Tensor, "..."], layers: Sequence[LayerShape]) -> SiteTokens:
    """Undo `flatten_layers`.

    Args:
        flat: Features in the layout of `flatten_layers`.
        layers: The shape of each layer of the site.

    Returns:
        Keys and values as views of `flat`; gradients flow.

    Raises:
        ShapeError: If the features do not match the layers.
    """
    expected, shapes = 0, []
    for layer in layers:
        expected += layer.features
        shapes += [layer.key_size, layer.value_size]
    if flat.ndim != 2 or flat.shape[1] != expected:
        raise ShapeError(f"keys and values have shape {tuple(flat.shape)}; expected (tokens, {expected})")
    if len(set(shapes)) == 1:  # the same views, in a few operations instead of three per layer
        keys, values = flat.unflatten(1, (len(layers), 2, *shapes[0])).permute(2, 1, 3, 0, 4)
        return SiteTokens(keys.unbind(), values.unbind())
    parts = flat.split([heads * width for heads, width in shapes], dim=1)
    pairs = [part.unflatten(1, shape).permute(1, 0, 2) for part, shape in zip(parts, shapes, strict=True)]
    return SiteTokens(tuple(pairs[0::2]), tuple(pairs[1::2]))
