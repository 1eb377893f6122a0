"""Kinds of virtual tokens: those that a plugin gives as a wider kind, or that are stored, get their actual kind."""

import types

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.tokens import kinds
from softprompt_zoo.tokens.kinds import KINDS, from_tensors, narrowed, stored_shapes
from softprompt_zoo.tokens.layer_shape import LayerShape

SIZES = types.SimpleNamespace(hidden_size=8, layers={"decoder": (LayerShape(2, 4, heads=4),) * 3})


def site(gates=None, scores=None):
    keys = tuple(torch.randn(2, 5, 4) if gates is None or gate is not None else None for gate in gates or [1, 1, 1])
    return zoo.SiteTokens(keys, tuple(None if key is None else key + 1 for key in keys), gates, scores)


GIVEN = {
    zoo.InputTokens: zoo.InputTokens(torch.randn(5, 8)),
    zoo.TaskTokens: zoo.InputTokens(torch.randn(3, 5, 8)),
    zoo.LayerTokens: zoo.LayerTokens({"decoder": site()}),
    zoo.ScoredTokens: zoo.LayerTokens({"decoder": site(scores=(torch.randn(2, 5),) * 3)}),
    zoo.GatedTokens: zoo.LayerTokens({"decoder": site((None, torch.randn(4), torch.randn(1)))}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_told_by_its_tensors(kind):
    tokens = narrowed(GIVEN[kind])
    assert type(tokens) is kind
    assert isinstance(tokens, type(GIVEN[kind])), "what plugins ask stays true"
    stored = tokens.tensors()
    again = from_tensors(stored, SIZES)
    assert type(again) is kind
    assert {name: tensor.tolist() for name, tensor in again.tensors().items()} == {
        n: t.tolist() for n, t in stored.items()
    }
    shapes = stored_shapes(stored, SIZES, 5, tokens.num_tasks)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items() if tensor.shape != (1,)} == {
        name: shape for name, shape in shapes.items() if stored[name].shape != (1,)
    }


@pytest.mark.parametrize("kind", [zoo.ScoredTokens, zoo.GatedTokens])
@pytest.mark.parametrize("first", [zoo.ScoredTokens, zoo.GatedTokens])
def test_gates_and_scores_are_told_apart_whichever_is_asked_first(kind, first, monkeypatch):
    monkeypatch.setattr(kinds, "KINDS", (first, *[other for other in KINDS if other is not first]))
    assert type(from_tensors(narrowed(GIVEN[kind]).tensors(), SIZES)) is kind


@pytest.mark.parametrize("name", ["decoder_", "decoder_x", "decoder_gate", "decoder_0_scale"])
def test_names_of_no_kind_are_refused(name):
    with pytest.raises(zoo.ShapeError, match=f"the tensors '{name}' are not those of virtual tokens"):
        from_tensors({name: torch.zeros(5, 16)}, SIZES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_answers_in_one_place(kind):
    tokens = narrowed(GIVEN[kind])
    places = [tokens.at_input is not None, tokens.at("decoder") is not None, tokens.gated_at("decoder") is not None]
    assert sum(places) == 1
    assert tokens.count == 5
    assert tokens.columns("decoder") == (0 if tokens.gates else 5)
    assert tokens.length("decoder") == (5 if kind in (zoo.LayerTokens, zoo.ScoredTokens) else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_map_goes_to_every_tensor_and_keeps_the_kind(kind):
    tokens = narrowed(GIVEN[kind])
    summed = tokens.map(torch.add, tokens, gates=torch.mul)
    assert type(summed) is kind
    for name, tensor in tokens.tensors().items():
        expected = tensor**2 if name.endswith(("_gate", "_scores")) else 2 * tensor
        assert torch.equal(summed.tensors()[name], expected), name
    kept = tokens.map(torch.neg).tensors()
    for name, tensor in tokens.tensors().items():
        assert torch.equal(kept[name], tensor if name.endswith("_gate") else -tensor), name


def test_one_task_of_tokens_with_tasks():
    tokens = narrowed(GIVEN[zoo.TaskTokens])
    assert tokens.num_tasks == 3
    assert torch.equal(tokens.task(2).embeddings, tokens.embeddings[2])
    assert narrowed(tokens.task(2)).num_tasks is None
