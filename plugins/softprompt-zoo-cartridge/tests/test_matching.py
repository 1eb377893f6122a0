"""Attention matching against cases with known answers, and against what it promises."""

import math

import pytest
import torch
from cartridges import cartridge
from torch.nn import functional

matching = cartridge.matching
QUERIES, WIDTH = 400, 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attend(queries, keys, values, scores=0.0, scale=WIDTH**-0.5):
    """Return the attention to a document, and the logarithm of its mass."""
    logits = scale * queries @ keys.T + scores
    return logits.softmax(dim=1) @ values, logits.logsumexp(dim=1)


def test_a_token_that_stands_there_three_times_becomes_one_of_score_log_3():
    """The answer is exact: nothing is lost by leaving repetitions out."""
    keys, values, queries = drawn(1, 4, WIDTH), drawn(1, 4, WIDTH, seed=1), drawn(2, QUERIES, WIDTH, seed=2)
    counts = torch.tensor([1, 3, 2, 5])
    document = [tensor.repeat_interleave(counts, dim=1) for tensor in (keys, values)]
    seen = (queries.flatten(0, 1) @ document[0][0].T * WIDTH**-0.5).softmax(dim=1)
    kept = torch.tensor([0, 1, 4, 6])  # the first of each
    weights = matching.solve_weights(seen[:, kept])
    assert torch.allclose(weights, counts.float(), rtol=0.05)
    shares = seen[:, kept] * counts
    found = matching.solve_values(shares, seen @ document[1][0], values[0], frozen=0)
    assert torch.allclose(found, values[0], atol=1e-5)


def test_weights_are_those_of_least_squares_within_their_bounds():
    """By the conditions of a minimum: no slope where a weight is free, and an outward slope where it is at a bound."""
    seen = drawn(QUERIES, 8).abs() * torch.tensor([1.0, 1, 1, 1, 1, 1, 0.001, 3])
    seen = seen / 8 / seen.mean(dim=0).max()
    weights = matching.solve_weights(seen)
    pull = matching.RIDGE * (seen.T @ seen).diagonal().mean()
    slope = seen.T @ (seen @ weights - 1) + pull * (weights - 1)
    is_free = (weights > 1.001 * matching.LEAST) & (weights < 0.999 * matching.MOST)
    assert is_free.sum() >= 4
    assert slope[is_free].abs().max() < 1e-2 * (seen.T @ seen).diagonal().mean()
    assert (slope[weights <= 1.001 * matching.LEAST] > -1e-4).all()


@pytest.mark.parametrize("frozen", [0, 2])
def test_values_are_those_of_least_squares(frozen):
    shares = drawn(QUERIES, 5).softmax(dim=1)
    own, wanted = drawn(5, WIDTH, seed=1), drawn(QUERIES, WIDTH, seed=2)
    found = matching.solve_values(shares, wanted, own, frozen)
    assert torch.equal(found[:frozen], own[:frozen])
    rest = wanted - shares[:, :frozen] @ own[:frozen]
    expected = torch.linalg.lstsq(shares[:, frozen:], rest).solution
    assert torch.allclose(found[frozen:], expected, atol=2e-2)


def test_the_tokens_of_the_most_attention_are_kept_in_order_and_the_first_always():
    attention = torch.tensor([[0.05, 0.1, 0.5, 0.1, 0.25], [0.05, 0.05, 0.1, 0.5, 0.3]])
    assert matching.choose(attention, 2, 0).tolist() == [2, 3]
    assert matching.choose(attention, 3, 1).tolist() == [0, 2, 3]


def of_layer(weighed, count=12, heads=4, kv_heads=2, length=40):
    keys, values = drawn(kv_heads, length, WIDTH), drawn(kv_heads, length, WIDTH, seed=1)
    queries = drawn(heads, QUERIES, WIDTH, seed=2)
    options = {"frozen": 1, "weighed": weighed, "scale": WIDTH**-0.5}
    return keys, values, queries, matching.match_layer(keys, values, queries, count, **options)


@pytest.mark.parametrize("weighed", [True, False])
def test_a_quarter_of_a_layer_gives_nearly_the_same_attention(weighed):
    """It is closer than the same tokens with their own values; with weights, the mass is nearly the same, too."""
    keys, values, queries, found = of_layer(weighed)
    assert found.keys.shape == found.values.shape == (2, 12, WIDTH)
    assert found.scores.any() == weighed
    for head in range(4):
        pair = head // 2
        wanted, mass = attend(queries[head], keys[pair], values[pair])
        given, kept_mass = attend(queries[head], found.keys[pair], found.values[pair], found.scores[pair])
        indices = [int((keys[pair] == key).all(dim=1).nonzero()) for key in found.keys[pair]]
        assert indices == sorted(indices)
        assert indices[0] == 0
        bare, _ = attend(queries[head], keys[pair, indices], values[pair, indices])
        assert functional.mse_loss(given, wanted) < 0.7 * functional.mse_loss(bare, wanted)
        assert ((kept_mass - mass).abs().mean() < 0.3) == weighed


def test_all_tokens_are_themselves():
    keys, values, _, found = of_layer(True, count=40)
    assert torch.equal(found.keys, keys)
    assert torch.allclose(found.values, values, atol=1e-2)
    assert found.scores.abs().max() < 1e-2


def test_scores_stay_within_their_bounds():
    _, _, _, found = of_layer(True, count=2)
    assert found.scores.abs().max() <= 3 + 1e-5
    assert math.isclose(matching.MOST, math.exp(3))
