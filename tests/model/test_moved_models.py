"""Models that are copied, pickled, moved, resized or compiled keep their prompts, and prompts added later follow."""

import copy
import pickle

import pytest
import torch
from helpers.products import in_turns
from helpers.prompted import prompted

import softprompt_zoo as zoo
from softprompt_zoo.testing import TINY_MODELS, tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

TEXT = random_text(9, 1)
METHODS = ["prompt_tuning", "prefix_tuning"]


@in_turns(architecture=["llama", "bert", "t5"], method=METHODS)
def test_copies_and_pickles(method, architecture):
    subject = prompted(architecture, method)
    expected = subject.logits(TEXT)
    for other in (copy.deepcopy(subject.model), pickle.loads(pickle.dumps(subject.model))):
        twin = Subject(architecture, other)
        assert torch.equal(twin.logits(TEXT), expected)
        twin.disturb("default")
        assert not torch.equal(twin.logits(TEXT), expected)
        assert torch.equal(subject.logits(TEXT), expected)
        zoo.detach(other)
        assert torch.equal(twin.logits(TEXT), Subject(architecture, tiny_model(architecture)).logits(TEXT))
    assert torch.equal(subject.logits(TEXT), expected)


def test_two_models_that_share_a_config():
    first, second = tiny_model("llama"), tiny_model("llama", seed=1)
    second.config = first.config
    for module in second.modules():
        if hasattr(module, "config"):
            module.config = first.config
    zoo.get_method("prefix")(first, num_virtual_tokens=3)
    zoo.get_method("prefix")(second, num_virtual_tokens=3)
    expected = Subject("llama", second).logits(TEXT)
    zoo.detach(first)
    assert torch.equal(Subject("llama", second).logits(TEXT), expected)
    zoo.detach(second)
    assert first.config._attn_implementation == "sdpa"


def test_attention_implementation_can_be_changed_also_by_its_name_in_the_config():
    subject = prompted()
    expected = subject.logits(TEXT)
    subject.model.set_attn_implementation("eager")
    assert_equal(subject.logits(TEXT), expected, "eager logits")
    with pytest.raises((ImportError, zoo.UnsupportedError), match=r"flash_attention_2|FlashAttention2"):
        subject.model.set_attn_implementation("flash_attention_2")
    assert_equal(subject.logits(TEXT), expected, "logits after the refusal")
    subject.model.config._attn_implementation = "sdpa"
    assert_equal(subject.logits(TEXT), expected, "logits under a name that was written")
    subject.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        zoo.UnsupportedError, match=r"'flash_attention_2' was written to the config .*is back to 'sdpa'"
    ):
        subject.logits(TEXT)
    assert_equal(subject.logits(TEXT), expected, "logits after the refusal")


@in_turns(architecture=TINY_MODELS, method=METHODS)
def test_attaching_on_the_meta_device(method, architecture):
    model = tiny_model(architecture).to("meta")
    expected = prompted(architecture, method).model.prompts["default"].num_parameters
    zoo.get_method(method)(model, num_virtual_tokens=4)
    assert model.prompts["default"].num_parameters == expected
    assert all(p.is_meta for p in model.prompts.parameters())


def test_later_prompts_go_where_the_model_was_moved(tmp_path):
    merged = zoo.merge(prompted("gpt2", "prompt_tuning").model)
    merged.save_pretrained(tmp_path)
    expected = merged(TEXT).logits
    model = zoo.get_method("prefix_tuning")(tiny_model("gpt2").to("meta"), "first", num_virtual_tokens=2)
    model.to_empty(device="cpu")
    model.load_state_dict(tiny_model("gpt2").state_dict(), strict=False)
    zoo.load(model, tmp_path)
    assert torch.equal(model(TEXT).logits, expected)
    added = model.prompts.add("words", "prompt_tuning", num_virtual_tokens=3)
    rows = tiny_model("gpt2").get_input_embeddings().weight
    assert torch.cdist(added.learned.embeddings, rows).min(dim=1).values.max() < 1e-2  # real words
    model.prompts.add("copy", model.prompts["default"])
    assert torch.equal(model(TEXT, prompts="copy").logits, expected)
    assert model.to(torch.bfloat16).prompts["copy"].backbone.dtype == torch.bfloat16
    with pytest.raises(zoo.UnsupportedError, match="the model is on the meta device"):
        zoo.inspect(model.to("meta"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_later_prompts_know_a_resized_vocabulary(architecture):
    model = zoo.get_method("prompt_tuning")(tiny_model(architecture), "first", num_virtual_tokens=2)
    words = tiny_tokenizer()
    words.add_tokens(["hello"])
    model.resize_token_embeddings(110)
    added = model.prompts.add("new", "prompt_tuning", num_virtual_tokens=1, init_text="hello", tokenizer=words)
    assert torch.equal(added.learned.embeddings[0], model.get_input_embeddings().weight[101])
    model.resize_token_embeddings(20)
    model.prompts.add("words", "prefix_tuning", num_virtual_tokens=50)
    assert zoo.inspect(model).prompts[0].norms["embeddings"].words.shape == (1, 20)


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        ("prefix_tuning", "llama"),
        pytest.param("prompt_tuning", "llama", marks=pytest.mark.slow),
        pytest.param("prefix_tuning", "bert", marks=pytest.mark.slow),
        pytest.param("prompt_tuning", "t5", marks=pytest.mark.slow),
        pytest.param("prompt_tuning", "bert", marks=pytest.mark.slow),
        pytest.param("prefix_tuning", "t5", marks=pytest.mark.slow),
    ],
)
def test_compiles_into_one_graph(method, architecture):
    subject = prompted(architecture, method)
    expected = subject.logits(TEXT)
    torch._dynamo.reset()
    compiled = torch.compile(subject.model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_equal(compiled(**subject.inputs(TEXT)).logits, expected, "compiled logits")
    subject.loss(TEXT).backward()
    plain = subject.gradients()
    compiled(**subject.inputs(TEXT)).logits.sum().backward()
    compiled_gradients = subject.gradients()
    subject.model(**subject.inputs(TEXT)).logits.sum().backward()
    plain = subject.gradients()
    for name, gradient in compiled_gradients.items():
        assert_equal(gradient, plain[name], f"gradient of {name}")
