"""A newcomer can follow one forward: it goes through few files and functions."""

import torch
from helpers.walk import walk

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXT = torch.arange(3, 9)[None]


def test_a_forward_with_a_prefix_is_a_short_walk():
    model = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=3).eval()
    model(input_ids=TEXT)
    taken = walk(lambda: model(input_ids=TEXT))
    print(taken)
    assert (len(taken.files) <= 15, len(taken.functions) <= 60) == (True, True), taken
