"""What rows see of a bank's prompts: the same as if the prompts were the model's own, and always as they are now."""

import random
import re

import pytest
import torch
from helpers.bank_models import METHODS, TEXT, assert_equal, prompted, random_text
from helpers.classifiers import classifier

import softprompt_zoo as zoo
from softprompt_zoo.sites.shared_pass import causal_prefix
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import Subject

pytestmark = pytest.mark.filterwarnings("ignore:prompt .* was active and is removed:UserWarning")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_rows_see_a_bank_as_they_see_the_models_own(architecture, tmp_path):
    names = [name for name in METHODS if name != "deep" or architecture != "t5"]
    model = prompted(architecture, names)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add_many(model.prompts)
    rows = ["words", ["prefix", "words"], None, "made"]
    subject = Subject(architecture, model)
    expected = subject.logits(TEXT, prompts=rows)
    continued = subject.generate(TEXT, prompts=rows, max_new_tokens=4) if model.can_generate() else None
    for name in ("words", "prefix"):
        model.prompts.remove(name)
    model.prompts.bank = bank
    assert_equal(subject.logits(TEXT, prompts=rows), expected)
    if continued is not None:
        assert torch.equal(subject.generate(TEXT, prompts=rows, max_new_tokens=4), continued)
    base = subject.logits(TEXT, prompts=[None] * 4)
    assert not torch.allclose(base[0], expected[0], atol=1e-3)
    assert_equal(base[2:3], expected[2:3])


def test_a_half_precision_bank_gives_what_the_rounded_prompt_gives(tmp_path):
    model = prompted(names=["prefix"])
    bank = zoo.PromptBank(tmp_path / "bank", model, dtype=torch.float16)
    bank.add("rounded", model.prompts["prefix"])
    for parameter in model.prompts.parameters():
        parameter.data = parameter.data.half().float()
    model.prompts.bank = bank
    subject = Subject("llama", model)
    assert_equal(subject.logits(TEXT, prompts="rounded"), subject.logits(TEXT, prompts="prefix"))
    assert bank["rounded"].learned.tensors["decoder"].dtype == torch.float16
    model.to(torch.bfloat16)
    assert bank.prepare(["rounded"])[0].tokens.sites["decoder"].keys[0].dtype == torch.bfloat16


def test_own_names_win_and_none_is_saved(tmp_path):
    model = prompted(names=["words", "prefix"])
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("words", model.prompts["prefix"])
    subject = Subject("llama", model)
    expected = subject.logits(TEXT, prompts="words")
    keys = list(model.state_dict())
    model.prompts.bank = bank
    assert torch.equal(subject.logits(TEXT, prompts="words"), expected)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path / "saved")
    assert zoo.load(tiny_model("llama"), tmp_path / "saved").prompts.keys() == ["words", "prefix"]
    with pytest.raises(zoo.UnknownPromptError, match=r"no prompt 'new'; the model has 'words', 'prefix'$"):
        model.prompts.activate("new")
    model.prompts.bank = None
    assert model.prompts.bank is None


def test_a_prompt_of_the_models_may_be_called_bank(tmp_path):
    model = tiny_model("llama")
    zoo.get_method("prompt_tuning")(model, "bank", num_virtual_tokens=2)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    model.prompts.bank = bank
    assert model.prompts.bank is bank
    assert model.prompts["bank"].method == "prompt_tuning"


def test_a_missing_name_says_its_row(filled):
    bank, model = filled
    model.prompts.remove("prefix")
    model.prompts.bank = bank
    rows = ["words"] * 7 + [["prefix", "nobody"]]
    text = random_text(5, 8)
    for call in (model, model.generate):
        with pytest.raises(zoo.UnknownPromptError) as raised:
            call(input_ids=text, prompts=rows)
        assert "no prompt 'nobody', named in prompts[7]; the model has 'words'" in str(raised.value)
        assert f"its bank {bank.address} has no prompt of that name" in str(raised.value)


def test_what_takes_a_prompt_of_the_models_says_that_the_bank_has_it(filled):
    bank, model = filled
    for name in ("prefix", "deep", "made"):
        model.prompts.remove(name)
    model.prompts.bank = bank
    advice = re.escape(
        f"no prompt 'prefix'; the model has 'words'; its bank {bank.address} has it: name it in prompts=[…] of a call, "
        "or put a copy on the model with model.prompts.add('prefix', model.prompts.bank.get('prefix'))"
    )
    for call in (
        lambda: model.prompts.activate("words", "prefix"),
        lambda: model.prompts.set_weight("prefix", 0.5),
        lambda: model.prompts["prefix"],
    ):
        with pytest.raises(zoo.UnknownPromptError, match=advice):
            call()
    with pytest.raises(
        zoo.UnknownPromptError, match=r"has it: model\.prompts\.bank\.delete\('prefix'\) deletes it there"
    ):
        model.prompts.remove("prefix")
    assert model.prompts.active == ("words",)
    assert "prefix" in bank
    expected = model(input_ids=TEXT, prompts="prefix").logits
    model.prompts.add("prefix", model.prompts.bank.get("prefix"))  # as the message says
    model.prompts.bank = None
    assert_equal(model(input_ids=TEXT, prompts="prefix").logits, expected)
    model.prompts.bank = bank
    bank.close()
    with pytest.raises(zoo.UnknownPromptError, match=r"the model has 'words', 'prefix'$"):
        model.prompts.remove("made")


def test_gradients_go_to_own_prompts_alone(tmp_path):
    model = prompted(names=["words", "prefix"])
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add_many({"lent": model.prompts["prefix"], "other": model.prompts["words"]})
    with torch.inference_mode():
        model(input_ids=TEXT[:2], prompts=["words", "words"])
    model.prompts.bank = bank
    with torch.inference_mode():
        model(input_ids=TEXT[:2], prompts=["lent", "other"])
    model.train()
    ids = TEXT
    model(input_ids=ids, labels=ids, prompts=[["lent", "words"], "words", "lent", "other"]).loss.backward()
    assert model.prompts["words"].learned.embeddings.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.prompts["prefix"].parameters())
    assert not bank.prepare(["other"])[0].tokens.embeddings.requires_grad


def test_a_prompt_is_computed_once_per_text_and_a_replaced_one_is_noticed(filled, monkeypatch):
    bank, model = filled
    for name in METHODS:
        model.prompts.remove(name)
    model.prompts.bank = bank
    subject = Subject("llama", model)
    passes = []
    monkeypatch.setattr(
        "softprompt_zoo.sites.decoding_state.causal_prefix", lambda *given: passes.append(1) or causal_prefix(*given)
    )
    subject.generate(TEXT, prompts="words", max_new_tokens=4, do_sample=False)
    assert len(passes) == 1
    before = subject.logits(TEXT, prompts="words")
    first = bank.prepare(["words"])[0]
    assert bank.prepare(["words"])[0] is first
    other = prompted(names=["words"], seed=5)
    bank.add("words", other.prompts["words"], overwrite=True)
    after = subject.logits(TEXT, prompts="words")
    assert not torch.allclose(before, after, atol=1e-3)
    assert_equal(after, Subject("llama", with_weights_of(model, other)).logits(TEXT, prompts="words"))
    bank.delete("words")
    with pytest.raises(zoo.UnknownPromptError):
        subject.logits(TEXT, prompts="words")


def with_weights_of(model, other):
    base = tiny_model("llama")
    zoo.get_method("prompt_tuning")(base, "words", num_virtual_tokens=3)
    base.prompts["words"].load_state_dict(other.prompts["words"].state_dict())
    return base


def test_decoding_goes_on_with_the_prompt_it_began_with(filled):
    bank, model = filled
    model.prompts.remove("words")
    model.prompts.bank = bank
    ids = TEXT[:1]
    expected = model(input_ids=torch.cat([ids, ids], dim=1), prompts="words").logits[:, ids.shape[1] :]
    with torch.no_grad():
        cache = model(input_ids=ids, prompts="words", use_cache=True).past_key_values
        bank.add("words", model.prompts["made"], overwrite=True)
        continued = model(input_ids=ids, prompts="words", past_key_values=cache).logits
    assert_equal(continued, expected)


def test_a_trained_head_comes_with_its_prompt(tmp_path):
    model = zoo.get_method("p_tuning_v2")(classifier("sequence", "bert"), "film", num_virtual_tokens=3)
    for parameter in model.prompts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("film", model.prompts["film"])
    rows = ["film", None, "film", None]
    expected = model(input_ids=TEXT, prompts=rows).logits
    model.prompts.remove("film")
    model.prompts.bank = bank
    assert_equal(model(input_ids=TEXT, prompts=rows).logits, expected)
    assert bank["film"].head is not None
    other = zoo.PromptBank(tmp_path / "bank", classifier("sequence", "bert").base_model)
    with pytest.raises(zoo.BackboneMismatchError, match=r"entry 'film' .* has a trained (task )?head 'classifier'"):
        other.get("film")


def test_tasks_of_a_multitask_prompt(tmp_path):
    model = zoo.get_method("mpt")(tiny_model("llama"), "many", num_virtual_tokens=3, num_tasks=3)
    for parameter in model.prompts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tasks = [2, 0, 1, 2]
    expected = model(input_ids=TEXT, prompts="many", task_ids=tasks).logits
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("many", model.prompts["many"])
    model.prompts.remove("many")
    model.prompts.bank = bank
    assert_equal(model(input_ids=TEXT, prompts="many", task_ids=tasks).logits, expected)


def test_the_cache_is_bounded(tmp_path):
    model = prompted()
    size = 3 * 32 * 4
    bank = zoo.PromptBank(tmp_path / "bank", model, cache_bytes=5 * size)
    bank.add_many({f"p{index}": model.prompts["words"] for index in range(20)})
    for _ in range(5):
        bank.prepare(random.sample([f"p{index}" for index in range(20)], 8))
        assert bank._cache.size == sum(ready.size for ready in bank._cache._entries.values())
        assert bank._cache.size <= 5 * size
        assert len(bank._cache) == 5
    kept = next(iter(bank._cache._entries.values()))
    assert kept.placement.tokens.embeddings.untyped_storage().nbytes() < 2 * size
    model.prompts.bank = bank
    text = random_text(4, 8)
    rows = [f"p{index}" for index in range(8)]
    expected = model.generate(
        text, attention_mask=torch.ones_like(text), prompts=["words"] * 8, max_new_tokens=3, do_sample=False
    )
    assert torch.equal(
        model.generate(text, attention_mask=torch.ones_like(text), prompts=rows, max_new_tokens=3, do_sample=False),
        expected,
    )
