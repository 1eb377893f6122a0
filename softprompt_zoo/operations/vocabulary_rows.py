"""New rows in the tables of a vocabulary: tokens that can be read but are never generated."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.shapes import Float

TOWARDS_MEAN = 0.02
"""Share of the mean of all rows in the row of a token that is never generated."""
UNREACHABLE = -1e4
"""What a bias adds to its logit if the head has one; half precision can hold it."""


def least_likely(logits: Float[Tensor, "... vocab"]) -> int:
    """Return the token whose highest probability over all positions is the lowest.

    Args:
        logits: The logits at those positions.

    Returns:
        Its id.
    """
    chances = torch.log_softmax(logits.float(), dim=-1).flatten(0, -2)
    return int(chances.amax(dim=0).argmin())


def output_row(head: Any, unlikely: int, known: int) -> tuple[Float[Tensor, " hidden"], Float[Tensor, ""] | None]:
    """Compute a row for a head whose logit is always below the largest one, for any hidden state.

    It is a weighted mean of existing rows, so its logit is the same weighted mean of their logits. The mean of
    all rows in it keeps it strictly below the largest, unless all logits are equal.

    Args:
        head: The linear layer that computes the logits. Not changed.
        unlikely: The token that gets most of the weight.
        known: Number of rows that belong to tokens.

    Returns:
        The row and, if the head has one, its bias, in float64.
    """
    weight = head.weight
    row = (1 - TOWARDS_MEAN) * weight[unlikely].double() + TOWARDS_MEAN * weight[:known].mean(
        dim=0, dtype=torch.float64
    )
    bias = part_of(head, "bias")
    if bias is None:
        return row, None
    mixed = (1 - TOWARDS_MEAN) * bias[unlikely].double() + TOWARDS_MEAN * bias[:known].mean(dtype=torch.float64)
    return row, mixed + UNREACHABLE


def add_rows(
    model: PreTrainedModel,
    ids: Sequence[int],
    rows: Float[Tensor, "tokens hidden"],
    output: tuple[Float[Tensor, " hidden"], Float[Tensor, ""] | None] | None,
) -> None:
    """Add tokens to a model's vocabulary, with new tables for input and output.

    Args:
        model: The model. Changed: it gets new tables; the old ones stay unchanged.
        ids: The tokens' ids, in order; the tables grow if they have no such rows.
        rows: Their rows for the embedding table.
        output: The row and bias of the head for each of them; `None` if there is no head over the vocabulary.
    """
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    places = torch.tensor(list(ids), device=embedding.weight.device)
    table = _grown(embedding.weight, max(ids) + 1)
    table[places] = rows.to(table)
    if head is not None and output is not None:
        row, bias = output
        written = _grown(head.weight, max(ids) + 1)
        written[places.to(written.device)] = row.to(written)
        head.weight = nn.Parameter(written, requires_grad=False)
        head.out_features = written.shape[0]
        if bias is not None:
            biases = _grown(head.bias, max(ids) + 1)
            biases[places.to(biases.device)] = bias.to(biases)
            head.bias = nn.Parameter(biases, requires_grad=False)
    embedding.weight = nn.Parameter(table, requires_grad=False)
    embedding.num_embeddings = table.shape[0]
    _tell_config(model, table.shape[0])


def _grown(table: Float[Tensor, "vocab ..."], rows: int) -> Float[Tensor, "..."]:
    grown = table.new_zeros(max(rows, table.shape[0]), *table.shape[1:])
    grown[: table.shape[0]] = table.detach()
    return grown


def _tell_config(model: PreTrainedModel, rows: int) -> None:
    text = model.config.get_text_config()
    text.vocab_size = rows
    for config in {id(own): own for own in (model.config, text)}.values():
        config.tie_word_embeddings = False
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=module is model)
