"""Virtual tokens as values: what `build_virtual_tokens` returns and what `inject` places.

Axes: `tokens` virtual tokens of one prompt, `hidden` the embedding width, `kv_heads` key-value heads,
`head_dim` the width of one head. A *site* is a stack's self-attention (`"encoder"`, `"decoder"`) or the
decoder's attention over the encoder (`"cross"`).
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from softprompt_zoo.errors import ShapeError


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """Sizes of one attention layer."""

    kv_heads: int
    """Key-value heads."""
    head_dim: int
    """Width of one head."""
    heads: int = 0
    """Query heads."""
    window: int | None = None
    """Width of its sliding window in positions, if it has one."""
    value_dim: int = 0
    """Width of one head's values, where it is another than that of its keys; 0 where it is the same."""

    shared_with: int | None = None
    """The layer whose keys and values of the text it reads, where it makes none of its own; counted within its site."""

    def __post_init__(self) -> None:
        if self.value_dim == self.head_dim:
            object.__setattr__(self, "value_dim", 0)

    @property
    def key_size(self) -> tuple[int, int]:
        """Key-value heads, and the width of a key."""
        return self.kv_heads, self.head_dim

    @property
    def value_size(self) -> tuple[int, int]:
        """Key-value heads, and the width of a value."""
        return self.kv_heads, self.value_dim or self.head_dim

    @property
    def features(self) -> int:
        """Numbers of one virtual token, its key and its value."""
        return self.kv_heads * (self.head_dim + (self.value_dim or self.head_dim))


@dataclasses.dataclass(frozen=True)
class InputTokens:
    """Virtual tokens at the input embeddings."""

    embeddings: Tensor
    """`(tokens, hidden)`, in the scale of the embedding module's output; of a method with tasks
    `(tasks, tokens, hidden)`, from which each row takes its task's."""

    @property
    def form(self) -> Hashable:
        """Kind, sizes and dtype: tokens of one form pass the same checks."""
        return type(self), self.embeddings.shape, self.embeddings.dtype


@dataclasses.dataclass(frozen=True)
class SiteTokens:
    """Keys and values of the virtual tokens at one site, a tensor per layer."""

    keys: tuple[Tensor | None, ...]
    """Per layer `(kv_heads, tokens, head_dim)`, as attention sees them (after rotary embedding); `None` for
    a layer without tokens, which only gated ones may have."""
    values: tuple[Tensor | None, ...]
    """Per layer `(kv_heads, tokens, head_dim)`, or `None` as in `keys`; some models' values are of another width."""
    gates: tuple[Tensor | None, ...] | None = None
    """Per layer `(heads,)` or `(1,)`: the tokens get a softmax of their own, whose result, times the gate, is
    added to the text's, and they take up no positions. `None`: they share the softmax of the text."""


@dataclasses.dataclass(frozen=True)
class LayerTokens:
    """Virtual tokens at the keys and values of every layer of some sites."""

    sites: Mapping[str, SiteTokens]
    """Site name to its keys and values."""

    @property
    def form(self) -> Hashable:
        """Kind, sizes and dtypes: tokens of one form pass the same checks."""
        form: list[object] = [type(self)]
        for site, own in self.sites.items():
            gates = () if own.gates is None else own.gates
            form += [site, type(own), len(own.keys), len(own.values), own.gates is None]
            form += [None if part is None else (part.shape, part.dtype) for part in (*own.keys, *own.values, *gates)]
        return tuple(form)


VirtualTokens = InputTokens | LayerTokens


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where virtual tokens go; the answer of the `inject` hook."""

    tokens: VirtualTokens
    """What is placed. `InputTokens` go in front of the text, `LayerTokens` to their sites."""
    dropout: float = 0.0
    """Probability that an element of a key or value is zeroed, per row, while training."""
    always_visible: bool = False
    """Whether the tokens stay visible in a sliding window that has moved past them."""
    weight: float = 1.0
    """Factor on the share of attention that the tokens get, before all shares are brought to a sum of one; a gate is
    multiplied by it. The host multiplies it by the weight that the user gives the prompt."""
    is_pooled: bool = False
    """Whether a head that reads the text's first token reads the first of these; the host sets it as the user chose."""

    @property
    def form(self) -> Hashable:
        """All but the numbers in the tokens: placements of one form pass the same checks."""
        return type(self), self.tokens.form, self.dropout, self.always_visible, self.weight


def flatten_layers(tokens: SiteTokens) -> Tensor:
    """Lay keys and values out as one row of features per token.

    Args:
        tokens: Keys and values of one site.

    Returns:
        `(tokens, features)`: for each layer its key then its value, heads first within each. With equal
        layers this is the layout of PEFT's `prompt_embeddings`. Gradients flow.
    """
    pairs = [pair for layer in zip(tokens.keys, tokens.values, strict=True) for pair in layer if pair is not None]
    return torch.cat([pair.permute(1, 0, 2).flatten(1) for pair in pairs], dim=1)


def unflatten_layers(flat: Tensor, layers: Sequence[LayerShape]) -> SiteTokens:
    """Undo `flatten_layers`.

    Args:
        flat: `(tokens, features)`.
        layers: The shape of each layer of the site.

    Returns:
        Keys and values as views of `flat`; gradients flow.

    Raises:
        ShapeError: If the features are not what the layers need.
    """
    expected = sum(layer.features for layer in layers)
    if flat.ndim != 2 or flat.shape[1] != expected:
        raise ShapeError(f"keys and values have shape {tuple(flat.shape)}; expected (tokens, {expected})")
    sizes = {size for layer in layers for size in (layer.key_size, layer.value_size)}
    if len(sizes) == 1:  # the same views, in a few operations instead of three for each of them
        keys, values = flat.unflatten(1, (len(layers), 2, *sizes.pop())).permute(2, 1, 3, 0, 4)
        return SiteTokens(keys.unbind(), values.unbind())
    shapes = [size for layer in layers for size in (layer.key_size, layer.value_size)]
    parts = flat.split([heads * width for heads, width in shapes], dim=1)
    pairs = [part.unflatten(1, shape).permute(1, 0, 2) for part, shape in zip(parts, shapes, strict=True)]
    return SiteTokens(tuple(pairs[0::2]), tuple(pairs[1::2]))


def to_tensors(tokens: VirtualTokens) -> dict[str, Tensor]:
    """Name the tensors of plain virtual tokens for storage.

    Args:
        tokens: Any virtual tokens.

    Returns:
        `{"embeddings": (tokens, hidden)}`; or one `(tokens, features)` tensor per site under its name; of gated
        tokens one under `<site>_<layer>` for each layer that has any, and its gate under `<site>_<layer>_gate`.
    """
    if isinstance(tokens, InputTokens):
        return {"embeddings": tokens.embeddings}
    tensors = {}
    for site, site_tokens in tokens.sites.items():
        if site_tokens.gates is None:
            tensors[site] = flatten_layers(site_tokens)
            continue
        for layer, gate in enumerate(site_tokens.gates):
            if gate is not None:
                one = slice(layer, layer + 1)
                tensors[f"{site}_{layer}"] = flatten_layers(SiteTokens(site_tokens.keys[one], site_tokens.values[one]))
                tensors[f"{site}_{layer}_gate"] = gate
    return tensors
