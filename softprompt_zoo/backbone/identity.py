"""Identifies the model that something was made for: its sizes, its type, and a sample of its embedding table."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.saved_sizes import check_sizes
from softprompt_zoo.errors import BackboneMismatchError
from softprompt_zoo.shapes import Float

SAMPLED_ROWS = 8
SAMPLED_COLUMNS = 8
TOLERANCE = 2**-7
"""How far a sampled row may be off, relative to its norm. Rounding to bfloat16, including Gemma's scale, uses less
than half of it."""

_NO_SAMPLE: dict[str, list[Any]] = {"ids": [], "columns": [], "values": []}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that may be the described one."""

    sizes: Mapping[str, Any]
    """As `Backbone.sizes` returns them."""
    model_type: str
    """transformers' name of the architecture."""
    vocab_size: int
    """Rows of the embedding table."""
    rows: Callable[[list[int]], Float[Tensor, "ids hidden"]]
    """Maps token ids to their embeddings `(ids, hidden)`, scaled as by the model's embedding module."""

    @classmethod
    def of(cls, backbone: Backbone) -> "Candidate":
        """Take the values to compare from a backbone."""
        return cls(
            backbone.sizes(), backbone.model_type, backbone.vocab_size, lambda ids: backbone.embed(torch.tensor(ids))
        )


def describe(backbone: Backbone) -> dict[str, Any]:
    """Describe a model so that it can be recognized.

    Args:
        backbone: Sizes of the model and its embedding table.

    Returns:
        JSON values; without values of the table if it is on the `meta` device.
    """
    content = {"backbone": backbone.sizes(), "model_type": backbone.model_type}
    # From the first half of the vocabulary: a resized table still has these.
    ids = sorted({backbone.vocab_size * index // (2 * SAMPLED_ROWS) for index in range(1, SAMPLED_ROWS + 1)})
    columns = sorted({backbone.hidden_size * index // SAMPLED_COLUMNS for index in range(SAMPLED_COLUMNS)})
    values = _sample(Candidate.of(backbone), ids, columns)
    if values is not None:
        content["embeddings"] = {"ids": ids, "columns": columns, "values": _rounded(values)}
    return content


def _rounded(values: Float[Tensor, "rows columns"]) -> list[list[float]]:
    """Return numbers for JSON, rounded to six digits."""
    return [[float(f"{value:.6g}") for value in row] for row in values.tolist()]


def is_description(content: object) -> bool:
    """Return whether a value could have been returned by `describe`, for any model."""
    if not isinstance(content, dict) or not isinstance(content.get("backbone"), dict):
        return False
    if not isinstance(content.get("model_type", ""), str):
        return False
    return _is_sample(content.get("embeddings", _NO_SAMPLE), content["backbone"].get("hidden_size", 0))


def _is_sample(sample: object, width: int) -> bool:
    """Return whether a value could be the sample of a table of that width."""
    if not (isinstance(sample, dict) and _has_lists(sample)):
        return False
    ids, columns, values = sample["ids"], sample["columns"], sample["values"]
    return _are_ids(ids) and _are_columns(columns, width) and _is_table(values, len(ids), len(columns))


def _has_lists(sample: Mapping[Any, Any]) -> bool:
    return all(isinstance(sample.get(key), list) for key in _NO_SAMPLE)


def _are_ids(ids: list[Any]) -> bool:
    return all(type(token) is int and token >= 0 for token in ids)


def _are_columns(columns: list[Any], width: int) -> bool:
    return all(type(column) is int and 0 <= column < width for column in columns)


def _is_table(rows: list[Any], height: int, width: int) -> bool:
    """Return whether JSON rows form a table of numbers of that height and width."""
    return len(rows) == height and all(_is_row(row, width) for row in rows)


def _is_row(row: Any, width: int) -> bool:
    return isinstance(row, list) and len(row) == width and all(type(number) is float for number in row)


def check(content: Mapping[str, Any], backbone: Backbone, what: str) -> None:
    """Refuse a model other than the described one; values missing from the description are not compared.

    Args:
        content: What `describe` returned.
        backbone: Sizes of the model and its embedding table.
        what: What was made for the model, for the message.

    Raises:
        BackboneMismatchError: If it has other sizes, another type or other weights.
    """
    compare(content, Candidate.of(backbone), what)


def compare(content: Mapping[str, Any], model: Candidate, what: str) -> None:
    """Refuse another model like `check`, without a backbone."""
    check_sizes(content["backbone"], model.sizes, what)
    model_type = content.get("model_type", model.model_type)
    if model_type != model.model_type:
        raise BackboneMismatchError(
            f"{what} was made for a model of type {model_type!r}; this one is {model.model_type!r}; use it with the "
            "model it was made for"
        )
    _compare_weights(content, model, what)


def _compare_weights(content: Mapping[str, Any], model: Candidate, what: str) -> None:
    """Refuse different values of the embedding table where it was sampled, as far as both have them."""
    for token, expected, own in _sampled_rows(content.get("embeddings", _NO_SAMPLE), model):
        if (own - expected).norm() > TOLERANCE * expected.norm():
            raise BackboneMismatchError(
                f"{what} was made for a model with other weights: there the embedding of token {token} has the values "
                f"{_in_words(expected)}, here {_in_words(own)}; use it with the model it was made for"
            )


def _sampled_rows(
    sample: Mapping[str, Any], model: Candidate
) -> Iterator[tuple[int, Float[Tensor, " columns"], Float[Tensor, " columns"]]]:
    """Yield the sampled tokens that a model has, each with its values in the sample and in the model."""
    known = {token: row for token, row in zip(sample["ids"], sample["values"], strict=True) if token < model.vocab_size}
    values = _sample(model, list(known), sample["columns"]) if known else None
    if values is not None:
        for (token, row), own in zip(known.items(), values, strict=True):
            yield token, torch.tensor(row), own


@torch.no_grad()
def _sample(model: Candidate, ids: list[int], columns: list[int]) -> Float[Tensor, "ids columns"] | None:
    """Return `(ids, columns)` of the embeddings, on the CPU; `None` if they have no values."""
    found = model.rows(ids)[:, columns]
    return None if found.is_meta else found.float().cpu()


def _in_words(values: Float[Tensor, " columns"]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:3].tolist()) + ", …"
