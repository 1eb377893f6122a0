"""DePT and ADePT against their equations: the base model reads embeddings that were shifted by hand."""

import math

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer

TOKENS, HIDDEN, RANK, LONGEST = 3, 32, 4, 5
TEXT = torch.tensor([[4, 9, 30, 7, 55, 12, 71]])
PADDED = torch.tensor([[0, 0, 21, 8, 40, 33, 6]])
NEW = 4


def attach(architecture="llama", **options):
    torch.manual_seed(0)
    options = {"num_virtual_tokens": TOKENS, "rank": RANK, **options}
    model = zoo.get_method("dept")(tiny_model(architecture), **options)
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def position_offsets(state, length):
    """Return the offsets of the first positions, `(length, hidden)`, summed over the rank one by one."""
    offsets = torch.zeros(length, HIDDEN)
    for position in range(min(length, len(state["offsets.down"]))):
        for rank in range(RANK):
            offsets[position] += state["offsets.down"][position, rank] * state["offsets.up"][rank]
    return offsets * 8 / math.sqrt(RANK)


def token_offsets(state, embeddings):
    """Return the offsets computed from each token's own embedding, one after another."""
    found = []
    for embedding in embeddings:
        features = (state["offsets.down"].T @ embedding + state["offsets.down_bias"]).clamp(min=0)
        found.append(state["offsets.up"].T @ features + state["offsets.up_bias"])
    return torch.stack(found)


def moved(model, ids, count=None):
    """Return the prompt followed by the embeddings of one text, of which the first `count` are shifted."""
    state = model.prompts["default"].learned.state_dict()
    embeddings = model.prompts.backbone.embed(ids[0]).clone()
    text = embeddings[:count]
    is_token = model.prompts["default"].config.offset == "token"
    text += token_offsets(state, text) if is_token else position_offsets(state, len(text))
    return torch.cat([state["embeddings"], embeddings])[None]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


OPTIONS = [{"max_length": LONGEST}, {"offset": "token"}]


@pytest.mark.parametrize("options", OPTIONS, ids=["position", "token"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
@torch.no_grad()
def test_the_equation(architecture, options):
    """Five of seven positions have an offset in DePT; all of them have one in ADePT."""
    model = attach(architecture, **options)
    expected = tiny_model(architecture)(inputs_embeds=moved(model, TEXT)).logits
    found = model(input_ids=TEXT).logits
    close(found, expected[:, TOKENS:])
    with model.prompts.disabled():
        assert not torch.allclose(model(input_ids=TEXT).logits, found, atol=1e-2)


@torch.no_grad()
def test_the_encoder_of_an_encoder_decoder():
    model = attach("t5", max_length=LONGEST)
    read = {"decoder_input_ids": TEXT[:, :3]}
    expected = tiny_model("t5")(inputs_embeds=moved(model, TEXT), **read).logits
    close(model(input_ids=TEXT, **read).logits, expected)


@pytest.mark.parametrize("options", OPTIONS, ids=["position", "token"])
@torch.no_grad()
def test_padding_is_no_position(options):
    """A row that is padded in front is shifted as it is alone."""
    model = attach(**options)
    ids = torch.cat([TEXT, PADDED])
    close(
        model(input_ids=ids, attention_mask=(ids != 0).long()).logits[1, 2:], model(input_ids=PADDED[:, 2:]).logits[0]
    )


@pytest.mark.parametrize("options", OPTIONS, ids=["position", "token"])
@torch.no_grad()
def test_what_is_generated_keeps_its_embeddings(options):
    model, base = attach(**options), tiny_model("llama")
    found = model.generate(TEXT, max_new_tokens=NEW, do_sample=False)
    ids = TEXT
    for _ in range(NEW):
        logits = base(inputs_embeds=moved(model, ids, TEXT.shape[1])).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(found, ids)


@torch.no_grad()
def test_an_answer_is_learned_as_it_is_generated():
    """Labeled tokens are not text: they keep their embeddings."""
    model = attach(offset="token").eval()
    labels = TEXT.clone()
    labels[:, :4] = -100
    logits = tiny_model("llama")(inputs_embeds=moved(model, TEXT, 4)).logits[0, TOKENS + 3 : -1]
    close(model(input_ids=TEXT, labels=labels).loss, torch.nn.functional.cross_entropy(logits, TEXT[0, 4:]))


@pytest.mark.parametrize("options", OPTIONS, ids=["position", "token"])
def test_it_starts_as_its_prompt_alone(options):
    torch.manual_seed(0)
    model = zoo.get_method("dept")(tiny_model("llama"), num_virtual_tokens=TOKENS, rank=RANK, **options)
    plain = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS)
    with torch.no_grad():
        plain.prompts["default"].learned.embeddings.copy_(model.prompts["default"].learned.embeddings)
        assert torch.equal(model(input_ids=TEXT).logits, plain(input_ids=TEXT).logits)


@pytest.mark.parametrize("options", OPTIONS, ids=["position", "token"])
def test_two_learning_rates(options):
    """Any optimizer of the groups trains both; the matrices' rate is the ratio times the prompt's."""
    model = attach(**options, offset_learning_rate_ratio=0.25)
    first, second = model.prompts.parameter_groups(0.5)
    learned = model.prompts["default"].learned
    assert (first["lr"], second["lr"]) == (0.5, 0.125)
    assert [p is learned.embeddings for p in first["params"]] == [True]
    assert len(second["params"]) == len([*learned.parameters()]) - 1
    labels = TEXT.clone()
    labels[:, :4] = -100
    model.train()
    optimizer = torch.optim.AdamW(model.prompts.parameter_groups(1e-2))
    losses = []
    for _ in range(15):
        loss = model(input_ids=TEXT, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("options", [{}, {"offset": "token", "num_virtual_tokens": 60}], ids=["position", "token"])
def test_sizes_of_the_papers(options):
    """With the references' ranks, there are as many numbers as in a prompt of 100 tokens, at a width of 768."""
    model = zoo.get_method("dept")(tiny_model("llama"), **options)
    config = model.prompts["default"].config
    rank, hidden = config.rank, 768
    own = {"position": rank * (config.max_length + hidden), "token": rank * (2 * hidden + 1) + hidden}
    assert 0.98 * 76_800 < config.num_virtual_tokens * hidden + own[config.offset] <= 76_800


@pytest.mark.parametrize("options", OPTIONS, ids=["position", "token"])
def test_the_number_of_trained_values(options):
    model = attach(**options)
    own = {"position": RANK * (LONGEST + HIDDEN), "token": RANK * (2 * HIDDEN + 1) + HIDDEN}
    assert model.prompts["default"].num_parameters == TOKENS * HIDDEN + own[options.get("offset", "position")]


@torch.no_grad()
def test_dropout_acts_in_training_alone():
    model = attach(offset="token", dropout=0.5)
    before = model(input_ids=TEXT).logits
    assert torch.equal(before, model(input_ids=TEXT).logits)
    model.train()
    assert not torch.allclose(model(input_ids=TEXT).logits, before, atol=1e-4)
    assert attach(offset="token").prompts["default"].learned.offsets.dropout.p == 0.1


def test_where_it_starts():
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    options = {"num_virtual_tokens": TOKENS, "init_text": "w8 w9", "tokenizer": tokenizer}
    model = zoo.get_method("dept")(tiny_model("llama"), **options)
    words = torch.tensor(tokenizer("w8 w9", add_special_tokens=False)["input_ids"])
    expected = model.prompts.backbone.embed(words[[0, 1, 0]])
    assert torch.equal(model.prompts["default"].learned.embeddings, expected)


def test_it_starts_from_another_prompt():
    plain = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS)
    plain.prompts.add("moved", "dept", num_virtual_tokens=TOKENS, init=plain.prompts["default"])
    learned = plain.prompts["moved"].learned
    assert torch.equal(learned.embeddings, plain.prompts["default"].learned.embeddings)
    assert not learned.offsets.up.any()
    prefix = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS)
    with pytest.raises(zoo.UnsupportedError, match="dept cannot start from keys and values"):
        prefix.prompts.add("moved", "dept", num_virtual_tokens=TOKENS, init=prefix.prompts["default"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": "word"}, "offset is 'word'; expected one of 'position', 'token'"),
        ({"dropout": 0.1}, "dropout is 0.1, which offset='position' does not use"),
        ({"offset": "token", "dropout": 1.5}, "dropout is 1.5"),
        ({"rank": 0}, "rank is 0; expected an integer of at least 1"),
        ({"max_length": 0}, "max_length is 0"),
        ({"offset_learning_rate_ratio": 0.0}, "offset_learning_rate_ratio is 0.0; expected a number above 0"),
        ({"init_text": "w8"}, "init_text is 'w8' and needs tokenizer="),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        zoo.get_method("dept")(tiny_model("llama"), **options)


def test_it_has_no_merged_form(tmp_path):
    """Merging is refused; saving and loading still work."""
    model = attach()
    with pytest.raises(zoo.UnsupportedError, match="dept"):
        zoo.merge(model)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=TEXT).logits
        assert torch.equal(zoo.load(tiny_model("llama"), tmp_path)(input_ids=TEXT).logits, expected)
