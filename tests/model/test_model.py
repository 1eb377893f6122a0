"""A prompted model stays the user's own: its class, its stacks, its calls in several threads, its prompts by name."""

import copy
import threading

import pytest
import torch
from helpers.prompted import prompted
from transformers import LlamaForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text

TEXT = random_text(9, 1)
METHODS = ["prompt_tuning", "prefix_tuning"]


def test_the_model_stays_the_users_own():
    model = tiny_model("llama")
    returned = zoo.get_method("prefix")(model, num_virtual_tokens=3)
    assert returned is model
    assert isinstance(model, LlamaForCausalLM)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert list(model.prompts) == ["default"]
    assert model.prompts.active == ("default",)
    assert model.prompts["default"].num_virtual_tokens == 3
    assert model.prompts["default"].num_parameters == 2 * 2 * 2 * 3 * 8
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(name.startswith("prompts.default.") for name in trainable)


@pytest.mark.parametrize("name", ["training", "backbone", "chosen", "era", "bank", "train", "keys"])
def test_a_prompt_may_be_named_like_an_attribute(name):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), name, num_virtual_tokens=4)
    expected = model.train().eval()(TEXT).logits
    model.prompts.activate()
    model.prompts.activate(name)
    model.prompts.set_weight(name, 1)
    assert torch.equal(copy.deepcopy(model.float())(TEXT).logits, expected)
    model.prompts.remove(name)
    assert not model.prompts.keys()


def test_the_shared_pass_runs_once_per_generated_text():
    subject = prompted(method="prompt_tuning")
    calls = []
    subject.model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    subject.model.generate(TEXT, max_new_tokens=5, do_sample=False)
    first = len(calls)
    subject.model.generate(TEXT, max_new_tokens=5, do_sample=False, use_cache=False)
    assert first == 1 + 5  # one pass over the prompt, five over the text
    assert len(calls) == 2 * first


def test_threads_do_not_see_each_others_prompts():
    subject = prompted()
    subject.model.prompts.add("other", "prompt", num_virtual_tokens=6)
    expected = {name: subject.logits(TEXT, prompts=[name]) for name in ("default", "other", None)}
    wrong = []

    def work(name):
        wrong.extend(1 for _ in range(15) if not torch.equal(subject.logits(TEXT, prompts=[name]), expected[name]))

    threads = [threading.Thread(target=work, args=(name,)) for name in [*expected, *expected]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_the_user_hands_over_is_changed(method, architecture):
    subject = prompted(architecture, method)
    ids, mask = pad([TEXT, random_text(4, 2)], "left")
    inputs = subject.inputs(ids, mask)
    if subject.is_causal:
        inputs |= {"labels": ids.clone(), "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    before = {key: value.clone() for key, value in inputs.items()}
    subject.model(**inputs)
    assert inputs.keys() == before.keys()
    assert all(torch.equal(inputs[key], before[key]) for key in before)


def test_the_bare_stack_is_prompted_too():
    subject = prompted()
    states = subject.model.model(TEXT).last_hidden_state
    assert_equal(subject.model.lm_head(states), subject.logits(TEXT), "logits of the bare stack")


def test_a_stack_as_the_users_model():
    from transformers import LlamaModel

    torch.manual_seed(0)
    model = LlamaModel(tiny_model("llama").config).eval()
    base = model(TEXT).last_hidden_state
    zoo.get_method("prompt")(model, num_virtual_tokens=4)
    assert model(TEXT).last_hidden_state.shape == base.shape
    assert not torch.allclose(model(TEXT).last_hidden_state, base, atol=1e-3)
    with model.prompts.disabled():
        assert torch.equal(model(TEXT).last_hidden_state, base)
    assert torch.equal(model(TEXT, prompts=[None]).last_hidden_state, base)


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_as_the_users_model_returns_what_it_is_asked_for(method):
    from transformers import BertModel

    torch.manual_seed(0)
    model = BertModel(tiny_model("bert").config).eval()
    zoo.get_method(method)(model, num_virtual_tokens=4)
    output = model(TEXT)
    assert output.last_hidden_state.shape == (1, 9, 32)
    assert_equal(output.pooler_output, model.pooler(output.last_hidden_state), "pooled from the text")
    as_tuple = model(TEXT, return_dict=False)
    assert torch.equal(as_tuple[0], output.last_hidden_state)
    assert torch.equal(as_tuple[1], output.pooler_output)


def test_combined_methods_stand_in_order():
    model = tiny_model("llama")
    prefix = zoo.get_method("prefix").configure(num_virtual_tokens=3)
    zoo.combine("prompt", prefix)(model)
    assert model.prompts.active == ("prompt_tuning", "prefix_tuning")
    subject = Subject("llama", model)
    assert_equal(
        subject.logits(TEXT), subject.logits(TEXT, prompts=[["prompt_tuning", "prefix_tuning"]]), "active and named"
    )
    alone = subject.logits(TEXT, prompts=["prompt_tuning"])
    assert not torch.allclose(subject.logits(TEXT), alone, atol=1e-3)


def test_two_combined_prompts_of_real_tokens_are_one_text():
    """Input-level tokens see what precedes them, as real tokens would."""
    base = Subject("llama", tiny_model("llama"))
    first, second = random_text(3, 5), random_text(4, 6)
    expected = base.logits(torch.cat([first, second, TEXT], 1))[:, 7:]
    for methods in (("prompt", "prompt"), ("prefix", "prompt")):
        model = tiny_model("llama")
        zoo.get_method(methods[0])(model, "a", num_virtual_tokens=3)
        model.prompts.add("b", methods[1], num_virtual_tokens=4)
        model.prompts.activate("a", "b")
        backbone = model.prompts.backbone
        with torch.no_grad():
            start_a = model.prompts["a"].learned
            tokens = (
                zoo.InputTokens(backbone.embed(first[0])) if methods[0] == "prompt" else backbone.keys_values(first[0])
            )
            start_a.start_from(tokens)
            model.prompts["b"].learned.start_from(zoo.InputTokens(backbone.embed(second[0])))
        assert_equal(Subject("llama", model).logits(TEXT), expected, f"{methods}")


def test_a_four_dimensional_mask():
    subject = prompted()
    length = TEXT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    assert_equal(subject.logits(TEXT, causal), subject.logits(TEXT), "4-D mask")
    encoder = prompted("bert", "prompt_tuning")
    with pytest.raises(zoo.UnsupportedError, match="needs an attention mask of shape"):
        encoder.logits(TEXT, torch.ones(1, 1, length, length, dtype=torch.bool))


def test_remove_and_disable_and_empty():
    subject = prompted()
    base = Subject("llama", tiny_model("llama")).logits(TEXT)
    subject.model.prompts.activate()
    assert torch.equal(subject.logits(TEXT), base)
    subject.model.prompts.remove("default")
    assert len(subject.model.prompts) == 0
    assert torch.equal(subject.logits(TEXT), base)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_bare_models_forward_called_by_its_name_has_the_prompt(architecture, method):
    model = zoo.get_method(method)(tiny_model(architecture).base_model, num_virtual_tokens=4).eval()
    with torch.no_grad():
        expected = model(TEXT).last_hidden_state
        assert torch.equal(model.forward(input_ids=TEXT).last_hidden_state, expected)
        assert torch.equal(model.forward(TEXT, prompts=None, return_dict=False)[0], expected)
    assert expected.shape[1] == TEXT.shape[1]


@pytest.mark.parametrize(
    ("architecture", "method"), [("llama", "prompt_tuning"), ("llama", "prefix_tuning"), ("t5", "prompt_tuning")]
)
def test_a_forward_with_labels_is_compiled_in_one_graph(architecture, method):
    model = zoo.get_method(method)(tiny_model(architecture), num_virtual_tokens=3).eval()
    expected = model(input_ids=TEXT, labels=TEXT).loss
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_equal(compiled(input_ids=TEXT, labels=TEXT).loss, expected, "loss")
