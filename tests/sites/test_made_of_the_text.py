"""Prompts made of each row's own text, against the base model on tokens made by hand and the text's embeddings."""

import dataclasses

import pytest
import torch
from helpers.products import in_turns
from torch import nn
from torch.nn import functional

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import pad, random_text

TEXTS = [random_text(length, seed) for seed, length in enumerate((9, 4, 7, 6))]
ROWS = ["echo", "plain", None, "echo"]
NEW = 4
ARCHITECTURES = ["llama", "gpt2", "bert", "t5"]
WRITERS = ["llama", "gpt2", "t5"]
"""Architectures that generate text."""
PAD = 0


class Echo:
    """Two tokens: the mean of the text's embeddings and that of the frozen model's last states, each with an offset."""

    NAME = "echo"

    @dataclasses.dataclass(frozen=True)
    class Config(zoo.MethodConfig):
        num_virtual_tokens: int = 2

    class Parameters(nn.Module):
        def __init__(self, config, backbone):
            super().__init__()
            self.offsets = nn.Parameter(torch.empty(2, backbone.hidden_size))

        @torch.no_grad()
        def initialize(self, config, backbone):
            self.offsets.normal_()

    @staticmethod
    @zoo.hookimpl
    def build_virtual_tokens(parameters, text):
        shares = text.mask / text.mask.sum(dim=1, keepdim=True)
        means = [torch.einsum("rl,rlh->rh", shares, seen) for seen in (text.embeddings, text.states())]
        return zoo.InputTokens(parameters.offsets + torch.stack(means, dim=1))


@pytest.fixture(autouse=True)
def echo():
    zoo.register(Echo)
    yield
    zoo.unregister("echo")


class Pair:
    """A model with a prompt made of the text, `echo`, and a constant one, `plain`; and the model without prompts."""

    def __init__(self, architecture):
        torch.manual_seed(0)
        self.base = tiny_model(architecture)
        self.model = zoo.get_method("echo")(tiny_model(architecture), "echo")
        self.model.prompts.add("plain", "prompt_tuning", num_virtual_tokens=3, init="random")
        self.is_t5 = architecture == "t5"
        self.side = "right" if self.is_t5 else "left"

    def tokens(self, name, text):
        """Return the virtual tokens of a row, computed by hand, `(1, tokens, hidden)`."""
        if name is None:
            return torch.empty(1, 0, self.base.config.hidden_size)
        learned = self.model.prompts[name].learned
        if name == "plain":
            return learned.embeddings[None]
        body = self.base.encoder if self.is_t5 else self.base.base_model
        seen = (self.base.get_input_embeddings()(text), body(input_ids=text).last_hidden_state)
        return learned.offsets + torch.stack([part.mean(dim=1) for part in seen], dim=1)

    def embeddings(self, name, text, made_of=None):
        """Return what the base model must read: tokens made of the text or of `made_of`, followed by the text."""
        made = self.tokens(name, text if made_of is None else made_of)
        return torch.cat([made, self.base.get_input_embeddings()(text)], dim=1)

    def decoder(self, rows=1):
        return {"decoder_input_ids": TEXTS[1].expand(rows, -1)} if self.is_t5 else {}

    def expected(self, name, text):
        """Return the logits of a row's text, for the row alone."""
        embeddings = self.embeddings(name, text)
        logits = self.base(inputs_embeds=embeddings, **self.decoder()).logits
        return logits if self.is_t5 else logits[:, embeddings.shape[1] - text.shape[1] :]

    def written(self, model, rows=None, **inputs):
        """Return the new tokens that a model generates."""
        inputs = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": [PAD], **inputs}
        return model.generate(**inputs, **({} if rows is None else {"prompts": rows}))[:, -NEW:]


@in_turns(architecture=ARCHITECTURES, side=["left", "right"])
@torch.no_grad()
def test_each_row_of_a_mixed_batch_gives_what_the_base_model_gives_behind_its_tokens(architecture, side):
    pair = Pair(architecture)
    ids, mask = pad(TEXTS, side)
    found = pair.model(input_ids=ids, attention_mask=mask, prompts=ROWS, **pair.decoder(len(ROWS))).logits
    for row, (name, text) in enumerate(zip(ROWS, TEXTS, strict=True)):
        own = found[row] if pair.is_t5 else found[row][mask[row].bool()]
        assert_equal(own, pair.expected(name, text)[0], f"row {row} with prompt {name!r}")


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
    "none": {"use_cache": False},
}


@in_turns(architecture=WRITERS, way=WAYS)
@torch.no_grad()
def test_each_row_of_a_mixed_batch_is_written_as_the_base_model_writes_it(architecture, way):
    """The base model continues the embeddings of each row alone, with its own cache."""
    pair = Pair(architecture)
    ids, mask = pad(TEXTS, pair.side)
    found = pair.written(pair.model, ROWS, input_ids=ids, attention_mask=mask, **WAYS[way])
    beams = WAYS["beams"] if way == "beams" else {}
    for row, (name, text) in enumerate(zip(ROWS, TEXTS, strict=True)):
        embeddings = pair.embeddings(name, text)
        everywhere = torch.ones(embeddings.shape[:2], dtype=torch.long)
        expected = pair.written(pair.base, inputs_embeds=embeddings, attention_mask=everywhere, **beams)
        assert torch.equal(found[row], expected[0]), f"row {row} with prompt {name!r}"


@pytest.mark.parametrize("architecture", WRITERS)
@torch.no_grad()
def test_an_assistant_changes_nothing(architecture):
    pair = Pair(architecture)
    expected = pair.written(pair.model, ["echo"], input_ids=TEXTS[0])
    assert torch.equal(pair.written(pair.model, ["echo"], input_ids=TEXTS[0], assistant_model=pair.base), expected)


@pytest.mark.parametrize("architecture", WRITERS)
@torch.no_grad()
def test_hand_written_decoding_on_the_cache_writes_what_generate_does(architecture):
    """Token by token, with `prompts` in each call; the mask grows as in transformers' own examples."""
    pair = Pair(architecture)
    ids, mask = pad(TEXTS, pair.side)
    expected = pair.written(pair.model, ROWS, input_ids=ids, attention_mask=mask)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if pair.is_t5:
        start = torch.full((len(ROWS), 1), pair.base.config.decoder_start_token_id)
        inputs |= {"decoder_input_ids": start}
    cache, written = None, []
    for _ in range(NEW):
        output = pair.model(**inputs, past_key_values=cache, use_cache=True, prompts=ROWS)
        cache, logits = output.past_key_values, output.logits[:, -1]
        logits[:, PAD] = -torch.inf
        written.append(logits.argmax(dim=-1, keepdim=True))
        if pair.is_t5:
            inputs["decoder_input_ids"] = written[-1]
        else:
            mask = torch.cat([mask, torch.ones_like(written[-1])], dim=1)
            inputs = {"input_ids": written[-1], "attention_mask": mask}
    assert torch.equal(torch.cat(written, dim=1), expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_a_second_turn_keeps_the_tokens_of_the_first(architecture):
    """Against the base model after tokens made of only the first turn's text."""
    pair = Pair(architecture)
    shown = {"return_dict_in_generate": True, "max_new_tokens": NEW, "do_sample": False}
    first = pair.model.generate(TEXTS[0], prompts=["echo"], **shown)
    whole = torch.cat([first.sequences, TEXTS[1]], dim=1)
    found = pair.written(pair.model, ["echo"], input_ids=whole, past_key_values=first.past_key_values)
    embeddings = pair.embeddings("echo", whole, made_of=TEXTS[0])
    expected = pair.written(pair.base, inputs_embeds=embeddings, attention_mask=torch.ones(embeddings.shape[:2]).long())
    assert torch.equal(found, expected)


# What the text is


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_answer_is_no_part_of_the_text(architecture):
    """In training, tokens are made of what has no label; the loss is the base model's after these tokens."""
    pair = Pair(architecture)
    ids, own = TEXTS[0], 5
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < own, -100)
    loss = pair.model(input_ids=ids, labels=labels, prompts=["echo"]).loss
    embeddings = pair.embeddings("echo", ids, made_of=ids[:, :own])
    logits = pair.base(inputs_embeds=embeddings).logits[0, 2:]
    assert_equal(loss, functional.cross_entropy(logits[own - 1 : -1], ids[0, own:]), "loss")
    loss.backward()
    assert pair.model.prompts["echo"].learned.offsets.grad.abs().max() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_text_mask_says_what_the_text_is(architecture):
    """Also within a text: the tokens are made of what the mask marks, while the model reads everything."""
    pair = Pair(architecture)
    ids = TEXTS[2]
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0]])
    found = pair.model(input_ids=ids, text_mask=mask, prompts=["echo"], **pair.decoder()).logits
    embeddings = pair.embeddings("echo", ids, made_of=ids[:, :3])
    expected = pair.base(inputs_embeds=embeddings, **pair.decoder()).logits
    assert_equal(found, expected if pair.is_t5 else expected[:, 2:], "logits")


def test_a_row_of_several_texts_has_no_one_text():
    """Such rows are also refused where their answers are labeled."""
    model = Pair("llama").model
    ids = torch.cat(TEXTS[:2], dim=1)
    positions = torch.cat([torch.arange(text.shape[1]) for text in TEXTS[:2]])[None]
    labels = ids.masked_fill(positions < 3, -100)
    reason = "position_ids restart at row 0, token 9: the row holds several texts, but prompt 'echo'"
    for more in ({}, {"labels": labels}):
        with pytest.raises(zoo.UnsupportedError, match=reason):
            model(input_ids=ids, position_ids=positions, use_cache=False, prompts=["echo"], **more)
    assert model(input_ids=ids, position_ids=positions, use_cache=False, prompts=["plain"]).logits.isfinite().all()


# Rounding


class Rounds(Echo):
    """A method that rounds differently in a batch, as models in bfloat16 do."""

    @staticmethod
    @zoo.hookimpl
    def build_virtual_tokens(parameters, text):
        off = 2 * torch.finfo(torch.bfloat16).eps * (len(text.mask) > 1)
        return zoo.InputTokens((1 + off) * parameters.offsets.expand(len(text.mask), -1, -1))


def test_only_a_model_that_rounds_so_may_be_given_other_tokens_in_a_batch():
    zoo.register(Rounds, "rounds")
    try:
        zoo.get_method("rounds")(tiny_model("llama").to(torch.bfloat16))
        with pytest.raises(zoo.PluginError, match="builds other embeddings for a row in a batch"):
            zoo.get_method("rounds")(tiny_model("llama"))
    finally:
        zoo.unregister("rounds")
