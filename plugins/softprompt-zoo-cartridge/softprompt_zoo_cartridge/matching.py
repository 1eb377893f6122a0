"""Attention matching: fewer keys and values with nearly the same attention output as all; no gradient step.

    A = softmax(scale * q K^T)                                        (queries, document tokens), of one key-value head
    kept = the tokens whose attention has the largest root mean square over the queries
    w = argmin |A[:, kept] w - 1|^2, between LEAST and MOST           restores the lost share; scores = log w
    X = A[:, kept] * w, each row divided by its sum                   (queries, tokens)
    C = argmin |X C - A V|^2                                          (tokens, value_dim), the values

Source: Zweiger, Fu, Guo and Kim, "Fast KV Compaction via Attention Matching", 2026 (arXiv 2602.16284), section 3;
reference code adamzweiger/compaction, `compaction/algorithms/highest_attention_keys.py`.
"""

import dataclasses
import math

import torch
from torch import Tensor

LEAST, MOST = math.exp(-3), math.exp(3)
"""Bounds of a weight. Source: the reference, `evaluation/configs/algorithms/best.py`."""
RIDGE = 1e-3
"""Pull towards the tokens' own values and weights of one, as a fraction of the mean of the diagonal."""
STEPS = 50
"""Number of projected gradient steps for the weights."""


@dataclasses.dataclass(frozen=True)
class Matched:
    """The keys and values that remain in a layer."""

    keys: Tensor
    """`(kv_heads, tokens, head_dim)`, selected from the document's."""
    values: Tensor
    """`(kv_heads, tokens, value_dim)`."""
    scores: Tensor
    """`(kv_heads, tokens)`: the logarithm of each token's weight; zeros if there are no weights."""


def match_layer(
    keys: Tensor, values: Tensor, queries: Tensor, count: int, *, frozen: int, weighed: bool, scale: float
) -> Matched:
    """Choose keys of a layer and solve for their values.

    Args:
        keys: `(kv_heads, document tokens, head_dim)`.
        values: `(kv_heads, document tokens, value_dim)`.
        queries: `(heads, queries, head_dim)`; heads that share keys and values are adjacent.
        count: Number of tokens to keep, at most those of the document.
        frozen: Number of the document's first tokens that are kept unchanged.
        weighed: Whether each token gets a weight; otherwise all weights are one.
        scale: Factor on the products of queries and keys.

    Returns:
        The tokens in the document's order, in the dtype of the queries.
    """
    grouped = queries.unflatten(0, (keys.shape[0], -1)).flatten(1, 2)
    heads = [
        _match_head(*head, count, frozen=frozen, weighed=weighed, scale=scale)
        for head in zip(keys.to(queries), values.to(queries), grouped, strict=True)
    ]
    return Matched(*(torch.stack(found) for found in zip(*heads, strict=True)))


def _match_head(
    keys: Tensor, values: Tensor, queries: Tensor, count: int, *, frozen: int, weighed: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    attention = torch.softmax(scale * queries @ keys.T, dim=1)
    kept = choose(attention, count, frozen)
    seen = attention[:, kept]
    weights = solve_weights(seen) if weighed else seen.new_ones(count)
    shares = seen * weights
    shares = shares / shares.sum(dim=1, keepdim=True)
    found = solve_values(shares, attention @ values, values[kept], frozen)
    return keys[kept], found, weights.log()


def choose(attention: Tensor, count: int, frozen: int) -> Tensor:
    """Return the tokens that get the most attention.

    Args:
        attention: `(queries, document tokens)`.
        count: Number of tokens.
        frozen: Number of first tokens that are always included.

    Returns:
        `(count,)` indices, in order.
    """
    strength = attention.square().mean(dim=0)
    strength[:frozen] = math.inf
    return strength.topk(count).indices.sort().values


def solve_weights(seen: Tensor) -> Tensor:
    """Return the weights with which the kept tokens get all the attention of the document.

    Args:
        seen: `(queries, tokens)`, the attention that the kept tokens get within the document.

    Returns:
        `(tokens,)`, within the bounds, near one if it makes no difference.
    """
    products, wanted = _near(seen, seen.new_ones(len(seen), 1), seen.new_ones(seen.shape[1], 1))
    weights = torch.linalg.solve(products, wanted).clamp(LEAST, MOST)
    step = 1 / products.abs().sum(dim=1).max()  # at most one over the largest eigenvalue
    for _ in range(STEPS):
        weights = (weights - step * (products @ weights - wanted)).clamp(LEAST, MOST)
    found: Tensor = weights[:, 0]
    return found


def solve_values(shares: Tensor, wanted: Tensor, own: Tensor, frozen: int) -> Tensor:
    """Return the values with which attention to the kept tokens gives the output of the whole document.

    Args:
        shares: `(queries, tokens)`, each kept token's share of attention.
        wanted: `(queries, value_dim)`, the output of attention to the document.
        own: `(tokens, value_dim)`, the kept tokens' values in the document.
        frozen: Number of first tokens that keep their own values.

    Returns:
        `(tokens, value_dim)`, near `own` if it makes no difference.
    """
    rest = wanted - shares[:, :frozen] @ own[:frozen]
    products, sums = _near(shares[:, frozen:], rest, own[frozen:])
    return torch.cat([own[:frozen], torch.linalg.solve(products, sums)])


def _near(matrix: Tensor, wanted: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normal equations of `matrix @ x = wanted`, with `x` pulled towards `start`."""
    products = matrix.T @ matrix
    pull = RIDGE * products.diagonal().mean()
    products.diagonal().add_(pull)
    return products, matrix.T @ wanted + pull * start
