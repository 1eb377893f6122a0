"""CT-KV against the reference's procedure: the base model continues from a cache of which a row sees a part."""

import copy

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EXAMPLES = (("w11 w12", "w21"), ("w13", "w22 w23"), ("w14 w15", "w21"))
TEMPLATE = "w5 {input} w6 {target} w7"
IDS = (5, 11, 12, 6, 21, 7, 5, 13, 6, 22, 23, 7, 5, 14, 15, 6, 21, 7)
PARTS = (0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5)
OWN = {0: range(6), 1: range(6, 12), 2: range(12, 18)}
"""The virtual tokens of each example."""


def attach(architecture="llama", **options):
    given = {"examples": EXAMPLES, "template": TEMPLATE, "tokenizer": TOKENIZER, "token_dropout": 0.0, **options}
    return zoo.get_method("ct_kv")(tiny_model(architecture), **given)


def encode(model, text, target=None):
    return model.prompts["default"].config.encode(TOKENIZER, text, target)


def batch(model, rows, side="right"):
    """Return rows with labels, padded to one length."""
    encoded = [encode(model, *row) for row in rows]
    longest = max(len(row["input_ids"]) for row in encoded)

    def padded(row, name, filler):
        pads = [filler] * (longest - len(row[name]))
        return row[name] + pads if side == "right" else pads + row[name]

    fillers = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {name: torch.tensor([padded(row, name, filler) for row in encoded]) for name, filler in fillers.items()}


def goes_on(base, ids, hidden=()):
    """Return the base model's logits of a row after all examples, of which it does not see the `hidden` tokens."""
    cache = base(input_ids=torch.tensor([IDS]), use_cache=True).past_key_values
    mask = torch.ones(1, len(IDS) + len(ids), dtype=torch.long)
    mask[0, list(hidden)] = 0
    positions = torch.arange(len(IDS), len(IDS) + len(ids))[None]
    read = {"input_ids": torch.tensor([ids]), "position_ids": positions, "attention_mask": mask}
    return base(**read, past_key_values=cache).logits[0]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


def test_the_tokens_are_those_of_the_examples():
    config = attach().prompts["default"].config
    assert (config.token_ids, config.token_parts, config.num_virtual_tokens) == (IDS, PARTS, 18)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gpt_neox"])
@torch.no_grad()
def test_it_starts_as_in_context_learning(architecture):
    model = attach(architecture)
    row = encode(model, "w16 w17")["input_ids"]
    expected = tiny_model(architecture)(input_ids=torch.tensor([[*IDS, *row]])).logits[0, len(IDS) :]
    close(model(input_ids=torch.tensor([row])).logits[0], expected)


ROWS = [EXAMPLES[1], ("w18", "w21"), EXAMPLES[0], EXAMPLES[2]]
HIDDEN = [OWN[1], (), OWN[0], OWN[2]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_a_row_that_is_an_example_does_not_see_it(architecture, side):
    """Only in training; other rows see all examples. Each row is compared with the base model run on it alone."""
    model, base = attach(architecture).train(), tiny_model(architecture).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs = batch(model, ROWS, side)
    logits = model(**inputs).logits
    for index, (row, hidden) in enumerate(zip(ROWS, HIDDEN, strict=True)):
        ids = encode(model, *row)["input_ids"]
        expected = goes_on(base, ids, hidden)
        close(logits[index][inputs["attention_mask"][index].bool()], expected)
        if hidden:
            assert not torch.allclose(expected, goes_on(base, ids), atol=1e-3)


@pytest.mark.parametrize("how", ["eval", "option"])
@torch.no_grad()
def test_every_row_sees_all(how):
    """In eval mode, and in training without leaving one out."""
    model, base = attach(leave_one_out=how == "eval"), tiny_model("llama").eval()
    model.train(how == "option")
    ids = encode(model, *EXAMPLES[1])
    logits = model(**{name: torch.tensor([values]) for name, values in ids.items()}).logits[0]
    close(logits, goes_on(base, ids["input_ids"]))


def text_of(model, ids, mask):
    embeddings = model.prompts.backbone.embed(ids)
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return zoo.Text(
        site="decoder", embeddings=embeddings, mask=mask, positions=positions, states=lambda: torch.zeros(())
    )


def visible(model, rows, texts=None):
    """Return which tokens rows of ids see; `texts` says which ids are text, by default all but padding."""
    prompt, ids = model.prompts["default"], torch.tensor(rows)
    mask = ids != 0 if texts is None else torch.tensor(texts)
    return prompt.learned.visible(prompt.config, model.prompts.backbone, text_of(model, ids, mask))


def hidden_tokens(seen):
    return {*(~seen).nonzero()[:, 0].tolist()}


@torch.no_grad()
def test_which_rows_are_examples():
    """Padding and answers may be anywhere, other text in front; longer, shorter and different texts are none."""
    rows = [
        [5, 13, 6, 22, 0],
        [0, 0, 5, 13, 6],
        [30, 5, 13, 6, 0],
        [5, 13, 6, 9, 0],
        [13, 6, 0, 0, 0],
        [5, 13, 8, 0, 0],
    ]
    texts = [[token not in (0, 22) for token in row] for row in rows]
    seen = visible(attach(), rows, texts)
    assert [hidden_tokens(row) for row in seen] == [{*OWN[1]}] * 3 + [set()] * 3
    # Here, the examples are longer than the whole batch.
    assert visible(attach(), [[5, 13]]).all()


@torch.no_grad()
def test_a_text_that_ends_with_two_examples_hides_both():
    model = attach(examples=[("w9", "w21"), ("w8 w9", "w22")], template="{input} w6 {target}")
    assert model.prompts["default"].config.token_ids == (9, 6, 21, 8, 9, 6, 22)
    seen = visible(model, [[8, 9, 6], [0, 9, 6]])
    assert [hidden_tokens(row) for row in seen] == [{*range(7)}, {0, 1, 2}]


@torch.no_grad()
def test_token_dropout():
    """Each row loses different tokens, only in training; an example that is left out stays so."""
    model = attach(token_dropout=0.25)
    torch.manual_seed(0)
    seen = visible(model, [[5, 30, 6]] * 400)
    assert abs(float((~seen).float().mean()) - 0.25) < 0.02
    assert len({tuple(row.tolist()) for row in seen}) > 300
    assert not visible(model, [[5, 13, 6]] * 50)[:, 6:12].any()
    row = torch.tensor([[5, 30, 6]])
    assert torch.equal(model(input_ids=row).logits, model(input_ids=row).logits)
    model.train()
    assert not torch.allclose(model(input_ids=row).logits, model(input_ids=row).logits, atol=1e-5)


def test_training_and_loading(tmp_path):
    """All keys and values are trained by the loss of the examples; a loaded prompt leaves one out as before."""
    model = attach().train()
    [states] = model.prompts["default"].learned.parameters()
    before = states.detach().clone()
    inputs = batch(model, EXAMPLES)
    optimizer = torch.optim.AdamW([states], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(**inputs).loss
        loss.backward()
        assert (states.grad != 0).any(dim=1).all()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    assert ((states - before) != 0).all()
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("llama"), tmp_path, trainable=True).train()
    assert loaded.prompts["default"].config.tokenizer is None
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).loss, model(**inputs).loss)


@torch.no_grad()
def test_merged_it_is_a_prefix(tmp_path):
    """The prefix hides nothing, even in training."""
    model = attach()
    row = torch.tensor([encode(model, *EXAMPLES[0])["input_ids"]])
    expected = model(input_ids=row).logits
    merged = zoo.merge(copy.deepcopy(model))
    close(merged(input_ids=row).logits, expected)
    close(merged.train()(input_ids=row).logits, expected)
    zoo.export(model, tmp_path, to="kv")
    close(zoo.load(tiny_model("llama"), tmp_path)(input_ids=row).logits, expected)


def test_rows_are_written_as_the_examples():
    model = attach()
    assert encode(model, "w11 w12", "w21") == {
        "input_ids": [5, 11, 12, 6, 21],
        "attention_mask": [1] * 5,
        "labels": [-100] * 4 + [21],
    }
    assert encode(model, "w11 w12")["input_ids"] == [5, 11, 12, 6]
    by_ids = zoo.get_method("ct_kv")(tiny_model("llama"), token_ids=IDS, token_parts=PARTS, template=None)
    assert by_ids.prompts["default"].num_virtual_tokens == len(IDS)
    with pytest.raises(ValueError, match="the template is unknown"):
        encode(by_ids, "w11")


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_other_families_are_refused(architecture):
    with pytest.raises(
        zoo.UnsupportedError, match="ct_kv trains the keys and values of demonstrations in a causal model"
    ):
        attach(architecture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": ()}, "examples is empty"),
        ({"examples": "w1"}, "examples is 'w1'; expected pairs"),
        ({"examples": [("w1", 2)]}, r"examples\[0\] is \('w1', 2\); expected pairs"),
        ({"examples": [("w1", "")]}, r"examples\[0\] is \('w1', ''\), and a part of it has no tokens"),
        ({"template": "w5 {target}"}, "template is 'w5 {target}'; expected one {input} followed by one {target}"),
        ({"tokenizer": None}, "the examples need tokenizer="),
        ({"token_dropout": 1.0}, "token_dropout is 1.0"),
        ({"leave_one_out": "yes"}, "leave_one_out is 'yes'"),
        ({"num_virtual_tokens": 5}, "num_virtual_tokens is 5; the examples have 18 tokens"),
        ({"token_ids": (5, 6), "token_parts": (0,)}, "there are 2 token_ids and 1 token_parts"),
        ({"token_ids": (5, 6), "token_parts": (0, 2)}, r"token_parts is \(0, 2\); expected 0, 1, 2"),
        ({"token_ids": (5, 999), "token_parts": (0, 1)}, "the examples have the token id 999; the model has 101"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attach(**options)
