"""Prompts as tokens of an ordinary checkpoint, and as bare embeddings: what other programs get, and what is refused."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import softprompt_zoo as zoo
from softprompt_zoo.operations.vocabulary_rows import output_row
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.sizes import ROTARY, VOCABULARY
from softprompt_zoo.testing.subject import Subject, assert_equal, random_text
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

TEXT = random_text(9, 1)
SENTENCE = " ".join(f"w{token}" if token > 4 else "[mask]" for token in TEXT[0].tolist())
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
STEPS = 8


def tied_llama():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, **ROTARY))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    model.generation_config.eos_token_id = None
    return model.eval()


MODELS = {
    "tied": tied_llama,
    "llama": lambda: tiny_model("llama"),
    "gemma3": lambda: tiny_model("gemma3"),  # scales its embeddings; tied
    "gpt2": lambda: tiny_model("gpt2"),  # learned positions; tied
    "phi": lambda: tiny_model("phi"),  # a bias at the head
}


def prompted(name="tied"):
    with torch.no_grad(), torch.random.fork_rng():
        made = MODELS[name]()
        torch.manual_seed(5)
        model = zoo.get_method("prompt_tuning")(made, "alice", num_virtual_tokens=4)
        model.prompts.add("bob", "p_tuning", num_virtual_tokens=3)
        for parameter in model.prompts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokenizer(words=VOCABULARY, template=TEMPLATE, **options):
    made = tiny_tokenizer(words, **options)
    made.chat_template = template
    return made


def export(model, folder, **options):
    zoo.export(model, folder, **{"to": "vocabulary", "tokenizer": tokenizer(), **options})
    return json.loads((folder / "soft_tokens.json").read_text())


FRESH = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
found = {}
for name in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{name}"
    model, words = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    index = json.load(open(f"{folder}/soft_tokens.json"))
    for prompt, entry in index["prompts"].items():
        inputs = words(entry["in_front"] + SENTENCE, return_tensors="pt")
        ids = inputs.input_ids
        with torch.no_grad():
            found[f"{name}.{prompt}.logits"] = model(input_ids=ids).logits[:, -LENGTH:].contiguous()
            options = {"max_new_tokens": STEPS, "do_sample": False, "attention_mask": torch.ones_like(ids)}
            found[f"{name}.{prompt}.ids"] = model.generate(ids, **options)[:, ids.shape[1]:].contiguous()
assert "softprompt_zoo" not in sys.modules
save_file(found, f"{sys.argv[1]}/found.safetensors")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Checkpoints of all models, and what a process without this package finds in them."""
    place = tmp_path_factory.mktemp("exported")
    for name in MODELS:
        export(prompted(name), place / name, name=["alice", "bob"])
    code = f"SENTENCE, LENGTH, STEPS = {SENTENCE!r}, {TEXT.shape[1]}, {STEPS}\n" + FRESH
    # In the folder of the models, from where this package is not found by chance.
    result = subprocess.run(
        [sys.executable, "-c", code, str(place), *MODELS], cwd=place, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return place


@pytest.mark.parametrize("prompt", ["alice", "bob"])
@pytest.mark.parametrize("name", MODELS)
def test_a_process_without_this_package_gets_the_same(exported, name, prompt):
    found = load_file(exported / "found.safetensors")
    subject = Subject(name, prompted(name))
    expected = subject.logits(TEXT, prompts=[prompt])
    assert_equal(found[f"{name}.{prompt}.logits"][..., :VOCABULARY], expected, "logits of the checkpoint")
    ids = subject.generate(TEXT, max_new_tokens=STEPS, do_sample=False, prompts=[prompt])
    assert torch.equal(found[f"{name}.{prompt}.ids"], ids[:, TEXT.shape[1] :])
    other = "bob" if prompt == "alice" else "alice"
    assert not torch.allclose(found[f"{name}.{other}.logits"][..., :VOCABULARY], expected, atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_it_loads_back(exported, name):
    loaded = Subject(name, zoo.load(MODELS[name](), exported / name))
    assert loaded.model.prompts.keys() == ["alice", "bob"]
    assert loaded.model.prompts.active == ("alice",)
    assert all(prompt.is_merged and prompt.method == "prompt_tuning" for prompt in loaded.model.prompts.values())
    before = Subject(name, prompted(name))
    for prompt in ("alice", "bob"):
        assert_equal(loaded.logits(TEXT, prompts=[prompt]), before.logits(TEXT, prompts=[prompt]), prompt)


def test_the_ids_are_those_behind_the_tokenizer(exported):
    index = json.loads((exported / "llama" / "soft_tokens.json").read_text())
    assert index["prompts"]["alice"]["ids"] == [101, 102, 103, 104]
    assert index["prompts"]["bob"]["ids"] == [105, 106, 107]
    words = AutoTokenizer.from_pretrained(exported / "llama")
    assert words(index["prompts"]["bob"]["in_front"] + "w7").input_ids == [105, 106, 107, 7]
    assert words.decode([105, 7, 8], skip_special_tokens=True) == "w7 w8"
    assert AutoModelForCausalLM.from_pretrained(exported / "llama").config.vocab_size == 108


def test_chats_get_the_prompt(exported):
    words = AutoTokenizer.from_pretrained(exported / "tied")
    chat = [{"role": "user", "content": "w5 w6"}]

    def ids(**options):
        return words.apply_chat_template(chat, return_dict=True, **options)["input_ids"]

    assert ids() == ids(soft_prompt="alice") == [101, 102, 103, 104, 5, 6]
    assert ids(soft_prompt="bob") == [105, 106, 107, 5, 6]
    assert ids(soft_prompt=None) == ids(soft_prompt="none") == ids(soft_prompt="") == [5, 6]
    with pytest.raises(Exception, match="unknown soft_prompt; this model has alice, bob"):
        ids(soft_prompt="carol")


def test_an_export_can_be_exported_again_with_a_prompt_more(exported, tmp_path):
    served = AutoModelForCausalLM.from_pretrained(exported / "llama")
    zoo.get_method("prompt_tuning")(served, "carol", num_virtual_tokens=2)
    expected = Subject("llama", served).logits(TEXT)
    export(served, tmp_path / "again", tokenizer=AutoTokenizer.from_pretrained(exported / "llama"))
    words = AutoTokenizer.from_pretrained(tmp_path / "again")

    def ids(**options):
        chat = [{"role": "user", "content": SENTENCE}]
        return words.apply_chat_template(chat, return_dict=True, return_tensors="pt", **options)["input_ids"]

    text = TEXT[0].tolist()
    assert ids()[0].tolist() == ids(soft_prompt="carol")[0].tolist() == [108, 109, *text]
    assert ids(soft_prompt="alice")[0].tolist() == [101, 102, 103, 104, *text]
    assert ids(soft_prompt=None)[0].tolist() == text
    with pytest.raises(Exception, match="unknown soft_prompt; this model has alice, bob, carol"):
        ids(soft_prompt="dave")
    again, first = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "again", exported / "llama"))
    with torch.no_grad():
        assert_equal(again(ids()).logits[:, 2:, :108], expected, "the new prompt")
        bob = ids(soft_prompt="bob")
        assert_equal(again(bob).logits[..., :108], first(bob).logits, "a prompt of the first export")


@pytest.mark.parametrize("name", ["auto", "none"])
def test_a_prompt_that_no_chat_could_name_is_refused(tmp_path, name):
    model = prompted()
    model.prompts.add(name, "prompt_tuning", num_virtual_tokens=2)
    for names in (name, ["alice", name]):
        refused(model, tmp_path, zoo.UnsupportedError, f"named '{name}' could not be asked for", name=names)


def test_a_prompt_that_no_chat_could_name_is_refused_in_an_earlier_export(tmp_path):
    export(prompted(), tmp_path / "first", name="alice")
    words = AutoTokenizer.from_pretrained(tmp_path / "first")
    words.chat_template = words.chat_template.replace('"alice": ', '"auto": ')
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    zoo.get_method("prompt_tuning")(served, "carol", num_virtual_tokens=2)
    refused(served, tmp_path, zoo.UnsupportedError, "named 'auto' could not be asked for", tokenizer=words)


def test_a_template_with_a_variable_of_that_name_is_refused(tmp_path):
    own = tokenizer(template="{{ soft_prompt }}" + TEMPLATE)
    with pytest.raises(zoo.UnsupportedError, match="has a variable 'soft_prompt' of its own"):
        export(prompted(), tmp_path / "out", tokenizer=own)
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("name", ["tied", "gemma3", "gpt2"])
def test_a_tied_model_never_samples_a_soft_token(exported, name):
    model = AutoModelForCausalLM.from_pretrained(exported / name)
    torch.manual_seed(0)
    start = torch.tensor([[101, 102, 103, 104, 7]]).expand(250, -1)
    options = {"attention_mask": torch.ones_like(start), "do_sample": True, "temperature": 5.0, "top_k": 0}
    new = model.generate(start, max_new_tokens=40, eos_token_id=None, **options)[:, 5:]
    assert new.numel() == 10_000
    assert len(new.unique()) > 90, "the sampling is not random enough to say anything"
    assert int(new.max()) < VOCABULARY


@pytest.mark.parametrize("name", MODELS)
def test_the_output_rows_lose_whatever_the_hidden_state(exported, name):
    """Without any help from `generate`: other engines have the rows alone."""
    model = AutoModelForCausalLM.from_pretrained(exported / name)
    head, table = model.get_output_embeddings(), model.get_input_embeddings().weight
    torch.manual_seed(0)
    states = torch.randn(100_000, head.weight.shape[1])
    # And states that favour a soft token as far as any can.
    states = torch.cat([states, head.weight.detach(), 10 * head.weight.detach(), table.detach()])
    logits = head(states)
    assert (logits[:, VOCABULARY:].amax(1) < logits[:, :VOCABULARY].amax(1)).all()
    naive = torch.nn.functional.linear(states, table)
    assert (naive.argmax(1) >= VOCABULARY).any(), "tied rows would win, which shows that the test can fail"


def test_the_output_row_is_a_mean_of_rows():
    head = torch.nn.Linear(8, 50, bias=False)
    row, bias = output_row(head, unlikely=7, known=40)
    assert bias is None
    assert torch.allclose(row, 0.98 * head.weight[7].double() + 0.02 * head.weight[:40].double().mean(0))


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
    with pytest.raises(zoo.UnsupportedError, match="has 3 tasks, of which to='vocabulary' holds one; choose it"):
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


@pytest.mark.parametrize("name", ["tied", "gemma3"])
def test_bare_embeddings(tmp_path, name):
    model = prompted(name)
    zoo.export(model, tmp_path / "out", to="embeddings", name=["bob", "alice"])
    bare = load_file(tmp_path / "out" / "prompt_embeds.safetensors")
    assert {key: tuple(value.shape) for key, value in bare.items()} == {"alice": (4, 32), "bob": (3, 32)}
    assert np.array_equal(np.load(tmp_path / "out" / "bob.npy"), bare["bob"].numpy())
    base = MODELS[name]()
    joined = torch.cat([bare["bob"][None], base.get_input_embeddings()(TEXT).detach()], dim=1)
    expected = Subject(name, model).logits(TEXT, prompts=["bob"])
    with torch.no_grad():
        assert_equal(base(inputs_embeds=joined).logits[:, 3:], expected, "the base model on embeddings")
    loaded = zoo.load(base, tmp_path / "out")
    assert loaded.prompts.active == ("bob", "alice")
    assert_equal(Subject(name, loaded).logits(TEXT, prompts=["bob"]), expected, "loaded back")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| `bob` | 3 | 32 |" in readme
    assert "prompt_embeds" in readme


def test_encoders_write_embeddings_only(tmp_path):
    model = zoo.get_method("prompt_tuning")(tiny_model("bert"), num_virtual_tokens=4)
    zoo.export(model, tmp_path / "bare", to="embeddings")
    assert_equal(
        Subject("bert", zoo.load(tiny_model("bert"), tmp_path / "bare")).logits(TEXT),
        Subject("bert", model).logits(TEXT),
        "loaded back",
    )
    with pytest.raises(zoo.UnsupportedError, match="BertForMaskedLM is not a causal model"):
        export(model, tmp_path / "out")


def refused(model, folder, error, text, **options):
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=text):
        export(model, folder / "made" / "out", **options)
    assert sorted(folder.rglob("*")) == before


def test_refusals_leave_nothing(tmp_path, monkeypatch):
    model = prompted()
    model.prompts.add("keys", "prefix", num_virtual_tokens=2)
    refused(model, tmp_path, zoo.UnsupportedError, "'keys' has keys and values, which are not embeddings", name="keys")
    refused(model, tmp_path, zoo.UnsupportedError, 'export it with to="peft"', name="keys", to="embeddings")
    refused(model, tmp_path, TypeError, "tokenizer is NoneType; expected the model's tokenizer", tokenizer=None)
    refused(model, tmp_path, zoo.UnknownPromptError, "no prompt 'carol'", name="carol")
    refused(model, tmp_path, zoo.UnsupportedError, "has 150 tokens and .* 101 rows", tokenizer=tokenizer(words=150))
    taken = tokenizer()
    taken.add_tokens(["<|soft_alice_0|>"])
    refused(model, tmp_path, zoo.UnsupportedError, "has 102 tokens and", tokenizer=taken)
    taken = tokenizer(words=90)
    taken.add_tokens(["<|soft_alice_0|>"])
    refused(model, tmp_path, zoo.UnsupportedError, "has a token '<|soft_alice_0|>' already", tokenizer=taken)
    vocabulary = {"[unk]": 0, "w5": 5}  # four tokens more get the ids 2 to 5
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
    with pytest.raises(ValueError, match="is the current folder or a mounted one"):
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


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    zoo.export(prompted(), tmp_path / "link", to="embeddings")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "alice.npy").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


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
