"""What becomes tokens: active prompts, tasks, half precision; with which template and table, in which files."""

import copy

import numpy as np
import pytest
import torch
from helpers.vocabulary_exports import SENTENCE, TEMPLATE, TEXT, export, prompted, tied_llama, tokenizer
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.sizes import VOCABULARY
from softprompt_zoo.testing.subject import Subject


@pytest.mark.parametrize("template", ["\n  {% if true %}w5{% endif %}", "  w5", "{%- if true %} w5{% endif %}\n"])
def test_a_template_that_begins_with_blanks_keeps_them(tmp_path, template):
    export(prompted(), tmp_path / "out", tokenizer=tokenizer(template=template), name="bob")
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "w5"}]
    before = tokenizer(template=template).apply_chat_template(chat, tokenize=False)
    soft = "<|soft_bob_0|><|soft_bob_1|><|soft_bob_2|>"
    assert words.apply_chat_template(chat, tokenize=False) == soft + before


def test_active_prompts_stand_together(tmp_path):
    model = prompted()
    model.prompts.activate("bob", "alice")
    index = export(model, tmp_path / "out")
    assert index["active"] == ["bob", "alice"]
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = words(index["in_front"] + SENTENCE, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(input_ids=ids).logits
    assert_equal(logits[:, 7:, :VOCABULARY], Subject("llama", model).logits(TEXT), "both")
    assert zoo.load(tied_llama(), tmp_path / "out").prompts.active == ("bob", "alice")


def test_a_begin_token_stands_behind_the_prompt(tmp_path):
    index = export(prompted(), tmp_path / "out", tokenizer=tokenizer(with_special_tokens=True), name="bob")
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert not index["add_special_tokens"]
    assert words(index["in_front"] + "w7", add_special_tokens=False).input_ids == [101, 102, 103, 1, 7]


def test_a_table_with_room_is_not_made_larger(tmp_path):
    index = export(prompted(), tmp_path / "out", tokenizer=tokenizer(words=90))
    assert index["prompts"]["bob" if "bob" in index["prompts"] else "alice"]["ids"][0] == 90
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY
    old = tied_llama().get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:90], old[:90])
    assert torch.equal(model.get_output_embeddings().weight[:90], old[:90])


def test_the_users_objects_are_not_changed(tmp_path):
    model, words = prompted(), tokenizer()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config, generation, tokens = model.config.to_dict(), model.generation_config.to_dict(), copy.copy(words.get_vocab())
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    zoo.export(model, tmp_path / "out", to="vocabulary", tokenizer=words, name="alice")
    assert model.training
    assert model.prompts["bob"].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert model.generation_config.to_dict() == generation
    assert words.get_vocab() == tokens
    assert words.chat_template == TEMPLATE
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == grads
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.prompts.active == ("alice",)
    model.eval()
    zoo.detach(model)


def test_half_precision(tmp_path):
    model = prompted().bfloat16()
    export(model, tmp_path / "out", name="alice")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert made.dtype == torch.bfloat16
    assert torch.equal(made.get_input_embeddings().weight[101:], model.prompts["alice"].learned.embeddings)
    zoo.export(model, tmp_path / "bare", to="embeddings", name="alice")
    bare = load_file(tmp_path / "bare" / "prompt_embeds.safetensors")["alice"]
    assert bare.dtype == torch.bfloat16
    assert np.load(tmp_path / "bare" / "alice.npy").dtype == np.float32


def test_one_task_of_several(tmp_path):
    model = zoo.get_method("mpt")(tiny_model("llama"), num_virtual_tokens=4, num_tasks=3)
    Subject("llama", model).disturb("default")
    with pytest.raises(zoo.UnsupportedError, match="has 3 tasks, but to='vocabulary' holds one; choose it"):
        export(model, tmp_path / "out")
    with pytest.raises(ValueError, match="task is 3; prompt 'default' has 3 tasks, counted from 0"):
        export(model, tmp_path / "out", task=3)
    assert not list(tmp_path.iterdir())
    export(model, tmp_path / "out", task=2)
    loaded = Subject("llama", zoo.load(tiny_model("llama"), tmp_path / "out"))
    with torch.no_grad():
        expected = model(input_ids=TEXT, task_ids=torch.tensor([2])).logits
    assert_equal(loaded.logits(TEXT), expected, "the task")


def test_a_model_without_a_head(tmp_path):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama").model, num_virtual_tokens=4)
    index = export(model, tmp_path / "out")
    plain = AutoModel.from_pretrained(tmp_path / "out").eval()
    ids = torch.cat([torch.tensor([index["prompts"]["default"]["ids"]]), TEXT], dim=1)
    assert_equal(plain(ids).last_hidden_state[:, 4:], model(TEXT).last_hidden_state, "states of the text")


@pytest.mark.parametrize("to", ["vocabulary", "embeddings"])
def test_a_prompt_with_tasks_beside_one_without(tmp_path, to):
    tasks = zoo.get_method("mpt").configure(num_virtual_tokens=4, num_tasks=3)
    model = zoo.combine("prompt_tuning", tasks)(tied_llama())
    options = {"to": to, "tokenizer": tokenizer()}
    zoo.export(model, tmp_path / "out", task=2, **options)
    loaded = Subject("llama", zoo.load(tied_llama(), tmp_path / "out"))
    expected = Subject("llama", model).logits(TEXT, task_ids=[2])
    assert_equal(loaded.logits(TEXT), expected, "both prompts")
    with pytest.raises(ValueError, match="the prompts have no tasks; leave it out"):
        zoo.export(model, tmp_path / "plain", task=2, name="prompt_tuning", **options)


def test_shards_load_back(tmp_path):
    model = prompted()
    export(model, tmp_path / "out", name="alice")
    words, made = (
        AutoTokenizer.from_pretrained(tmp_path / "out"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
    )
    (tmp_path / "out" / "model.safetensors").unlink()
    made.save_pretrained(tmp_path / "out", max_shard_size="20KB")
    words.save_pretrained(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    loaded = Subject("llama", zoo.load(tied_llama(), tmp_path / "out"))
    assert_equal(loaded.logits(TEXT), Subject("llama", model).logits(TEXT, prompts=["alice"]), "from shards")
