"""Tiny models with one prompt."""

import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import Subject


def prompted(architecture="llama", method="prefix_tuning", implementation="sdpa", **options):
    """Attach a method with four virtual tokens, and add noise to its parameters."""
    return Subject.prompted(architecture, method, {"num_virtual_tokens": 4, **options}, implementation)


def attached(model="llama", method="prefix_tuning", **options):
    """Attach a method with four virtual tokens, from a fixed seed, to a model or to the tiny model of that name."""
    torch.manual_seed(0)
    model = tiny_model(model) if isinstance(model, str) else model
    return zoo.get_method(method)(model, **{"num_virtual_tokens": 4, **options})
