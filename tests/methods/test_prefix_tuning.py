"""Prefix tuning against Li and Liang 2021, PEFT's encoder and hand-computed attention."""

import peft
import pytest
import torch
from helpers.prompted import attached

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

TEXT = random_text(9, 1)


def attach(architecture="llama", **options):
    model = attached(architecture, "prefix", **options)
    return model, model.prompts["default"]


def test_the_prefix_starts_as_the_keys_and_values_of_the_text():
    """The start values are the base model's cache after the text, layer by layer."""
    _, prompt = attach(num_virtual_tokens=3, init="text", init_text="w5 w6 w7", tokenizer=tiny_tokenizer())
    base = tiny_model("llama")
    cache = base(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    tokens = prompt.place(prompt_backbone()).tokens.sites["decoder"]
    for layer in range(2):
        assert_equal(tokens.keys[layer], cache.layers[layer].keys[0], "keys")
        assert_equal(tokens.values[layer], cache.layers[layer].values[0], "values")


def prompt_backbone():
    return attach()[0].prompts.backbone


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_the_net_starts_where_the_direct_prefix_does(architecture):
    start = {"init": "text", "init_text": "w5 w6 w7 w8", "tokenizer": tiny_tokenizer()}
    direct, _ = attach(architecture, **start)
    with_net, prompt = attach(architecture, **start, reparameterization="mlp", reparameterization_size=16)
    assert any("output.weight" in name for name, _ in prompt.named_parameters())
    difference = Subject(architecture, direct).logits(TEXT) - Subject(architecture, with_net).logits(TEXT)
    assert difference.abs().max() < 1e-3


def test_the_net_is_pefts_encoder():
    """PEFT's prefix_projection: embedding, linear, tanh, linear; the same weights give the same prefix."""
    model, prompt = attach(reparameterization="mlp", reparameterization_size=16)
    width = model.prompts.backbone.hidden_size
    features = 2 * 2 * 2 * 8
    config = peft.PrefixTuningConfig(num_virtual_tokens=4, num_layers=2, encoder_hidden_size=16, prefix_projection=True)
    config.token_dim = width
    encoder = peft.tuners.prefix_tuning.PrefixEncoder(config)
    net = prompt.learned.prefixes["decoder"]
    encoder.transform[2] = torch.nn.Linear(16, features)
    for own, other in (
        (encoder.embedding.weight, net.embeddings),
        (encoder.transform[0].weight, net.hidden.weight),
        (encoder.transform[0].bias, net.hidden.bias),
        (encoder.transform[2].weight, net.output.weight),
        (encoder.transform[2].bias, net.output.bias),
    ):
        own.data.copy_(other)
    flat = encoder(torch.arange(4)[None])[0]
    tokens = prompt.place(model.prompts.backbone).tokens.sites["decoder"]
    for layer in range(2):
        pair = flat.view(4, 4, 2, 8)[:, 2 * layer : 2 * layer + 2]
        assert_equal(tokens.keys[layer], pair[:, 0].permute(1, 0, 2), "keys")
        assert_equal(tokens.values[layer], pair[:, 1].permute(1, 0, 2), "values")


@pytest.mark.parametrize("net", [None, "mlp"])
def test_a_zero_start_is_pefts(net):
    model, _ = attach(init="zero", reparameterization=net)
    options = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM", "init_weights": "zero"}
    config = peft.PrefixTuningConfig(**options, prefix_projection=net is not None)
    wrapped = peft.get_peft_model(tiny_model("llama"), config).eval()
    inputs = {"input_ids": TEXT, "attention_mask": torch.ones_like(TEXT)}
    assert_equal(model(**inputs).logits, wrapped(**inputs).logits, "PEFT's logits")
    assert not torch.allclose(model(**inputs).logits, tiny_model("llama")(**inputs).logits, atol=1e-2)
    model.train()(**inputs, labels=TEXT).loss.backward()
    assert any(parameter.grad.any() for parameter in model.prompts.parameters())


def test_attention_by_hand():
    """One layer, one head: softmax over prefix and text keys."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=50, n_positions=16)).eval()
    zoo.get_method("prefix")(model, num_virtual_tokens=3, init="random")
    flat = model.prompts["default"].learned.prefixes["decoder"].embeddings.detach()
    ids = torch.tensor([[4, 9]])
    block = model.h[0]
    hidden = model.wte(ids) + model.wpe(torch.tensor([[3, 4]]))
    query, key, value = block.attn.c_attn(block.ln_1(hidden))[0].split(8, dim=-1)
    keys, values = torch.cat([flat[:, :8], key]), torch.cat([flat[:, 8:], value])
    scores = query @ keys.T / 8**0.5
    scores[0, 4] = -torch.inf  # the first token does not see the second
    attended = block.attn.c_proj(scores.softmax(-1) @ values) + hidden[0]
    expected = model.ln_f(attended + block.mlp(block.ln_2(attended)))
    assert_equal(model(ids).last_hidden_state[0], expected, "by hand")


def test_three_sites_of_an_encoder_decoder():
    """Each site by itself changes the output; the encoder's states change only with the encoder's site."""
    base = tiny_model("bart")
    states = base.get_encoder()(TEXT).last_hidden_state
    plain = Subject("bart", base).logits(TEXT)
    for site in ("encoder", "decoder", "cross"):
        model, prompt = attach("bart", sites=(site,))
        assert list(prompt.learned.prefixes) == [site]
        subject = Subject("bart", model)
        assert not torch.allclose(subject.logits(TEXT), plain, atol=1e-2)
        moved = not torch.allclose(model.get_encoder()(TEXT).last_hidden_state, states, atol=1e-3)
        assert moved == (site == "encoder")
    _, prompt = attach("bart")
    assert list(prompt.learned.prefixes) == ["encoder", "decoder", "cross"]
    sizes = {name: prefix.embeddings.shape[1] for name, prefix in prompt.learned.prefixes.items()}
    assert sizes == {"encoder": 2 * 2 * 32, "decoder": 3 * 2 * 32, "cross": 3 * 2 * 32}


def test_dropout_differs_by_row_and_stops_in_eval_mode():
    model, _ = attach(dropout=0.5)
    ids = TEXT.expand(2, -1)
    assert torch.equal(model(ids).logits[0], model(ids).logits[1])
    model.train()
    first, second = model(ids).logits
    assert not torch.allclose(first, second, atol=1e-3)


def test_dropout_keeps_the_mean():
    from softprompt_zoo.sites.batch import drop

    torch.manual_seed(0)
    dropped = drop(torch.ones(200_000), torch.tensor(0.25))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert sorted(set(dropped.tolist())) == pytest.approx([0.0, 1 / 0.75])


@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "modernbert"])
def test_always_visible_keeps_the_prefix_in_sight(architecture):
    torch.manual_seed(0)
    sliding = Subject(architecture, attach(architecture)[0])
    torch.manual_seed(0)
    always = Subject(architecture, attach(architecture, always_visible=True)[0])
    text = random_text(16, 2)
    first, last = 0, -1
    if architecture != "modernbert":
        assert_equal(always.logits(text)[:, first], sliding.logits(text)[:, first], "in sight of both")
    assert not torch.allclose(always.logits(text)[:, last], sliding.logits(text)[:, last], atol=1e-3)


def test_always_visible_changes_nothing_without_windows():
    torch.manual_seed(0)
    plain = Subject("llama", attach()[0]).logits(TEXT)
    torch.manual_seed(0)
    assert torch.equal(Subject("llama", attach(always_visible=True)[0]).logits(TEXT), plain)


def test_parameter_count_of_gpt2_medium():
    """10 tokens without a network: 24 layers of keys and values of 1,024 features."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))
    zoo.get_method("prefix")(model, num_virtual_tokens=10)
    assert model.prompts["default"].num_parameters == 491_520
