"""Tiny models with prompts, for the tests of banks."""

import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal as assert_within

METHODS = {
    "words": ("prompt_tuning", {"num_virtual_tokens": 3}),
    "prefix": ("prefix_tuning", {"num_virtual_tokens": 5}),
    "deep": ("p_tuning_v2", {"num_virtual_tokens": 2, "train_head": False}),
    "made": ("p_tuning", {"num_virtual_tokens": 4}),
}


def random_text(length, rows):
    return torch.randint(3, 101, (rows, length), generator=torch.Generator().manual_seed(7))


TEXT = random_text(9, 4)


def assert_equal(actual, expected):
    assert_within(actual, expected, "the bank")


def prompted(architecture="llama", names=("words",), seed=0):
    model = tiny_model(architecture, seed)
    torch.manual_seed(seed)
    for name in names:
        method, options = METHODS[name]
        if not hasattr(model, "prompts"):
            zoo.get_method(method)(model, name, **options)
        else:
            model.prompts.add(name, method, **options)
        for parameter in model.prompts[name].parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def own_tensors(prompt, backbone):
    return prompt.merged_tokens(backbone).tensors()
