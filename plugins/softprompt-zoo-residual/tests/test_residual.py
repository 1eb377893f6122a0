"""Residual prompt tuning against its equation, its start, and what is refused."""

import pytest
import torch
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXT = torch.tensor([[4, 9, 30, 7, 55, 12]])
TOKENS, HIDDEN, WIDTH = 3, 32, 6
ACTIVATIONS = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid()}


def attach(architecture="llama", **options):
    torch.manual_seed(0)
    options = {"num_virtual_tokens": TOKENS, "bottleneck_size": WIDTH, **options}
    return zoo.get_method("residual")(tiny_model(architecture), **options)


def learned(model):
    return model.prompts["default"].learned


def built(model):
    return model.prompts["default"].place(model.prompts.backbone).tokens.embeddings


def disturb(model):
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_the_equation_by_hand():
    """A network of one feature, which reads feature 0 and writes plus and minus it; its norm is worked out below."""
    model = attach(num_virtual_tokens=2, bottleneck_size=1)
    parameters = learned(model)
    signs = torch.tensor([1.0, -1.0]).repeat(HIDDEN // 2)
    with torch.no_grad():
        for parameter in parameters.parameters():
            parameter.zero_()
        parameters.embeddings[:, 0] = torch.tensor([3.0, -5.0])
        parameters.net.down[0, 0, 0] = 1.0
        parameters.net.up[0, 0] = signs
        parameters.net.norm_weight.fill_(2.0)
        parameters.net.norm_bias.fill_(0.5)
    tokens = built(model)
    # f(x) is 3, -3, … with mean 0 and variance 9, so its norm is 1, -1, …
    expected = 2.0 * signs + 0.5
    expected[0] += 3.0
    assert torch.allclose(tokens[0], expected, atol=1e-5)
    # -5 does not pass the ReLU: f(x) is 0, and so is its norm
    expected = torch.full((HIDDEN,), 0.5)
    expected[0] -= 5.0
    assert torch.allclose(tokens[1], expected)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize(("net", "activation"), [("mlp1", "relu"), ("mlp1", "sigmoid"), ("mlp2", "tanh")])
@torch.no_grad()
def test_the_equation(shared, layer_norm, net, activation):
    """Computed with torch's own modules, one token after another."""
    model = attach(shared=shared, layer_norm=layer_norm, net=net, activation=activation)
    disturb(model)
    state = learned(model).state_dict()
    for index, token in enumerate(built(model)):
        which = 0 if shared else index
        down, up = nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, HIDDEN)
        for linear, name in ((down, "down"), (up, "up")):
            linear.weight.copy_(state[f"net.{name}"][which].T)
            linear.bias.copy_(state[f"net.{name}_bias"][which, 0])
        layers = nn.Sequential(down, ACTIVATIONS[activation], up)
        if layer_norm:
            layers.append(nn.LayerNorm(HIDDEN))
            layers[-1].weight.copy_(state["net.norm_weight"][which, 0])
            layers[-1].bias.copy_(state["net.norm_bias"][which, 0])
        added = state["embeddings"][index]
        for _ in range(2 if net == "mlp2" else 1):
            added = layers(added)
        assert torch.allclose(token, state["embeddings"][index] + added, atol=1e-5)


@torch.no_grad()
def test_the_transformer_is_torchs():
    model = attach(net="transformer")
    disturb(model)
    embeddings = learned(model).embeddings
    layer = nn.TransformerEncoderLayer(HIDDEN, nhead=2, dim_feedforward=WIDTH)
    encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False).eval()
    encoder.load_state_dict(learned(model).net.state_dict())
    assert torch.allclose(built(model), embeddings + encoder(embeddings), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"layer_norm": False}, {"shared": False}, {"net": "mlp2"}, {"net": "transformer"}]
)
def test_training_starts_from_words_and_a_gain_adds_to_them(options):
    table = tiny_model("llama").get_input_embeddings().weight
    words = built(attach(**options))
    assert all((table == row).all(dim=1).any() for row in words)
    model = attach(gain=1.0, **options)
    assert torch.equal(learned(model).embeddings, words)
    assert (built(model) - words).abs().max() > 0.1


def test_of_gain_one_the_net_adds_numbers_of_size_one():
    """This is how the source starts: with a layer norm of weight one."""
    model = attach(gain=1.0)
    added = built(model) - learned(model).embeddings
    assert torch.allclose(added.square().mean(dim=1), torch.ones(TOKENS), atol=1e-2)


def test_it_starts_from_another_prompt(tmp_path):
    plain = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS)
    disturb(plain)
    plain.save_pretrained(tmp_path)
    for init in (plain.prompts["default"], tmp_path):
        assert torch.equal(built(attach(init=init)), plain.prompts["default"].learned.embeddings)
    random = learned(attach(init="random")).embeddings
    assert 0.3 < random.abs().max() <= 0.5
    prefix = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS)
    with pytest.raises(zoo.UnsupportedError, match="residual cannot start from keys and values"):
        attach(init=prefix.prompts["default"])


@pytest.mark.parametrize(("options", "nets"), [({}, 1), ({"shared": False}, TOKENS)])
def test_gradients_reach_all_that_is_counted(options, nets):
    model = attach(gain=0.5, **options).train()
    model(input_ids=TEXT, labels=TEXT).loss.backward()
    for name, parameter in learned(model).named_parameters():
        assert parameter.grad.abs().max() > 0, name
    expected = TOKENS * HIDDEN + nets * (2 * HIDDEN * WIDTH + WIDTH + 3 * HIDDEN)
    assert model.prompts["default"].num_parameters == expected


@pytest.mark.parametrize("net", ["mlp1", "transformer"])
def test_dropout_acts_while_training_alone(net):
    model = attach(gain=1.0, dropout=0.5, net=net)
    quiet = built(model)
    assert torch.equal(built(model), quiet)
    model.train()
    assert not torch.allclose(built(model), quiet, atol=1e-3)
    model.eval()
    assert torch.equal(built(model), quiet)


def test_merged_it_is_the_tokens_alone_and_peft_loads_them(tmp_path):
    peft = pytest.importorskip("peft")
    model = attach()
    disturb(model)
    tokens, expected = built(model).detach(), model(TEXT).logits
    zoo.export(model, tmp_path, to="peft")
    wrapped = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    logits = wrapped(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits[:, TOKENS:]
    assert torch.allclose(logits, expected, atol=1e-5)
    zoo.merge(model)
    assert torch.equal(learned(model).tensors["embeddings"], tokens)
    assert model.prompts["default"].num_parameters == TOKENS * HIDDEN


@pytest.mark.parametrize("options", [{}, {"net": "transformer"}])
def test_compiles_into_one_graph(options):
    model = attach(**options)
    torch._dynamo.reset()
    logits = torch.compile(model, backend="aot_eager", fullgraph=True)(TEXT).logits
    assert torch.allclose(logits, model(TEXT).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"net": "lstm"}, ValueError, "net is 'lstm'; expected one of 'mlp1', 'mlp2', 'transformer'"),
        ({"activation": "gelu"}, ValueError, "activation is 'gelu'; expected one of 'relu', 'tanh', 'sigmoid'"),
        ({"bottleneck_size": 0}, ValueError, "bottleneck_size is 0"),
        ({"dropout": 1.0}, ValueError, "dropout is 1.0"),
        ({"gain": -1.0}, ValueError, "gain is -1.0; expected a number of at least 0"),
        ({"init": "text"}, ValueError, "init is 'text'; expected one of 'sampled', 'random'"),
        ({"net": "transformer", "shared": False}, ValueError, "shared is False, which only the MLPs use"),
        ({"net": "transformer", "activation": "tanh"}, ValueError, "activation is 'tanh', which only the MLPs use"),
    ],
)
def test_bad_options_change_nothing(options, error, reason):
    model = tiny_model("llama")
    with pytest.raises(error, match=reason):
        zoo.get_method("residual")(model, num_virtual_tokens=TOKENS, **options)
    assert not hasattr(model, "prompts")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_transformer_needs_a_width_that_two_heads_share():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=15, n_layer=1, n_head=3, n_positions=32))
    with pytest.raises(zoo.UnsupportedError, match="has 2 heads, and the model's embeddings a width of 15"):
        zoo.get_method("residual")(model, net="transformer")
    assert not hasattr(model, "prompts")
