"""Placements that would not do what they say are refused when a prompt is attached."""

import dataclasses
import types

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.methods import prompt_tuning
from softprompt_zoo.testing import tiny_model


@dataclasses.dataclass(frozen=True)
class WithOffset(zoo.Placement):
    text_offset: float = 0.5


class Renamed(zoo.Placement):
    """A placement with the same fields."""


def attach(architecture, place):
    @zoo.hookimpl
    def inject(tokens):
        return place(tokens)

    parts = {name: getattr(prompt_tuning, name) for name in ("Config", "Parameters", "build_virtual_tokens")}
    zoo.register(types.SimpleNamespace(**parts, inject=inject), "placed")
    try:
        return zoo.get_method("placed")(tiny_model(architecture), num_virtual_tokens=3)
    finally:
        zoo.unregister("placed")


def test_a_field_that_nobody_reads_is_refused():
    text = r"^method 'placed' \(zoo.register\), hook 'inject', returned a WithOffset with 'text_offset', which is never"
    with pytest.raises(zoo.PluginError, match=text):
        attach("llama", WithOffset)
    assert attach("llama", Renamed).prompts.active == ("default",)


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_dropout_where_tokens_have_no_keys_is_refused(architecture):
    with pytest.raises(zoo.UnsupportedError, match=r"the placement has dropout=0.5, which is for keys and values"):
        attach(architecture, lambda tokens: zoo.Placement(tokens, dropout=0.5))


def test_dropout_acts_on_the_keys_of_tokens_at_the_input():
    model = attach("llama", lambda tokens: zoo.Placement(tokens, dropout=0.5)).train()
    text = torch.arange(3, 9)[None]
    assert not torch.equal(model(input_ids=text).logits, model(input_ids=text).logits)
    model.eval()
    assert torch.equal(model(input_ids=text).logits, model(input_ids=text).logits)
