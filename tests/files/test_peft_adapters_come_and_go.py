"""Adapters that are loaded beside prompts, put on after them, left out of a file, or chosen row by row."""

import warnings

import peft
import pytest
import torch
from helpers.adapted_models import TARGETS, TEXT, WAYS, adapted, inside, lora, prompted, run

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal

BATCH = torch.cat([TEXT, TEXT.flip(1), TEXT])


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def plain(method="prompt_tuning", architecture="llama", name="mine"):
    return zoo.get_method(method)(tiny_model(architecture).eval(), name, num_virtual_tokens=3)


def config(architecture="llama"):
    return peft.LoraConfig(r=2, target_modules=TARGETS[architecture], init_lora_weights=False)


# Loaded


@WAYS
def test_a_directory_without_an_adapter_leaves_the_users_own_trainable(way, tmp_path):
    plain().save_pretrained(tmp_path)
    model = lora(way=way)
    before = {name for name in trained(inside(model)) if "lora_" in name}
    zoo.load(model, tmp_path)
    assert trained(inside(model)) == before == set(adapted(model))


def test_of_two_adapters_the_loaded_one_alone_is_frozen(tmp_path):
    prompted(way="injected").save_pretrained(tmp_path)
    model = tiny_model("llama")
    for name in ("other", "default"):
        model.add_adapter(config(), adapter_name=name)
    for name, parameter in adapted(model).items():
        parameter.requires_grad_(".other." in name)
    zoo.load(model, tmp_path)
    assert trained(model) == {name for name in adapted(model) if ".other." in name}


@pytest.mark.parametrize("trainable", [True, False])
def test_prompts_that_are_there_train_on_when_an_adapter_is_loaded_beside_them(trainable, tmp_path):
    prompted().save_pretrained(tmp_path)
    model = plain("prefix_tuning")
    mine = {name for name, _ in model.named_parameters() if name.startswith("prompts.mine.")}
    zoo.load(model, tmp_path, trainable=trainable)
    new = {*adapted(model), *(name for name, _ in model.named_parameters() if name.startswith("prompts.default."))}
    assert trained(model) == (mine | new if trainable else mine)


def test_detach_gives_the_base_back_its_gradients_after_a_load_with_an_adapter(tmp_path):
    prompted().save_pretrained(tmp_path)
    model = tiny_model("llama")
    before = dict(model.named_parameters())
    zoo.detach(zoo.load(model, tmp_path))
    assert all(parameter.requires_grad for parameter in before.values())
    assert not any(parameter.requires_grad for parameter in adapted(model).values())


@pytest.mark.parametrize("active", ["default", "second"])
def test_of_several_adapters_the_active_one_is_active_again(active, tmp_path):
    model = lora()
    model.add_adapter("second", config())
    zoo.get_method("prefix_tuning")(model.eval(), num_virtual_tokens=3)
    model.set_adapter(active)
    model.save_pretrained(tmp_path)
    assert_equal(run(zoo.load(tiny_model("llama").eval(), tmp_path)), run(model), active)


# Put on after the prompt


def test_an_adapter_that_is_added_later_leaves_prompts_trainable():
    model = plain()
    prompts = model.prompts
    model.add_adapter(config())
    assert model.prompts is prompts
    assert all(parameter.requires_grad for parameter in prompts.parameters())


@pytest.mark.parametrize("put_on", ["add_adapter", "get_peft_model"])
def test_detach_leaves_a_later_adapter_alone_and_gives_the_base_back(put_on):
    model = tiny_model("llama")
    frozen = model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    before = {name: parameter for name, parameter in model.named_parameters() if parameter is not frozen}
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=3)
    if put_on == "add_adapter":
        model.add_adapter(config())
    else:
        peft.get_peft_model(model, config())
    next(iter(adapted(model).values())).requires_grad_(False)  # as if the user had frozen it
    expected = {name: parameter.requires_grad for name, parameter in adapted(model).items()}
    zoo.detach(model)
    assert all(parameter.requires_grad for parameter in before.values())
    assert not frozen.requires_grad
    assert {name: parameter.requires_grad for name, parameter in adapted(model).items()} == expected
    assert sorted(set(expected.values())) == [False, True]


def test_detach_knows_parameters_that_were_replaced():
    with torch.device("meta"):
        model = tiny_model("llama")
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=3)
    model.to_empty(device="cpu")
    assert all(parameter.requires_grad for parameter in zoo.detach(model).parameters())


# Left out of a file


@WAYS
@pytest.mark.parametrize("is_folded", [False, True])
def test_an_export_to_peft_refuses_an_adapter_that_acts(way, is_folded, tmp_path):
    model = prompted(way=way)
    if is_folded:
        zoo.fold(model)
    with pytest.raises(zoo.UnsupportedError, match=r"'default' acts.*merge.*switch it off.*save_pretrained"):
        zoo.export(model, tmp_path, to="peft")
    assert not list(tmp_path.iterdir())


def in_peft(base, directory):
    model = peft.PeftModel.from_pretrained(base, directory).eval()
    with torch.no_grad():
        return model(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits[:, -TEXT.shape[1] :]


def test_an_export_of_what_is_switched_off_or_merged_is_what_peft_gives(tmp_path):
    model = prompted()
    with model.disable_adapter():
        zoo.export(model, tmp_path / "off", to="peft")
        assert_equal(in_peft(tiny_model("llama"), tmp_path / "off"), run(model), "without the adapter")
    base = lora().eval().merge_and_unload()
    merged = model.merge_and_unload()
    zoo.export(merged, tmp_path / "merged", to="peft")
    assert_equal(in_peft(base, tmp_path / "merged"), run(merged), "merged into the base")


def test_a_prompt_read_without_its_adapter_warns(tmp_path):
    prompted().save_pretrained(tmp_path / "both")
    plain(name="default").save_pretrained(tmp_path / "alone")
    model = tiny_model("llama")
    bank = zoo.PromptBank("memory://prompt-without-its-adapter", model)
    warns = pytest.warns(UserWarning, match=r"both holds adapters next to its prompt \('default'\).*different results")
    with warns:
        bank.import_folder(tmp_path, overwrite=True)
    with warns:
        zoo.blend([tmp_path / "both", tmp_path / "both"], model=model)
    with warns:
        zoo.get_method("prompt_tuning")(model, num_virtual_tokens=4, init=tmp_path / "both")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* holds adapters")
        bank.import_folder(tmp_path / "alone", overwrite=True)
        zoo.load(tiny_model("llama"), tmp_path / "both")


# Chosen row by row


def with_second(method, architecture="llama"):
    model = lora(architecture)
    model.add_adapter("second", config(architecture))
    zoo.get_method(method)(model.eval(), num_virtual_tokens=3)
    return model


@pytest.mark.parametrize(("method", "architecture"), [("prefix_tuning", "llama"), ("prompt_tuning", "bert")])
def test_rows_with_adapters_of_their_own(method, architecture):
    model = with_second(method, architecture)
    rows = run_rows(model)
    for row, name in enumerate(["default", "second"]):
        model.set_adapter(name)
        with torch.no_grad():
            assert_equal(rows[row : row + 1], model(input_ids=BATCH[row : row + 1]).logits, name)
    with model.disable_adapter(), torch.no_grad():
        assert_equal(rows[2:], model(input_ids=BATCH[2:]).logits, "the base")


def run_rows(model, **more):
    with torch.no_grad():
        return model(input_ids=BATCH, adapter_names=["default", "second", "__base__"], **more).logits


def test_rows_with_adapters_of_their_own_are_refused_where_all_share_one_pass():
    model = with_second("prompt_tuning")
    with torch.no_grad():
        before = model(input_ids=BATCH).logits  # the keys and values are cached
    names = ["default", "second", "__base__"]
    for call in (model, model.generate):
        with pytest.raises(zoo.UnsupportedError, match=r"adapter_names gives.*keys and values.*set_adapter"):
            call(input_ids=BATCH, adapter_names=names)
    with torch.no_grad():
        assert torch.equal(model(input_ids=BATCH).logits, before)  # PEFT has stored no names
    model.prompts.add("keys", "prefix_tuning", num_virtual_tokens=3)
    assert run_rows(model, prompts=["keys", None, "keys"]).shape[0] == 3
    with model.prompts.disabled():
        assert run_rows(model).shape[0] == 3
