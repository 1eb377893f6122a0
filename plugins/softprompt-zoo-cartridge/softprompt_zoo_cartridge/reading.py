"""Recording the queries with which a model attends to a document while it reads texts after it."""

import contextlib
import dataclasses
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import softprompt_zoo as zoo

READER = "cartridge_reader"
SITE = "decoder"
SCALES = (None, 1.0)
"""Factors on the products of queries and keys to try; `None` is one over the square root of a head's width."""
CLOSE = 0.05
"""Largest error of an attention's output when it is recomputed, relative to its norm."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What each layer saw."""

    keys: list[Tensor]
    """Per layer `(kv_heads, document tokens, head_dim)`, rotated so that a text at `position` follows directly."""
    values: list[Tensor]
    """Per layer `(kv_heads, document tokens, value_dim)`."""
    queries: list[Tensor]
    """Per layer `(heads, queries, head_dim)`, of tokens after the document."""
    scales: list[float]
    """Per layer, the factor on the products of queries and keys."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of the reader."""

    num_virtual_tokens: int = 0


class Parameters(nn.Module):
    """What each layer saw in the last forward; nothing is trained."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Do nothing: there are no values to initialize."""


@zoo.hookimpl
def attend(parameters: Parameters, layer: int, query: Tensor, output: Tensor) -> None:
    """Record a layer's queries and attention output; add nothing."""
    parameters.seen[layer] = (query, output)


PLUGIN = types.SimpleNamespace(NAME=READER, Config=Config, Parameters=Parameters, attend=attend)


@torch.no_grad()
def read(model: Any, document: Tensor, texts: Sequence[Tensor], position: int, every: int) -> Reading:
    """Let the frozen model read texts, each directly after a document.

    Args:
        model: A prompted model. Not changed.
        document: `(tokens,)` ids.
        texts: Ids of each text.
        position: Where texts begin in the result: if the model rotates keys, they are rotated as if the document ended
            there.
        every: One query is kept for every so many tokens of the texts.

    Returns:
        Keys and values of the document, and the queries.

    Raises:
        UnsupportedError: If the model's attention cannot be read, or is more than a softmax of products.
    """
    with _reader(model) as seen:
        first = position - len(document) if _rotates(model, document) else 0
        cache = _forward(model, document, first, None).past_key_values
        keys = [layer.keys[0] for layer in cache.layers]
        values = [layer.values[0] for layer in cache.layers]
        _check_whole(keys, document, model)
        asked = [_ask(model, text, first + len(document), cache, seen, every) for text in texts]
    queries, scales = zip(*asked, strict=True)
    return Reading(keys, values, [torch.cat(found, dim=1) for found in zip(*queries, strict=True)], scales[0])


def _ask(
    model: Any, text: Tensor, position: int, cache: Any, seen: dict[int, tuple[Tensor, Tensor]], every: int
) -> tuple[list[Tensor], list[float]]:
    """Read a text after the content of a cache; return each layer's queries and scale, and restore the cache."""
    _forward(model, text, position, cache)
    scales = [_scale(*seen[index], layer.keys, layer.values) for index, layer in enumerate(cache.layers)]
    queries = [seen[index][0][0, :, every - 1 :: every].clone() for index in range(len(scales))]
    cache.crop(-len(text))
    return queries, scales


@contextlib.contextmanager
def _reader(model: Any) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Temporarily replace the model's active prompts with one that records each layer's queries."""
    host, active, trains = model.prompts, model.prompts.active, model.training
    zoo.register(PLUGIN)
    try:
        host.add(READER, READER)
        try:
            host.activate(READER)
            model.eval()
            yield host[READER].learned.seen
        finally:
            model.train(trains)
            host.activate(*active)
            host.remove(READER)
    finally:
        zoo.unregister(READER)


def _forward(model: Any, ids: Tensor, position: int, cache: Any) -> Any:
    positions = torch.arange(position, position + len(ids), device=ids.device)
    return model(input_ids=ids[None], position_ids=positions[None], past_key_values=cache, use_cache=True)


def _rotates(model: Any, document: Tensor) -> bool:
    """Return whether positions only rotate queries and keys: values are then the same at every position."""
    first, moved = (_forward(model, document[:2], position, None).past_key_values for position in (0, 1))
    pairs = [(a.values, b.values) for a, b in zip(first.layers, moved.layers, strict=True)]
    return all(torch.allclose(a.float(), b.float(), atol=CLOSE * float(a.abs().max())) for a, b in pairs)


def _check_whole(keys: list[Tensor], document: Tensor, model: Any) -> None:
    """Refuse a cache that does not hold the whole document in every layer."""
    shapes = model.prompts.backbone.layers[SITE]
    windows = [shape.window for shape in shapes if shape.window is not None]
    if windows or len(keys) != len(shapes) or any(key.shape[1] != len(document) for key in keys):
        reason = f"a sliding window of {min(windows)} tokens" if windows else "layers that keep no keys of their own"
        raise zoo.UnsupportedError(
            f"attention matching needs every layer's keys of the whole document, but this model has {reason}; train "
            "the cartridge instead"
        )


def _scale(query: Tensor, output: Tensor, keys: Tensor, values: Tensor) -> float:
    """Return the factor with which the last query, keys and values give the output of attention."""
    groups = query.shape[1] // keys.shape[1]
    last = query[0, :, -1:].float()
    keys, values = (tensor[0].float().repeat_interleave(groups, dim=0) for tensor in (keys, values))
    wanted = output[0, -1].float()
    missed = {}
    for given in SCALES:
        scale = query.shape[-1] ** -0.5 if given is None else given
        found = torch.softmax(scale * last @ keys.mT, dim=-1) @ values
        missed[scale] = float((found[:, 0] - wanted).norm() / wanted.norm())
    best = min(missed, key=lambda scale: missed[scale])
    if missed[best] > CLOSE:
        raise zoo.UnsupportedError(
            "attention matching needs attention that is a softmax of the products of queries and keys, but this "
            f"model's differs by {missed[best]:.0%}; train the cartridge instead"
        )
    return best
