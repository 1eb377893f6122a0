"""Folding: a combination of prompts as one plain prefix, which has the same effect here and in PEFT."""

import peft
import pytest
import torch
from helpers.products import in_turns

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import DECODER_LENGTH, LENGTHS, Subject, pad, random_text

TEXT = random_text(9, 1)
TEXTS = [random_text(length, length) for length in LENGTHS]


def prompted(architecture, **methods):
    """Return a model with prompts; each keyword gives a prompt's method and options."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        model = tiny_model(architecture)
        for name, (method, options) in methods.items():
            if hasattr(model, "prompts"):
                model.prompts.add(name, method, **options)
            else:
                model = zoo.get_method(method)(model, name, **options)
        for parameter in model.prompts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.prompts.activate(*methods)
    return Subject(architecture, model)


def three(architecture):
    return prompted(
        architecture,
        words=("prompt_tuning", {"num_virtual_tokens": 3}),
        keys=("prefix_tuning", {"num_virtual_tokens": 4, "reparameterization": "mlp", "dropout": 0.5}),
        net=("p_tuning", {"num_virtual_tokens": 2}),
    )


@in_turns(
    architecture=["llama", "gpt2", "qwen3", "gemma3", "bloom"],
    combination=[["words", "keys", "net"], ["keys", "words"], ["words"], ["net", "keys"]],
)
def test_folded_is_combined(architecture, combination):
    subject = three(architecture)
    assert zoo.fold(subject.model, combination) is subject.model
    folded = subject.model.prompts["folded"]
    assert folded.is_merged
    assert folded.method == "prefix_tuning"
    assert subject.model.prompts.active == ("folded",)
    assert folded.num_virtual_tokens == sum(subject.model.prompts[name].num_virtual_tokens for name in combination)
    for side in ("left", "right"):
        rows = subject.text_logits(TEXTS, side, 2, prompts=[combination] * len(TEXTS))
        for expected, found in zip(rows, subject.text_logits(TEXTS, side, 2), strict=True):
            assert_equal(found, expected, f"folded, padded on the {side}")
    ids, mask = pad(TEXTS, "left")
    options = {"max_new_tokens": 10, "do_sample": False}
    combined = subject.generate(ids, mask, prompts=[combination] * len(TEXTS), **options)
    assert torch.equal(subject.generate(ids, mask, **options), combined)
    bare = subject.logits(TEXT, prompts=[None])
    assert not torch.allclose(bare, subject.logits(TEXT), atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_gets_the_same_from_the_fold(architecture, tmp_path):
    subject = three(architecture)
    expected = subject.logits(TEXT)
    zoo.fold(subject.model)
    zoo.export(subject.model, tmp_path, to="peft")
    wrapped = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path).eval()
    assert wrapped.active_peft_config.peft_type == "PREFIX_TUNING"
    with torch.no_grad():
        found = wrapped(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits
    assert_equal(found, expected, "PEFT's logits")


def test_a_fold_is_saved_and_loads(tmp_path):
    subject = three("llama")
    expected = subject.logits(TEXT)
    zoo.fold(subject.model, name="one")
    for name in ("words", "keys", "net"):
        subject.model.prompts.remove(name)
    subject.model.save_pretrained(tmp_path)
    loaded = Subject("llama", zoo.load(tiny_model("llama"), tmp_path))
    assert loaded.model.prompts.keys() == ["one"]
    assert_equal(loaded.logits(TEXT), expected, "saved and loaded")


def test_it_folds_what_eval_mode_does():
    subject = three("llama")
    expected = subject.logits(TEXT)
    subject.model.train()
    zoo.fold(subject.model)
    assert subject.model.training
    assert subject.model.prompts["words"].training
    subject.model.eval()
    assert_equal(subject.logits(TEXT), expected, "folded in training mode")


def test_always_visible_is_kept_or_refused():
    options = {"num_virtual_tokens": 3, "always_visible": True}
    subject = prompted("mistral", a=("prefix", options), b=("prefix", {**options, "init": "random"}))
    expected = subject.logits(TEXT)
    zoo.fold(subject.model)
    assert subject.model.prompts["folded"].config.always_visible
    assert_equal(subject.logits(TEXT), expected, "in sight of the window")
    subject.model.prompts.add("words", "prompt", num_virtual_tokens=2)
    refused(
        subject.model, zoo.UnsupportedError, "'a' has always_visible=True, but others", ["a", "words"], name="mixed"
    )
    plain = prompted("llama", a=("prefix", options), words=("prompt", {"num_virtual_tokens": 2}))
    expected = plain.logits(TEXT)
    zoo.fold(plain.model)  # there are no windows that could hide it
    assert_equal(plain.logits(TEXT), expected, "without windows")


@pytest.mark.parametrize(("architecture", "sites"), [("bert", None), ("t5", None), ("bart", ("decoder", "cross"))])
def test_pure_prefixes_fold_on_other_models(architecture, sites):
    options = {"sites": sites} if sites else {}
    subject = prompted(
        architecture,
        a=("prefix", {"num_virtual_tokens": 3, **options}),
        b=("prefix", {"num_virtual_tokens": 4, "init": "random", **options}),
    )
    expected = subject.text_logits(TEXTS, "left")
    zoo.fold(subject.model)
    assert subject.model.prompts["folded"].num_virtual_tokens == 7
    for found, row in zip(subject.text_logits(TEXTS, "left"), expected, strict=True):
        assert_equal(found, row, "folded")


def test_peft_gets_a_decoders_fold(tmp_path):
    options = {"num_virtual_tokens": 3, "sites": ("decoder",)}
    subject = prompted("t5", a=("prefix", options), b=("prefix", {**options, "init": "random"}))
    labels = random_text(DECODER_LENGTH, 78)
    expected = subject.logits(TEXT, labels=labels)
    zoo.fold(subject.model)
    zoo.export(subject.model, tmp_path, to="peft")
    wrapped = peft.PeftModel.from_pretrained(tiny_model("t5"), tmp_path).eval()
    with torch.no_grad():
        found = wrapped(input_ids=TEXT, attention_mask=torch.ones_like(TEXT), labels=labels).logits
    assert_equal(found, expected, "PEFT's logits")


def test_a_trained_head_comes_along():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=101, pad_token_id=0, num_labels=3, **sizes)).eval()
    model = zoo.get_method("p_tuning_v2")(model, "task", num_virtual_tokens=3)
    model.prompts.add("words", "prompt_tuning", num_virtual_tokens=2)
    with torch.no_grad():
        model.prompts["task"].head.score.weight.add_(1.0)
        expected = model(input_ids=TEXT, prompts=[["task", "words"]]).logits
        zoo.fold(model, ["task", "words"])
        assert_equal(model(input_ids=TEXT).logits, expected, "with the head")
        assert not torch.allclose(model(input_ids=TEXT, prompts=["words"]).logits, expected, atol=1e-3)


def test_one_task_folds():
    subject = prompted("llama", many=("mpt", {"num_virtual_tokens": 3, "num_tasks": 3}))
    subject.model.prompts.add("keys", "prefix", num_virtual_tokens=2)
    names = ["many", "keys"]
    refused(subject.model, zoo.UnsupportedError, "'many' has 3 tasks, but a prefix holds one; choose it", names)
    refused(subject.model, ValueError, "task is 5; prompt 'many' has 3 tasks, counted from 0", names, task=5)
    with torch.no_grad():
        expected = subject.model(input_ids=TEXT, prompts=[names], task_ids=torch.tensor([1])).logits
        zoo.fold(subject.model, names, task=1)
        assert_equal(subject.model(input_ids=TEXT).logits, expected, "the task")


def test_one_prompt_may_be_named_by_a_string():
    subject = three("llama")
    expected = subject.logits(TEXT, prompts=["net"])
    zoo.fold(subject.model, "net")
    assert_equal(subject.logits(TEXT), expected, "the prompt of that name")


def refused(model, error, text, names=None, **options):
    before, active = model.prompts.keys(), model.prompts.active
    with pytest.raises(error, match=text):
        zoo.fold(model, names, **options)
    assert model.prompts.keys() == before
    assert model.prompts.active == active


def test_refusals_change_nothing():
    subject = three("llama")
    refused(subject.model, zoo.PromptExistsError, "already has a prompt 'net'", name="net")
    refused(subject.model, ValueError, "prompt name is 'a b'", name="a b")
    refused(subject.model, ValueError, "task is 0, but the prompts have no tasks; leave it out", task=0)
    refused(subject.model, TypeError, "names is 5; expected a prompt's name, a list of names", names=5)
    refused(subject.model, zoo.UnknownPromptError, "no prompt 'other', named in names", ["words", "other"])
    refused(subject.model, ValueError, "each prompt may occur in it only once", ["words", "words"])
    subject.model.prompts.activate()
    refused(subject.model, ValueError, "nothing to fold: no prompt is active")
    with pytest.raises(zoo.UnsupportedError, match="LlamaForCausalLM has no prompts to fold"):
        zoo.fold(tiny_model("llama"))
    encoder = prompted("bert", a=("prompt", {"num_virtual_tokens": 3}), b=("prefix", {"num_virtual_tokens": 3}))
    refused(encoder.model, zoo.UnsupportedError, "'a' is at the input of a bidirectional encoder")
    sites = prompted(
        "t5",
        a=("prefix", {"num_virtual_tokens": 3, "sites": ("decoder",)}),
        b=("prefix", {"num_virtual_tokens": 4}),
    )
    refused(sites.model, zoo.UnsupportedError, "a prefix has equally many tokens at every site")


def test_gated_tokens_are_refused():
    gated = pytest.importorskip("softprompt_zoo_llama_adapter")
    subject = three("llama")
    registered = "llama_adapter" not in zoo.list_methods()
    if registered:
        zoo.register(gated, "llama_adapter")
    try:
        subject.model.prompts.add("gated", "llama_adapter", num_virtual_tokens=2)
        refused(subject.model, zoo.UnsupportedError, "'gated' has gated tokens", ["words", "gated"])
    finally:
        if registered:
            zoo.unregister("llama_adapter")


def test_two_active_prompts_are_told_of_the_fold(tmp_path):
    subject = three("llama")
    with pytest.raises(zoo.UnsupportedError, match=r"holds one prompt, but 3 are active .*zoo\.fold"):
        zoo.export(subject.model, tmp_path, to="peft")
    with pytest.raises(zoo.UnsupportedError, match=r"holds one prompt, but name has 2; .*zoo\.fold"):
        zoo.export(subject.model, tmp_path, to="peft", name=["words", "net"])
