"""A bank that stores every prompt as a prefix for engines."""

import pickle

import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.bank_models import METHODS, TEXT, assert_equal, prompted
from helpers.products import in_turns
from peft import LoraConfig

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.models import CLASSIFICATION

ARCHITECTURES = ["llama", "gpt2", "gemma3", "qwen3", "opt", "mistral"]


@in_turns(architecture=ARCHITECTURES, has_prompts=[True, False])
def test_a_prefix_does_what_its_prompt_did(architecture, has_prompts, tmp_path):
    model = prompted(architecture, METHODS)
    base = prompted(architecture, ["words"]) if has_prompts else tiny_model(architecture)
    bank = zoo.PromptBank(tmp_path / "bank", base, as_prefix=True)
    bank.add_many(model.prompts)
    with torch.no_grad():
        plain = tiny_model(architecture)(input_ids=TEXT).logits
        if not has_prompts:
            assert torch.equal(base(input_ids=TEXT).logits, plain), "the model was changed"
    reader = zoo.PrefixReader(bank.address)
    for name, (_, options) in METHODS.items():
        assert reader.find(name).num_tokens == options["num_virtual_tokens"]
        assert bank[name].method == "prefix_tuning"
    server = prompted(architecture, ["words"], seed=0)
    server.prompts.remove("words")
    server.prompts.bank = zoo.PromptBank(bank.address, server)
    for name in METHODS:
        with torch.no_grad():
            assert_equal(server(input_ids=TEXT, prompts=name).logits, model(input_ids=TEXT, prompts=name).logits)


def test_a_prompt_stays_as_it_is_without(filled):
    bank, _ = filled
    assert not bank.as_prefix
    assert {name: bank[name].method for name in bank} == {name: method for name, (method, _) in METHODS.items()}


def with_tasks():
    return zoo.get_method("multitask_prompt_tuning")(tiny_model("llama"), "a", num_virtual_tokens=3, num_tasks=2)


def with_nan():
    model = prompted()
    model.prompts.add("a", "prompt_tuning", num_virtual_tokens=2)
    next(model.prompts["a"].parameters()).data[1, 2] = float("inf")
    return model


def weighed():
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), "a", num_virtual_tokens=2)
    model.prompts.set_weight("a", 2.0)
    return model


REFUSED = {
    "tasks": (with_tasks, r"'a' has 2 tasks, but a prefix holds only one; make one with zoo\.fold"),
    "NaN": (with_nan, "'a' holds NaN or infinity in 'embeddings'"),
    "a weight": (weighed, "weight 2.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_prefix_is_refused_and_nothing_is_stored(case, address):
    make, message = REFUSED[case]
    model = make()
    bank = zoo.PromptBank(address, model, as_prefix=True)
    bank.add("kept", prompted().prompts["words"])
    with pytest.raises(zoo.UnsupportedError, match=message):
        bank.add_many({"first": prompted().prompts["words"], "a": model.prompts["a"]})
    assert list(bank) == ["kept"]


def test_a_head_is_refused(tmp_path):
    classifier = tiny_model("llama", task=CLASSIFICATION)
    model = zoo.get_method("prefix_tuning")(classifier, "a", num_virtual_tokens=3, train_head=True)
    with pytest.raises(zoo.UnsupportedError, match="trained task head"):
        zoo.PromptBank(tmp_path / "bank", model, as_prefix=True).add("a", model.prompts["a"])


def adapted():
    needs_accepted_peft()
    model = prompted()
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    return model


@pytest.mark.parametrize(
    ("make", "message"), [(lambda: tiny_model("bert"), "not a causal model"), (adapted, "'default'")]
)
def test_a_model_without_prefixes_for_engines_makes_no_bank(make, message, tmp_path):
    with pytest.raises(zoo.UnsupportedError, match=message):
        zoo.PromptBank(tmp_path / "bank", make(), as_prefix=True)
    assert not (tmp_path / "bank").exists()


def test_prompts_of_another_model_are_refused(tmp_path):
    bank = zoo.PromptBank(tmp_path / "bank", tiny_model("llama"), as_prefix=True)
    other = prompted("gpt2", ["prefix", "deep"])
    for name in other.prompts:
        with pytest.raises(zoo.BackboneMismatchError, match=f"prompt '{name}'"):
            bank.add(name, other.prompts[name])
    with pytest.raises(TypeError, match="prompt 'a' is int"):
        bank.add("a", 3)
    with pytest.raises(TypeError, match="as_prefix is 1"):
        zoo.PromptBank(tmp_path / "bank", tiny_model("llama"), as_prefix=1)
    assert len(bank) == 0


def test_a_copy_without_the_model_says_what_it_takes(tmp_path):
    model = prompted()
    bank = zoo.PromptBank(tmp_path / "bank", model, as_prefix=True)
    copied = pickle.loads(pickle.dumps(bank))
    copied.backbone = model.prompts.backbone
    for one in (copied, zoo.PromptBank(tmp_path / "bank", model.prompts.backbone, as_prefix=True)):
        assert one.as_prefix
        with pytest.raises(zoo.BankError, match=r"opened without the model itself.*as_prefix=True"):
            one.add("a", model.prompts["words"])
    assert len(bank) == 0


def test_folders_are_imported_as_prefixes_and_others_passed_over(tmp_path):
    folder = tmp_path / "saved"
    for name in METHODS:
        prompted(names=[name]).save_pretrained(folder / name)
    zoo.export(prompted(names=["words", "deep"]), folder / "kv", to="kv", name=["words", "deep"])
    with_tasks().save_pretrained(folder / "tasks")
    bank = zoo.PromptBank(tmp_path / "bank", tiny_model("llama"), as_prefix=True)
    with pytest.warns(match=r"1 folders .* tasks: UnsupportedError: prompt 'tasks' has 2 tasks"):
        names = bank.import_folder(folder)
    assert sorted(names) == sorted([*METHODS, "kv"])
    reader = zoo.PrefixReader(bank.address)
    assert {name: reader.find(name).num_tokens for name in names} == {
        "kv": 5,
        **{name: options["num_virtual_tokens"] for name, (_, options) in METHODS.items()},
    }
