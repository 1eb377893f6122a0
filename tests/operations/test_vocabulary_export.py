"""Prompts exported as tokens of an ordinary checkpoint, and what a process without this package finds there."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.vocabulary_exports import MODELS, SENTENCE, TEXT, export, prompted
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import softprompt_zoo as zoo
from softprompt_zoo.operations.vocabulary_rows import output_row
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.sizes import VOCABULARY
from softprompt_zoo.testing.subject import Subject

STEPS = 8
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
    """Return the folder of all models' checkpoints and of what a process without this package finds in them."""
    place = tmp_path_factory.mktemp("exported")
    for name in MODELS:
        export(prompted(name), place / name, name=["alice", "bob"])
    code = f"SENTENCE, LENGTH, STEPS = {SENTENCE!r}, {TEXT.shape[1]}, {STEPS}\n" + FRESH
    # Run in the folder of the models, where this package cannot be found by chance.
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
    """Without any help from `generate`: other engines have only the rows."""
    model = AutoModelForCausalLM.from_pretrained(exported / name)
    head, table = model.get_output_embeddings(), model.get_input_embeddings().weight
    torch.manual_seed(0)
    states = torch.randn(100_000, head.weight.shape[1])
    # Add states that favor a soft token as much as any can.
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
