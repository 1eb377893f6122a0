"""P-tuning against PEFT's prompt encoder, the reference's sizes, and the promised start values."""

import functools
import json

import peft
import pytest
import torch
from helpers.prompted import attached
from peft.tuners.p_tuning import PromptEncoder
from safetensors.torch import load_file
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

HIDDEN = 32
TEXT = random_text(7, 3)


attach = functools.partial(attached, method="ptuning", num_virtual_tokens=5)


def built(model):
    host = model.prompts
    return host["default"].place(host.backbone).tokens.embeddings


def pefts_encoder(kind, size, tokens=5, dropout=0.0):
    """Return PEFT's encoder with weights that differ from its start values."""
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=tokens,
        token_dim=HIDDEN,
        num_transformer_submodules=1,
        encoder_reparameterization_type=kind.upper(),
        encoder_hidden_size=size,
        encoder_dropout=dropout,
    )
    torch.manual_seed(1)
    encoder = PromptEncoder(config)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder.eval()


def copy_weights(encoder, learned):
    """Copy PEFT's weights into our parameters, translating the names."""
    names = {"embeddings": "embedding.weight"}
    state = encoder.state_dict()
    for key, value in learned.state_dict().items():
        other = names.get(key, key.replace("lstm.", "lstm_head.").replace("head.", "mlp_head."))
        other = other.replace("lstm_mlp_head.", "lstm_head.")
        value.copy_(state.pop(other))
    assert not state, "PEFT has more parameters"


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("kind", "size"), [("lstm", 16), ("lstm", 32), ("lstm", 7), ("mlp", 32), ("mlp", 11)])
def test_with_the_same_weights_it_is_pefts_encoder(kind, size, tokens):
    model = attach(num_virtual_tokens=tokens, reparameterization=kind, reparameterization_size=size)
    encoder = pefts_encoder(kind, size, tokens)
    copy_weights(encoder, model.prompts["default"].learned)
    expected = encoder(torch.arange(tokens)[None])[0]
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(built(model), expected, rtol=0, atol=1e-6)
    assert model.prompts["default"].num_parameters == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_gradients_are_those_of_pefts_encoder(kind):
    model = attach(reparameterization=kind, reparameterization_size=16)
    learned, encoder = model.prompts["default"].learned, pefts_encoder(kind, 16)
    copy_weights(encoder, learned)
    weights = torch.randn(5, HIDDEN)
    (built(model) * weights).sum().backward()
    (encoder(torch.arange(5)[None])[0] * weights).sum().backward()
    ours = sorted(parameter.grad.norm().item() for parameter in learned.parameters())
    theirs = sorted(parameter.grad.norm().item() for parameter in encoder.parameters())
    assert ours == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(learned.embeddings.grad, encoder.embedding.weight.grad)


def test_the_default_has_the_sizes_of_the_reference():
    """LAMA/p_tuning/prompt_encoder.py: a bidirectional LSTM of width d // 2, and a head d, ReLU, d."""
    reference = nn.ModuleList(
        [
            nn.Embedding(5, HIDDEN),
            nn.LSTM(HIDDEN, HIDDEN // 2, num_layers=2, bidirectional=True),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Linear(HIDDEN, HIDDEN),
        ]
    )
    model = attach()
    assert model.prompts["default"].num_parameters == sum(p.numel() for p in reference.parameters())


def test_without_a_net_only_embeddings_are_trained():
    model = attach(reparameterization=None)
    assert [name for name, _ in model.prompts["default"].learned.named_parameters()] == ["embeddings"]
    assert built(model) is model.prompts["default"].learned.embeddings


def test_the_mlp_is_as_wide_as_the_embeddings_unless_told():
    widths = [layer.out_features for layer in attach(reparameterization="mlp").prompts["default"].learned.head[::2]]
    assert widths == [HIDDEN, HIDDEN, HIDDEN]


@pytest.mark.parametrize(("kind", "dropout"), [("lstm", 0.0), ("lstm", 0.5), ("mlp", 0.0), (None, 0.0)])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert", "t5"])
def test_it_starts_as_the_embeddings_of_a_text(architecture, kind, dropout):
    text = {"init": "text", "init_text": "w5 w6 w7", "tokenizer": tiny_tokenizer()}
    model = attach(architecture, reparameterization=kind, dropout=dropout, **text)
    words = model.get_input_embeddings()(torch.tensor([5, 6, 7, 5, 6]))
    torch.testing.assert_close(built(model), words, rtol=0, atol=2e-4)


def test_it_starts_as_the_embeddings_of_sampled_words():
    model = attach()
    words = model.get_input_embeddings()(torch.arange(101))
    nearest = torch.cdist(built(model), words).min(dim=1)
    assert nearest.values.max() < 1e-3
    assert len(nearest.indices.unique()) == 5


def test_a_prompt_longer_than_the_net_is_wide_starts_near():
    model = attach(num_virtual_tokens=50)
    start, words = built(model), model.get_input_embeddings().weight
    assert start.std().item() == pytest.approx(words.std().item(), rel=0.5)


def test_random_leaves_torchs_defaults():
    model = attach(num_virtual_tokens=60, init="random")
    learned = model.prompts["default"].learned
    assert learned.embeddings.std().item() == pytest.approx(1, rel=0.05)
    assert learned.embeddings.mean().item() == pytest.approx(0, abs=0.05)
    assert dict(learned.named_parameters())["lstm.weight_hh_l0"].abs().max() <= (HIDDEN // 2) ** -0.5
    assert learned.head[-1].weight.abs().max() <= HIDDEN**-0.5


@pytest.mark.parametrize("kind", ["lstm", "mlp", None])
def test_it_starts_from_another_prompt(kind):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=5)
    expected = model(TEXT).logits
    model.prompts.add("other", "p_tuning", num_virtual_tokens=5, init=model.prompts["default"], reparameterization=kind)
    torch.testing.assert_close(model(TEXT, prompts="other").logits, expected, rtol=0, atol=5e-3)


def test_it_cannot_start_from_keys_and_values():
    model = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=5)
    with pytest.raises(zoo.UnsupportedError, match="p_tuning cannot start from keys and values"):
        model.prompts.add("other", "p_tuning", num_virtual_tokens=5, init=model.prompts["default"])
    assert model.prompts.keys() == ["default"]


def test_dropout_acts_between_the_layers_while_training_only():
    model = attach(dropout=0.5)
    expected = model(TEXT).logits
    assert torch.equal(model(TEXT).logits, expected)
    model.train()
    assert not torch.equal(built(model), built(model))
    # nn.LSTM's own dropout, with the same mask
    learned = model.prompts["default"].learned
    module = nn.LSTM(HIDDEN, HIDDEN // 2, 2, bidirectional=True, dropout=0.5)
    module.load_state_dict(learned.lstm.state_dict())
    torch.manual_seed(7)
    ours = built(model)
    torch.manual_seed(7)
    torch.testing.assert_close(ours, learned.head(module(learned.embeddings)[0]))
    zoo.merge(model.eval())
    assert_equal(model(TEXT).logits, expected, "merged")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reparameterization": "gru"}, "reparameterization is 'gru'; expected one of None, 'lstm', 'mlp'"),
        ({"reparameterization_size": 0}, "reparameterization_size is 0; expected an integer of at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
        ({"dropout": 0.1, "reparameterization": "mlp"}, "reparameterization is 'mlp'; set dropout=0.0"),
        ({"init": "labels"}, "init is 'labels'; expected one of 'sampled', 'text', 'random'"),
        ({"init": "text"}, "init='text' needs init_text"),
    ],
)
def test_wrong_options(options, text):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=text):
        zoo.get_method("p_tuning")(model, **options)
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "t5", "bart"])
def test_pefts_files_load_as_a_merged_prompt(architecture, kind, tmp_path):
    """PEFT's files hold the encoder's output; for an encoder-decoder twice the rows, of which the first half counts."""
    base = Subject(architecture, tiny_model(architecture))
    plain = base.logits(TEXT)
    tasks = {"t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM", "bert": "FEATURE_EXTRACTION"}
    config = peft.PromptEncoderConfig(
        task_type=tasks.get(architecture, "CAUSAL_LM"),
        num_virtual_tokens=5,
        encoder_reparameterization_type=kind.upper(),
        encoder_hidden_size=16,
    )
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(base.model, config).eval()
    for parameter in wrapped.prompt_encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        output = wrapped(**base.inputs(TEXT, torch.ones_like(TEXT)))
    expected = output.logits if base.is_encoder_decoder else output.logits[:, -TEXT.shape[1] :]
    wrapped.save_pretrained(tmp_path)
    rows = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].shape[0]
    assert rows == (10 if base.is_encoder_decoder else 5)

    loaded = Subject(architecture, zoo.load(tiny_model(architecture), tmp_path))
    [prompt] = loaded.model.prompts.values()
    assert (prompt.method, prompt.is_merged, prompt.num_virtual_tokens) == ("p_tuning", True, 5)
    assert not torch.allclose(expected, plain, atol=1e-2)
    assert_equal(loaded.logits(TEXT), expected, "logits of PEFT's prompt")


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_the_export_is_plain_prompt_tuning(architecture, tmp_path):
    subject = Subject(architecture, attach(architecture))
    subject.disturb("default")
    zoo.export(subject.model, tmp_path, to="peft")
    fields = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert fields["peft_type"] == "PROMPT_TUNING"
    assert not [name for name in fields if name.startswith("encoder_")]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    torch.testing.assert_close(tensors["prompt_embeddings"], built(subject.model).detach(), rtol=0, atol=1e-6)
    base = Subject(architecture, tiny_model(architecture))
    wrapped = peft.PeftModel.from_pretrained(base.model, tmp_path)
    with torch.no_grad():
        logits = wrapped(**base.inputs(TEXT, torch.ones_like(TEXT))).logits
    logits = logits if base.is_encoder_decoder else logits[:, -TEXT.shape[1] :]
    assert_equal(logits, subject.logits(TEXT), "PEFT's logits")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_it_compiles_into_one_graph(kind):
    subject = Subject("llama", attach(reparameterization=kind))
    expected = subject.logits(TEXT)
    torch._dynamo.reset()
    compiled = torch.compile(subject.model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_equal(compiled(TEXT).logits, expected, "compiled logits")
    compiled(TEXT).logits.sum().backward()
    gradients = subject.gradients()
    subject.model(TEXT).logits.sum().backward()
    for name, gradient in subject.gradients().items():
        assert_equal(gradients[name], gradient, f"gradient of {name}")


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_one_virtual_token_trains(kind):
    subject = Subject("gpt2", attach("gpt2", num_virtual_tokens=1, reparameterization=kind))
    assert built(subject.model).shape == (1, HIDDEN)
    before = built(subject.model).detach().clone()
    subject.train(2)
    assert not torch.allclose(built(subject.model), before, atol=1e-3)


def test_attaching_on_the_meta_device():
    model = zoo.get_method("p_tuning")(tiny_model("llama").to("meta"), num_virtual_tokens=5)
    assert all(parameter.is_meta for parameter in model.prompts.parameters())
    assert model.prompts["default"].num_parameters == attach().prompts["default"].num_parameters


def test_half_precision_models_get_a_float32_net():
    model = zoo.get_method("p_tuning")(tiny_model("llama").to(torch.bfloat16), num_virtual_tokens=3)
    assert {parameter.dtype for parameter in model.prompts.parameters()} == {torch.float32}
    assert model(TEXT).logits.dtype == torch.bfloat16
