"""IDPG and LoPA against their equations, by hand and through the frozen model."""

import math
from types import SimpleNamespace

import pytest
import softprompt_zoo_idpg as idpg
import torch
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXTS = [torch.tensor([[4, 9, 30, 7, 55, 12]]), torch.tensor([[8, 3, 17]])]
TOKENS, HIDDEN = 3, 32
SUM = {"num_virtual_tokens": TOKENS, "bottleneck_size": 8, "kronecker_terms": 4}
GATE = {"num_virtual_tokens": TOKENS, "bottleneck_size": 8, "gate_rank": 2}


def attach(architecture="llama", options=SUM, **more):
    torch.manual_seed(0)
    model = zoo.get_method("idpg")(tiny_model(architecture), **options, **more)
    with torch.no_grad():
        for parameter in learned(model).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def learned(model):
    return model.prompts["default"].learned


def of_two_features(**options):
    """Return parameters of two tokens of two features, with a bottleneck of one; all are zero."""
    config = idpg.Config(num_virtual_tokens=2, bottleneck_size=1, kronecker_terms=1, **options)
    parameters = idpg.Parameters(config, SimpleNamespace(hidden_size=2, dtype=torch.float32, device="cpu"))
    for parameter in parameters.parameters():
        nn.init.zeros_(parameter)
    return parameters


# The equations


@torch.no_grad()
def test_the_sum_by_hand():
    """The network sees only the first feature; gelu(1) = 0.841345, gelu(-1) = -0.158655."""
    parameters = of_two_features()
    [net] = parameters.nets
    net.down.blocks[0, 0, 0] = 2.0
    net.down.bias[0] = -1.0
    net.up.blocks.copy_(torch.tensor([[[1.0, 2.0, 0.0, -10.0]]]))
    parameters.base.copy_(torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    tokens = parameters(torch.tensor([[1.0, 99.0], [0.0, 99.0]]))
    for row, factor in zip(tokens, (0.841345, -0.158655), strict=True):
        expected = torch.tensor([[10 + factor, 20 + 2 * factor], [30.0, 40 - 10 * factor]])
        assert torch.allclose(row, expected, atol=1e-5)


@torch.no_grad()
def test_the_gate_by_hand():
    """U = (log 3, 0), V = (1, -1): sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4, sigmoid(0) = 1/2."""
    parameters = of_two_features(gate_rank=1)
    row, column = parameters.nets
    row.down.blocks[0, 0, 0] = 1.0
    row.up.blocks.copy_(torch.tensor([[[math.log(3) / math.tanh(0.5), 0.0]]]))
    column.up.bias.copy_(torch.tensor([1.0, -1.0]))
    parameters.base.copy_(torch.tensor([[8.0, 8.0], [4.0, 4.0]]))
    tokens = parameters(torch.tensor([[0.5, 99.0], [0.0, 99.0]]))
    assert torch.allclose(tokens[0], torch.tensor([[6.0, 2.0], [2.0, 2.0]]))
    assert torch.allclose(tokens[1], parameters.base / 2)


@torch.no_grad()
def test_a_weight_is_a_sum_of_kronecker_products():
    layer = learned(attach()).nets[0].up
    expected = sum(torch.kron(factor, block) for factor, block in zip(layer.factors, layer.blocks, strict=True))
    assert expected.shape == (8, TOKENS * HIDDEN)
    assert torch.allclose(layer.weight(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("sentence", "expected"), [("first", [3.0, 1.0, 0.0]), ("last", [7.0, 5.0, 0.0]), ("mean", [5.0, 3.0, 0.0])]
)
def test_the_sentence_is_of_the_text_alone(sentence, expected):
    """A padded row, a whole one, and one without text, whose sentence is zero."""
    mask = torch.tensor([[0, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    states = torch.tensor([[90.0, 3.0, 90.0, 7.0, 90.0], [1.0, 2.0, 3.0, 4.0, 5.0], [90.0] * 5])[..., None]
    config = idpg.Config(num_virtual_tokens=1, sentence=sentence)
    parameters = torch.nn.Unflatten(1, (1, 1))  # the tokens are the sentences
    parameters.base = torch.zeros(1, 1)
    backbone, text = SimpleNamespace(hidden_size=1), SimpleNamespace(mask=mask, states=lambda: states)
    tokens = idpg.build_virtual_tokens(config, parameters, backbone, text)
    assert tokens.embeddings.flatten().tolist() == expected


# Through the frozen model


def sentence_of(base, architecture, text):
    """Return what represents a text, from the model's own output."""
    if architecture == "t5":
        return base.encoder(input_ids=text).last_hidden_state.mean(dim=1)
    states = base.base_model(input_ids=text).last_hidden_state
    return states[:, 0] if architecture == "bert" else states[:, -1]


def tokens_by_hand(state, x, options):
    """Return the virtual tokens of one sentence, computed with torch's own modules."""

    def weight(layer):
        blocks = state[f"{layer}.blocks"]
        return sum(map(torch.kron, state[f"{layer}.factors"], blocks)) if f"{layer}.factors" in state else blocks[0]

    def net(name, activation):
        inside = activation(x @ weight(f"{name}.down") + state[f"{name}.down.bias"])
        return inside @ weight(f"{name}.up")

    if "gate_rank" not in options:
        return state["base"] + net("nets.0", nn.GELU()).reshape(TOKENS, HIDDEN)
    row, column = (net(f"nets.{i}", nn.Tanh()) + state[f"nets.{i}.up.bias"] for i in range(2))
    return state["base"] * nn.Sigmoid()(row.reshape(TOKENS, 2) @ column.reshape(HIDDEN, 2).T)


@pytest.mark.parametrize("options", [SUM, GATE], ids=["sum", "gate"])
@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
@torch.no_grad()
def test_the_model_reads_what_the_equation_makes_of_its_own_states(architecture, options):
    """Against the base model on embeddings, once without a prompt and once after the tokens of the first run."""
    model, base = attach(architecture, options), tiny_model(architecture)
    decoder = {"decoder_input_ids": TEXTS[1]} if architecture == "t5" else {}
    for text in TEXTS:
        x = sentence_of(base, architecture, text)[0]
        tokens = tokens_by_hand(learned(model).state_dict(), x, options)
        embeddings = torch.cat([tokens[None], base.get_input_embeddings()(text)], dim=1)
        expected = base(inputs_embeds=embeddings, **decoder).logits
        expected = expected if decoder else expected[:, TOKENS:]
        found = model(input_ids=text, **decoder).logits
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(found, base(input_ids=text, **decoder).logits, atol=1e-2)


@pytest.mark.parametrize("options", [SUM, GATE], ids=["sum", "gate"])
def test_the_number_of_trained_numbers(options):
    count = attach(options=options).prompts["default"].num_parameters
    nets = 2 * 4**3 + (HIDDEN * 8 + 8 * TOKENS * HIDDEN) // 4 + 8
    if "gate_rank" in options:
        nets = 2 * (HIDDEN * 8 + 8) + (8 + 1) * 2 * (TOKENS + HIDDEN)
    assert count == TOKENS * HIDDEN + nets


# The start


def test_it_starts_about_as_long_as_words_are():
    """This holds for any text: the networks' weights are small, and a gate is half open."""
    for options in (SUM, GATE):
        torch.manual_seed(0)
        model = zoo.get_method("idpg")(tiny_model("gpt2"), **options)
        base = learned(model).base * (0.5 if options is GATE else 1.0)
        table = model.get_input_embeddings().weight
        for row in base:
            assert (table == row).all(dim=1).any()


def test_it_starts_from_another_prompt():
    plain = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS).prompts["default"]
    torch.manual_seed(0)
    model = zoo.get_method("idpg")(tiny_model("llama"), **SUM, init=plain)
    assert torch.equal(learned(model).base, plain.learned.embeddings)
    prefix = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS).prompts["default"]
    with pytest.raises(zoo.UnsupportedError, match="idpg cannot start from keys and values"):
        zoo.get_method("idpg")(tiny_model("llama"), **SUM, init=prefix)


def test_dropout_is_for_training_alone():
    model = attach(dropout=0.5)
    assert torch.equal(model(TEXTS[0]).logits, model(TEXTS[0]).logits)
    model.train()
    assert not torch.equal(model(TEXTS[0]).logits, model(TEXTS[0]).logits)


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"kronecker_terms": 5}, zoo.UnsupportedError, "kronecker_terms is 5, and a layer of 32 to 8 features"),
        ({"kronecker_terms": 0}, ValueError, "kronecker_terms is 0"),
        ({"bottleneck_size": 0}, ValueError, "bottleneck_size is 0"),
        ({"gate_rank": 0}, ValueError, "gate_rank is 0"),
        ({"sentence": "cls"}, ValueError, "sentence is 'cls'; expected one of None, 'first', 'last', 'mean'"),
        ({"dropout": 1.0}, ValueError, "dropout is 1.0"),
        ({"init": "words"}, ValueError, "init is 'words'; expected one of 'sampled', 'random'"),
    ],
)
def test_bad_options_change_nothing(options, error, reason):
    model = tiny_model("llama")
    with pytest.raises(error, match=reason):
        zoo.get_method("idpg")(model, **{**SUM, **options})
    assert not hasattr(model, "prompts")
    assert all(parameter.requires_grad for parameter in model.parameters())
