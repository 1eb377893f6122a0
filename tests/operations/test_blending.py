"""Blends compute the sums, rotations and concatenations that their names say."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.several_prompts import assert_numbers, everywhere, logits, plain, prompted, tensors

import softprompt_zoo as zoo
from softprompt_zoo.operations.blends import BLENDS
from softprompt_zoo.testing.comparison import assert_equal

WEIGHTED = [how for how in BLENDS if how not in ("concatenate", "task_vectors")]


@everywhere
@pytest.mark.parametrize("how", WEIGHTED)
def test_a_prompt_blended_with_itself_is_itself(architecture, method, how):
    model = prompted(architecture, method)
    a = model.prompts["a"]
    assert_numbers(zoo.blend([a, a], [0.25, 0.75], how=how), tensors(a, model), model)


@everywhere
@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("mean", None, lambda a, b, c: (a + b + c) / 3),
        ("mean", [2, 1, 1], lambda a, b, c: a / 2 + b / 4 + c / 4),
        ("sum", None, lambda a, b, c: a + b + c),
        ("sum", [0.5, -2.0, 0.0], lambda a, b, c: 0.5 * a - 2 * b),
    ],
)
def test_weights_are_what_they_say(architecture, method, how, weights, expected):
    model = prompted(architecture, method)
    parts = [tensors(model.prompts[name], model) for name in "abc"]
    blended = zoo.blend(list(model.prompts.values()), weights, how=how)
    assert_numbers(blended, {name: expected(*(part[name] for part in parts)) for name in parts[0]}, model)


@pytest.mark.parametrize(
    "weights",
    [
        np.array([2, 1, 1]),
        np.array([2, 1, 1], dtype=np.float32),
        [np.float32(2), np.int64(1), Fraction(1)],
        torch.tensor([2.0, 1.0, 1.0]),
        (torch.tensor(2.0), 1, 1.0),
    ],
    ids=["integers", "floats", "scalars", "tensor", "mixed"],
)
def test_weights_may_be_any_sequence_of_real_numbers(weights):
    model = prompted("llama", "prompt_tuning")
    a, b, c = (tensors(model.prompts[name], model) for name in "abc")
    blended = zoo.blend(list(model.prompts.values()), weights)
    assert_numbers(blended, {name: a[name] / 2 + b[name] / 4 + c[name] / 4 for name in a}, model)


@everywhere
def test_task_vectors_are_added_and_taken_away(architecture, method):
    model = prompted(architecture, method)
    a, b, base = (tensors(model.prompts[name], model) for name in "abc")
    options = {"how": "task_vectors", "initial": model.prompts["c"]}
    found = zoo.blend([model.prompts["a"], model.prompts["b"]], [2.0, -0.5], **options)
    expected = {name: base[name] + 2 * (a[name] - base[name]) - 0.5 * (b[name] - base[name]) for name in base}
    assert_numbers(found, expected, model)
    assert_numbers(zoo.blend([model.prompts["a"]], **options), a, model)


@everywhere
def test_slerp_ends_at_both_prompts(architecture, method):
    model = prompted(architecture, method)
    a, b = model.prompts["a"], model.prompts["b"]
    assert_numbers(zoo.blend([a, b], [1, 0], how="slerp"), tensors(a, model), model)
    assert_numbers(zoo.blend([a, b], [0, 1], how="slerp"), tensors(b, model), model)


def test_slerp_turns_evenly_and_stretches_evenly():
    model = prompted("llama", "prompt_tuning", (3, 3, 3))
    one = plain(model, "a", [(1.0, 0.0), (2.0, 0.0), (0.0,)])
    other = plain(model, "b", [(0.0, 1.0), (4.0, 0.0), (6.0, 0.0)])
    third = zoo.blend([one, other], [2, 1], how="slerp")
    found = tensors(third, model)["embeddings"][:, :2]
    angle = math.pi / 6
    expected = [[math.cos(angle), math.sin(angle)], [2 * 2 / 3 + 4 / 3, 0.0], [2.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_slerp_refuses_opposite_directions():
    model = prompted("llama", "prompt_tuning", (1, 1, 1))
    one, other = plain(model, "a", [(1.0, 2.0)]), plain(model, "b", [(-2.0, -4.0)])
    with pytest.raises(zoo.UnsupportedError, match="opposite directions"):
        zoo.blend([one, other], how="slerp")


@everywhere
def test_concatenated_prompts_give_what_both_give(architecture, method):
    model = prompted(architecture, method, (4, 2, 3))
    model.prompts.add("ab", zoo.blend([model.prompts["a"], model.prompts["b"]], how="concatenate"))
    assert model.prompts["ab"].num_virtual_tokens == 6
    assert_equal(logits(model, "ab"), logits(model, "a", "b"), "concatenated")
    assert not torch.equal(logits(model, "ab"), logits(model, "b", "a"))
