"""Masks and scores made of each row's text: rows in a batch and continued texts give what they give alone."""

import pytest
import torch
from helpers.masked_method import PLUGIN, Parameters, build_virtual_tokens
from helpers.products import in_turns
from helpers.text_methods import registered

import softprompt_zoo as zoo
from softprompt_zoo.sites.reach import attention_interface
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.checks import greedy
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text

TOKENS = 4
TEXTS = [random_text(length, length) for length in (9, 4, 7, 5)]
ARCHITECTURES = ["llama", "gpt2", "bert", "t5"]


class Masked:
    """A prefix of which a row sees the tokens chosen by the length of its text."""

    Config, Parameters = PLUGIN.Config, Parameters

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters, backbone):
        return build_virtual_tokens(parameters, backbone)

    @zoo.hookimpl
    def inject(self, tokens, text):
        columns = torch.arange(TOKENS, device=text.mask.device)
        return zoo.Placement(tokens, mask=(text.mask.sum(dim=1)[:, None] + columns) % 3 > 0)


class Scored(Masked):
    """A prefix that has more weight, head by head, the longer the text is."""

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters, backbone, text):
        found = build_virtual_tokens(parameters, backbone)
        lengths = text.mask.sum(dim=1).to(torch.float32)[:, None, None]
        sites = {}
        for name, site in found.sites.items():
            rows = [
                tuple([layer.expand(len(lengths), *layer.shape) for layer in kind]) for kind in (site.keys, site.values)
            ]
            scores = tuple(
                [
                    (lengths * torch.arange(1, layer.shape[0] + 1)[:, None] / 9).expand(-1, -1, TOKENS)
                    for layer in site.keys
                ]
            )
            sites[name] = zoo.SiteTokens(*rows, scores=scores)
        return zoo.LayerTokens(sites)

    @zoo.hookimpl
    def inject(self, tokens):
        return zoo.Placement(tokens)


class Both(Scored):
    """A prefix with different tokens for each row, which sees only some of them."""

    @zoo.hookimpl
    def inject(self, tokens, text):
        return Masked.inject(self, tokens, text)


METHODS = ["masked", "scored", "both"]


@pytest.fixture(autouse=True)
def methods():
    with registered(masked=Masked(), scored=Scored(), both=Both()):
        yield


def attach(architecture, method, implementation="sdpa"):
    torch.manual_seed(0)
    base = tiny_model(architecture, implementation=implementation)
    model = zoo.get_method(method)(base, num_virtual_tokens=TOKENS)
    model.prompts.add("plain", "prefix_tuning", num_virtual_tokens=2, init="random")
    return Subject(architecture, model)


@in_turns(architecture=ARCHITECTURES, method=METHODS, side=["left", "right"])
def test_each_row_of_a_mixed_batch_is_as_alone(architecture, method, side):
    subject = attach(architecture, method)
    rows = ["default", ["plain", "default"], "plain", ["default", "plain"]]
    ids, mask = pad(TEXTS, side, extra=1)
    batch = subject.logits(ids, mask, prompts=rows)
    for row, (text, names) in enumerate(zip(TEXTS, rows, strict=True)):
        found = batch[row] if subject.is_encoder_decoder else batch[row][mask[row].bool()]
        assert_equal(found, subject.logits(text, torch.ones_like(text), prompts=[names])[0], f"row {row} with {names}")


@in_turns(
    ids=str,
    architecture=["llama", "t5"],
    method=METHODS,
    options=[{}, {"num_beams": 3}, {"cache_implementation": "static"}],
)
def test_what_is_generated_is_as_alone(architecture, method, options):
    subject = attach(architecture, method)
    ids, mask = pad(TEXTS, "left")
    texts, _ = greedy(subject, ids, mask, **options)
    for row, text in enumerate(TEXTS):
        alone, _ = greedy(subject, text, torch.ones_like(text), **options)
        assert torch.equal(texts[row, -6:], alone[0, -6:]), f"row {row}"


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_steps_on_a_returned_cache_are_those_of_generate(method):
    subject = attach("llama", method)
    ids, mask = pad(TEXTS, "left")
    expected, _ = greedy(subject, ids, mask)
    step = subject.model(input_ids=ids, attention_mask=mask, use_cache=True)
    for _ in range(6):
        new = step.logits[:, -1].argmax(dim=-1, keepdim=True)
        ids, mask = torch.cat([ids, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)
        step = subject.model(input_ids=new, attention_mask=mask, past_key_values=step.past_key_values, use_cache=True)
    assert torch.equal(ids, expected)


def test_the_oracle_notices_the_mask_of_another_row(monkeypatch):
    original = attention_interface.seen_by_rows
    monkeypatch.setattr(attention_interface, "seen_by_rows", lambda *args: original(*args).flip(0))
    with pytest.raises(AssertionError):
        test_each_row_of_a_mixed_batch_is_as_alone("llama", "masked", "left")
