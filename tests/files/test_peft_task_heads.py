"""Trained task heads on models whose own head PEFT has wrapped."""

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.classifiers import classifier, disturb, labels, logits, texts
from safetensors.torch import load_file

import softprompt_zoo as zoo
from softprompt_zoo.testing.comparison import assert_equal

needs_accepted_peft(allow_module_level=True)
TEXT = texts("sequence")
CONFIGS = {
    "saved along": {"task_type": "SEQ_CLS", "target_modules": ["query"]},
    "a LoRA layer": {"target_modules": ["query", "classifier"]},
    "a DoRA layer": {"target_modules": ["query", "classifier"], "use_dora": True},
    "a LoRA inside the head": {"target_modules": ["query", "out_proj"]},
}
WRAPPED = pytest.mark.parametrize("kind", CONFIGS)


def adapted(kind):
    """Build a classifier whose head PEFT has wrapped and changed."""
    architecture = "roberta" if kind == "a LoRA inside the head" else "bert"
    config = peft.LoraConfig(r=2, init_lora_weights=False, **CONFIGS[kind])
    torch.manual_seed(0)
    model = peft.get_peft_model(classifier("sequence", architecture), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def fresh(kind):
    return classifier("sequence", "roberta" if kind == "a LoRA inside the head" else "bert")


@WRAPPED
def test_the_copy_is_the_plain_module_with_the_adapters_values(kind):
    model = adapted(kind)
    merged = adapted(kind).merge_and_unload()  # the head as PEFT itself merges it
    zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=3)
    copied = model.prompts["default"].head["classifier"]
    assert list(copied.state_dict()) == list(fresh(kind).classifier.state_dict())
    assert all(parameter.requires_grad for parameter in copied.parameters())
    for name, tensor in merged.classifier.state_dict().items():
        assert_equal(copied.state_dict()[name], tensor, name)


@WRAPPED
def test_what_is_switched_off_or_merged_already_is_copied_as_it_acts(kind):
    model = adapted(kind)
    head = fresh(kind).classifier.state_dict()
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=3)
    with model.disable_adapter():
        model.prompts.add("off", "p_tuning_v2", num_virtual_tokens=3)
    for name, tensor in model.prompts["off"].head["classifier"].state_dict().items():
        assert torch.equal(tensor, head[name]), name
    model.prompts.add("on", "p_tuning_v2", num_virtual_tokens=3)
    model.merge_adapter()
    model.prompts.add("merged", "p_tuning_v2", num_virtual_tokens=3)
    ones = model.prompts["on"].head.state_dict()
    for name, tensor in model.prompts["merged"].head.state_dict().items():
        assert_equal(tensor, ones[name], name)


@WRAPPED
@pytest.mark.parametrize("onto", ["plain", "wrapped"])
def test_a_directory_with_both_loads(kind, onto, tmp_path):
    model = adapted(kind)
    zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=TEXT, **labels("sequence")).loss.backward()
        optimizer.step()
    expected = logits(model, TEXT)
    model.save_pretrained(tmp_path)
    loaded = zoo.load(fresh(kind) if onto == "plain" else adapted(kind), tmp_path)
    assert torch.equal(logits(loaded, TEXT), expected)
    assert not [key for key in load_file(tmp_path / "adapter_model.safetensors") if "prompts" in key]


@WRAPPED
def test_a_head_trained_without_the_adapter_goes_onto_the_adapted_model(kind, tmp_path):
    plain = zoo.get_method("p_tuning_v2")(fresh(kind), num_virtual_tokens=3)
    disturb(plain, scale=0.3)
    plain.save_pretrained(tmp_path / "saved")
    bank = zoo.PromptBank("memory://wrapped-head-" + kind.replace(" ", "-"), plain)
    bank.add("stored", plain.prompts["default"], overwrite=True)
    expected = logits(plain, TEXT)
    model = zoo.load(adapted(kind), tmp_path / "saved")
    with model.disable_adapter():
        assert_equal(logits(model, TEXT), expected, "loaded")
    model = zoo.get_method("prefix_tuning")(adapted(kind), num_virtual_tokens=3)
    model.prompts.add("copied", plain.prompts["default"])
    model.prompts.bank = bank
    with model.disable_adapter():
        assert_equal(logits(model, TEXT, prompts=["stored"] * 3), expected, "of the bank")
        assert_equal(logits(model, TEXT, prompts="copied"), expected, "a ready prompt")


def test_rows_with_and_without_the_trained_head():
    model = zoo.get_method("p_tuning_v2")(adapted("saved along"), num_virtual_tokens=3)
    disturb(model, scale=0.3)
    only_adapter = logits(adapted("saved along"), TEXT)
    rows = logits(model, TEXT, prompts=["default", None, "default"])
    assert_equal(rows[1], only_adapter[1], "the adapter's own head")
    assert_equal(rows[::2], logits(model, TEXT)[::2], "the prompt's")


@pytest.mark.parametrize("way", ["injected", "wrapped"])
def test_a_later_adapter_leaves_the_trained_head_plain_and_gives_its_own_to_the_next(way, tmp_path):
    model = classifier("sequence", "bert")
    if way == "wrapped":
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))
    zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=3)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear", modules_to_save=["classifier"])
    if way == "wrapped":
        model.add_adapter("second", config)
        model.set_adapter("second")
    else:
        model.add_adapter(config, "second")
    plain = dict(classifier("sequence", "bert").classifier.state_dict())
    assert list(model.prompts["default"].head["classifier"].state_dict()) == list(plain)
    assert all(parameter.requires_grad for parameter in model.prompts.parameters())
    with torch.no_grad():
        model.classifier.modules_to_save["second"].weight.zero_()
    model.prompts.add("next", "p_tuning_v2", num_virtual_tokens=3)
    assert not model.prompts["next"].head["classifier"].weight.any()
    expected = logits(model, TEXT)
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(logits(zoo.load(classifier("sequence", "bert"), tmp_path), TEXT), expected)


def test_an_adapter_inside_the_prompt_is_not_saved_as_if_it_were_the_prompt(tmp_path):
    model = zoo.get_method("p_tuning_v2")(classifier("sequence", "bert"), num_virtual_tokens=3)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["classifier"]))
    with pytest.raises(zoo.UnsupportedError, match=r"into the prompt 'default' itself.*model.add_adapter"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pefts_file_holds_no_bias_of_the_trained_head(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["query"], bias="all")
    model = peft.get_peft_model(classifier("sequence", "bert"), config)
    zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=3)
    model.save_pretrained(tmp_path)
    assert not [key for key in load_file(tmp_path / "adapters/default/adapter_model.safetensors") if "prompts" in key]


def test_an_adapter_that_cannot_be_merged_is_refused(monkeypatch):
    def merge(*args, **kwargs):
        raise NotImplementedError

    model = adapted("a LoRA layer")
    monkeypatch.setattr(type(model.classifier), "merge", merge)
    with pytest.raises(zoo.UnsupportedError, match=r"cannot be merged into a copy.*train_head=False"):
        zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=3)
    assert not hasattr(model, "prompts")
    zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=3, train_head=False)
