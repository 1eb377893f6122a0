"""`init` and its options: the default follows from the options, and what would be ignored is refused."""

import pytest
import torch
from helpers.products import in_turns
from transformers import LlamaConfig, LlamaForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.config.checks import check_reparameterization
from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.sizes import ROTARY

TEXT = torch.tensor([[9, 30, 41, 8]])


def methods_with(option):
    return [name for name in BUILTINS if option in zoo.get_method(name).config_class.__dataclass_fields__]


def logits(method, **options):
    torch.manual_seed(0)
    with torch.no_grad():
        model = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=3, **options).eval()
        return model(input_ids=TEXT).logits


def read_behind(words):
    """Return the base model's logits of the text after real words."""
    ids = torch.cat([torch.tensor([words]), TEXT], dim=1)
    with torch.no_grad():
        return tiny_model("llama")(input_ids=ids).logits[:, len(words) :]


@pytest.mark.parametrize("method", methods_with("init_text"))
def test_a_text_alone_is_started_from(method):
    found = logits(method, init_text="w5 w6 w7", tokenizer=tiny_tokenizer())
    torch.testing.assert_close(found, read_behind([5, 6, 7]), atol=1e-4, rtol=1e-4)


@in_turns(method=methods_with("init_text"), init=["sampled", "text", "random"])
def test_a_name_is_no_folder_that_is_called_so(method, init, tmp_path, monkeypatch):
    options = {"init_text": "w5", "tokenizer": tiny_tokenizer()} if init == "text" else {"init": init}
    expected = logits(method, **options)
    (tmp_path / init).mkdir()
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(method, **options), expected)
    zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=3).save_pretrained(tmp_path / init)
    with torch.no_grad():
        saved = zoo.load(tiny_model("llama"), init).eval()(input_ids=TEXT).logits
    torch.testing.assert_close(logits(method, init=f"./{init}"), saved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", methods_with("labels"))
def test_labels_alone_are_started_from(method):
    found = logits(method, labels=["w5", "w6", "w7"], tokenizer=tiny_tokenizer())
    torch.testing.assert_close(found, read_behind([5, 6, 7]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", methods_with("init_text"))
def test_a_tokenizer_alone_does_no_harm(method):
    assert torch.equal(logits(method, tokenizer=tiny_tokenizer()), logits(method))


@pytest.mark.parametrize("method", methods_with("init_text"))
def test_a_text_that_would_be_ignored_is_refused(method, tmp_path):
    start = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=3)
    start.save_pretrained(tmp_path)
    for init in ("sampled", "random", start.prompts["default"], tmp_path):
        model = tiny_model("llama")
        with pytest.raises(ValueError, match=r"init_text is 'w5', but init, which is .*, does not use it; leave"):
            zoo.get_method(method)(model, num_virtual_tokens=3, init=init, init_text="w5", tokenizer=tiny_tokenizer())
        assert not hasattr(model, "prompts")


@pytest.mark.parametrize("method", methods_with("init_text"))
def test_what_is_no_text_or_no_prompt_is_refused(method):
    with pytest.raises(TypeError, match=r"init_text is \('w5', 'w6'\) \(tuple\); expected one text"):
        zoo.get_method(method).configure(init_text=["w5", "w6"], tokenizer=tiny_tokenizer())
    start = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=3)
    with pytest.raises(TypeError, match=r"^init is [^\n]{,40} \(LlamaForCausalLM\); .* model.prompts\[name\]$"):
        zoo.get_method(method).configure(init=start)


@pytest.mark.parametrize("method", methods_with("init"))
def test_a_folder_that_is_called_like_a_start_is_none(method, tmp_path, monkeypatch):
    names = zoo.get_method(method).config_class.__dataclass_fields__["init"].metadata["names"]
    needed = {"text": {"init_text": "w5"}, "labels": {"labels": ["w5"]}}
    expected = {name: logits(method, init=name, tokenizer=tiny_tokenizer(), **needed.get(name, {})) for name in names}
    monkeypatch.chdir(tmp_path)
    for name in names:
        (tmp_path / name).mkdir()
        found = logits(method, init=name, tokenizer=tiny_tokenizer(), **needed.get(name, {}))
        assert torch.equal(found, expected[name]), name


@in_turns(method=methods_with("init"), is_merged=[False, True])
def test_a_prompt_of_a_model_of_other_sizes_is_no_start(method, is_merged):
    start = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=3)
    init = (zoo.merge(start) if is_merged else start).prompts["default"]
    sizes = {**ROTARY, "hidden_size": 64}
    model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **sizes))
    with pytest.raises(zoo.BackboneMismatchError, match="init is a prompt for a model of different sizes: "):
        zoo.get_method(method)(model, num_virtual_tokens=3, init=init)
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize("method", methods_with("labels"))
def test_labels_that_would_be_ignored_are_refused(method):
    for options in ({"init": "sampled"}, {"init_text": "w5"}):
        with pytest.raises(ValueError, match=r"labels is .'w5',., but init, which is '(sampled|text)', does not"):
            zoo.get_method(method).configure(labels=["w5"], tokenizer=tiny_tokenizer(), **options)


@pytest.mark.parametrize("method", methods_with("init_text"))
def test_what_was_settled_is_saved(method, tmp_path):
    model = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=3)
    assert model.prompts["default"].config.init == "sampled"
    model.save_pretrained(tmp_path)
    assert zoo.load(tiny_model("llama"), tmp_path).prompts["default"].config == model.prompts["default"].config


@pytest.mark.parametrize("method", methods_with("reparameterization_size"))
def test_a_net_of_a_width_needs_a_net(method):
    with pytest.raises(
        ValueError, match="reparameterization_size is 8, the width of a network, but reparameterization is N"
    ):
        zoo.get_method(method).configure(reparameterization=None, reparameterization_size=8)
    zoo.get_method(method).configure(reparameterization="mlp", reparameterization_size=8)
    with pytest.raises(ValueError, match="choose reparameterization='a' or 'b'"):
        check_reparameterization(None, 8, ("a", "b"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_saved_configs_placeholder_is_no_start(device):
    model = tiny_model("llama").to(device)
    with pytest.raises(ValueError, match="init is 'given', which only saved prompts may have"):
        zoo.get_method("prompt")(model, init="given")
    assert not hasattr(model, "prompts")
