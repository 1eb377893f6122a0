"""The eleven promises, with sources of words on every model, and with given sources where the widths are equal."""

import torch

from softprompt_zoo.testing import conformance_suite

WORDS = {"sources": "sampled", "num_sources": 3, "bottleneck_size": 8}


def given(tokens):
    """Return options with two sources of the tiny models' width."""
    generator = torch.Generator().manual_seed(tokens)
    return {"num_virtual_tokens": tokens, "sources": 0.3 * torch.randn(2, tokens, 32, generator=generator)}


TestWords = conformance_suite("attempt")
TestMean = conformance_suite("attempt", {**WORDS, "init": "mean", "temperature": 2.0}, ["llama", "bert", "t5"])
TestGiven = conformance_suite("attempt", given(5), ["llama", "bert", "t5"], longer=given(7))
