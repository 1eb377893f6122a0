"""Tiny models with several prompts each, their contents, and their outputs."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import DECODER_LENGTH, LENGTHS, pad, random_text
from softprompt_zoo.tokens.kinds import PlainTokens

ARCHITECTURES = ["llama", "gpt2", "bert", "t5"]
METHODS = ["prompt_tuning", "prefix_tuning"]
everywhere = pytest.mark.parametrize(("architecture", "method"), [(a, m) for a in ARCHITECTURES for m in METHODS])


def prompted(architecture, method, counts=(4, 4, 4), **options):
    """Build a model with the prompts "a", "b", and "c" of one method, of the given lengths."""
    torch.manual_seed(3)
    model = tiny_model(architecture)
    for name, count in zip("abc", counts, strict=True):
        if hasattr(model, "prompts"):
            model.prompts.add(name, method, num_virtual_tokens=count, **options)
        else:
            model = zoo.get_method(method)(model, name, num_virtual_tokens=count, **options)
        disturb(model.prompts[name])
    return model


def disturb(prompt):
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def batch(model, side="left"):
    ids, mask = pad([random_text(length, seed) for seed, length in enumerate(LENGTHS)], side)
    decoder = {"decoder_input_ids": random_text(DECODER_LENGTH, 77).expand(len(LENGTHS), -1)}
    is_second = model.prompts.backbone.family == "encoder_decoder"
    return {"input_ids": ids, "attention_mask": mask, **(decoder if is_second else {})}


def logits(model, *names):
    with torch.no_grad():
        return model(**batch(model), prompts=[list(names)] * len(LENGTHS)).logits


def tensors(prompt, model):
    """Return the plain tensors of a prompt, `(tokens, features)` each, as the tests read them."""
    tokens = prompt.merged_tokens(model.prompts.backbone)
    if isinstance(tokens, zoo.InputTokens):
        return {"embeddings": tokens.embeddings}
    return {site: zoo.flatten_layers(of_site) for site, of_site in tokens.sites.items()}


def assert_numbers(prompt, expected, model):
    found = tensors(prompt, model)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def plain(model, name, rows):
    """Replace a prompt at the input embeddings with the given vectors, padded with zeros."""
    embeddings = torch.zeros(len(rows), model.config.hidden_size)
    for row, values in zip(embeddings, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    model.prompts[name].learned = PlainTokens({"embeddings": embeddings})
    return model.prompts[name]
