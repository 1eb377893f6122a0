"""Prompts that cannot be exported, or read back, are refused, and nothing is left behind."""

import json
import os

import pytest
import torch
from helpers.vocabulary_exports import TEMPLATE, export, prompted, refused, tied_llama, tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.sizes import VOCABULARY


@pytest.mark.parametrize("name", ["auto", "none"])
def test_a_prompt_that_no_chat_could_name_is_refused(tmp_path, name):
    model = prompted()
    model.prompts.add(name, "prompt_tuning", num_virtual_tokens=2)
    for names in (name, ["alice", name]):
        refused(model, tmp_path, zoo.UnsupportedError, f"named '{name}' could not be selected", name=names)


def test_a_prompt_that_no_chat_could_name_is_refused_in_an_earlier_export(tmp_path):
    export(prompted(), tmp_path / "first", name="alice")
    words = AutoTokenizer.from_pretrained(tmp_path / "first")
    words.chat_template = words.chat_template.replace('"alice": ', '"auto": ')
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    zoo.get_method("prompt_tuning")(served, "carol", num_virtual_tokens=2)
    refused(served, tmp_path, zoo.UnsupportedError, "named 'auto' could not be selected", tokenizer=words)


def test_a_template_with_a_variable_of_that_name_is_refused(tmp_path):
    own = tokenizer(template="{{ soft_prompt }}" + TEMPLATE)
    with pytest.raises(zoo.UnsupportedError, match="already has a variable 'soft_prompt'"):
        export(prompted(), tmp_path / "out", tokenizer=own)
    assert not (tmp_path / "out").exists()


def test_refusals_leave_nothing(tmp_path, monkeypatch):
    model = prompted()
    model.prompts.add("keys", "prefix", num_virtual_tokens=2)
    refused(model, tmp_path, zoo.UnsupportedError, "'keys' has keys and values, which are not embeddings", name="keys")
    refused(model, tmp_path, zoo.UnsupportedError, 'export it with to="peft"', name="keys", to="embeddings")
    refused(model, tmp_path, TypeError, "tokenizer is NoneType; expected the model's tokenizer", tokenizer=None)
    refused(model, tmp_path, zoo.UnknownPromptError, "no prompt 'carol'", name="carol")
    refused(model, tmp_path, zoo.UnsupportedError, "has 150 tokens, but .* 101 rows", tokenizer=tokenizer(words=150))
    taken = tokenizer()
    taken.add_tokens(["<|soft_alice_0|>"])
    refused(model, tmp_path, zoo.UnsupportedError, "has 102 tokens, but", tokenizer=taken)
    taken = tokenizer(words=90)
    taken.add_tokens(["<|soft_alice_0|>"])
    refused(model, tmp_path, zoo.UnsupportedError, "has a token '<|soft_alice_0|>' already", tokenizer=taken)
    vocabulary = {"[unk]": 0, "w5": 5}  # four more tokens get the ids 2 to 5
    gaps = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[unk]")))
    refused(model, tmp_path, zoo.UnsupportedError, "a new token the id 5, which another token has", tokenizer=gaps)
    model.prompts.activate()
    refused(model, tmp_path, zoo.UnsupportedError, "no prompt is active; name one")
    (tmp_path / "file").write_text("mine")
    for to in ("vocabulary", "embeddings"):
        with pytest.raises(ValueError, match="exists and is not an empty folder"):
            zoo.export(model, tmp_path, to=to, tokenizer=tokenizer(), name="alice")
        with pytest.raises(ValueError, match="exists and is not an empty folder"):
            zoo.export(model, tmp_path / "file", to=to, tokenizer=tokenizer(), name="alice")
    with model.prompts.disabled():
        refused(model, tmp_path, zoo.UnsupportedError, "leave prompts.disabled()", name="alice")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="is the current folder or a mount point"):
        zoo.export(model, "", to="embeddings", name="alice")
    assert os.getcwd() == str(tmp_path / "here")
    meta = zoo.get_method("prompt")(tied_llama().to("meta"), num_virtual_tokens=2)
    refused(meta, tmp_path, zoo.UnsupportedError, "weights on the meta device")


@pytest.mark.parametrize("to", ["vocabulary", "embeddings"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value, to, tmp_path):
    model = prompted()
    with torch.no_grad():
        next(model.prompts["alice"].parameters())[2, 3] = value
    with pytest.raises(zoo.UnsupportedError, match="'alice' holds NaN or infinity in 'embeddings'"):
        export(model, tmp_path / "out", to=to, name="alice")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix"])
def test_what_is_not_finite_is_refused_for_peft(value, method, tmp_path):
    model = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=3)
    with torch.no_grad():
        next(model.prompts.parameters()).view(-1)[2] = value
    with pytest.raises(zoo.UnsupportedError, match="holds NaN or infinity in 'prompt_embeddings'"):
        zoo.export(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["vocabulary", "embeddings"])
def test_numbers_too_large_for_the_file_are_refused(to, tmp_path):
    model = prompted().half()
    model.prompts.float()
    with torch.no_grad():
        next(model.prompts["alice"].parameters())[2, 3] = 1e6
    refused(model, tmp_path, zoo.UnsupportedError, "has numbers up to 1e.06 in 'embeddings'", to=to, name="alice")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(tokenizer()), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        export(prompted(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", full)
    for to in ("vocabulary", "embeddings"):
        with pytest.raises(OSError, match="No space left"):
            zoo.export(prompted(), tmp_path / "out", to=to, tokenizer=tokenizer())
        assert not list(tmp_path.iterdir())


def test_a_model_that_does_more_with_ids_is_refused(tmp_path):
    model = prompted()
    inner = model.model

    class Moved(type(inner)):
        def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
            extra = 0 if input_ids is None else (input_ids[..., None] >= VOCABULARY).float()
            embeds = self.embed_tokens(input_ids) + extra if inputs_embeds is None else inputs_embeds
            return super().forward(inputs_embeds=embeds, **kwargs)

    inner.__class__ = Moved
    refused(model, tmp_path, zoo.UnsupportedError, "so it does more with token ids than look up their embeddings")


def test_damaged_exports_are_refused(tmp_path):
    export(prompted(), tmp_path / "out", name="alice")
    path = tmp_path / "out" / "soft_tokens.json"
    index = json.loads(path.read_text())
    del index["checksum"]
    for change, text in (
        ({"tensor": "model.nothing"}, "has no tensor 'model.nothing'"),
        ({"format": 9}, "has format 9, this version reads 1"),
        ({"prompts": {"alice": {}}}, "ids is missing"),
        ({"prompts": {"alice": {"ids": [500], "tokens": [], "in_front": None}}}, "ids up to 500"),
    ):
        path.write_text(json.dumps({**index, **change}))
        with pytest.raises(zoo.CheckpointError, match=text):
            zoo.load(tied_llama(), tmp_path / "out")
    path.write_text(json.dumps(index))
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    with pytest.raises(zoo.CheckpointError, match="truncated or not a safetensors file"):
        zoo.load(tied_llama(), tmp_path / "out")
    zoo.export(prompted(), tmp_path / "bare", to="embeddings")
    with pytest.raises(zoo.BackboneMismatchError, match=r"this model needs .tokens, 16"):
        zoo.load(tiny_model("opt_narrow"), tmp_path / "bare")
    (tmp_path / "bare" / "prompt_embeds.safetensors").unlink()
    with pytest.raises(zoo.CheckpointError, match="is missing"):
        zoo.load(tied_llama(), tmp_path / "bare")
