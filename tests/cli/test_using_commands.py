"""`evaluate`, `generate`, `inspect`, `export`, `import`, and `bank` on a prompt that `train` has trained."""

import json
import re
import shutil

import torch
from helpers.commands import invoke, refusal
from helpers.tiny_runs import save_tiny
from transformers import AutoModelForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model


def test_evaluate_prints_the_same_table(place):
    words = ("--data", place / "data.jsonl", "--metric-rows", 2, "--handwritten", "w1", "--dtype", "float32")
    result = invoke("evaluate", place / "model", place / "run", *words)
    assert result.exit_code == 0, result.output
    assert re.search(r"trained prompt +│ +3 │", result.stdout)
    assert "hand-written prompt" in result.stdout
    assert "is not a folder" in refusal("evaluate", place / "model", place / "nowhere", *words)


def test_evaluate_says_how_many_rows_it_left_out(place):
    words = ("--data", place / "data.jsonl", "--metric-rows", 1, "--dtype", "float32", "--max-length", 9)
    result = invoke("evaluate", place / "model", place / "run", *words)
    assert re.search(r"left out \d+ rows of more than --max-length 9", result.stdout)
    for name in ("metric_rows", "max_length"):
        words = ("--data", place / "data.jsonl", "--" + name.replace("_", "-"), 0)
        assert f"{name} is 0; expected an integer" in refusal("evaluate", place / "model", place / "run", *words)


def test_what_the_model_has_no_place_for_is_refused_in_one_line(place, tmp_path):
    model, run = tmp_path / "model", tmp_path / "run"
    save_tiny(model, "gpt2")
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"input": "w1 " * 70, "target": "w2"}) + "\n")
    zoo.get_method("prompt")(tiny_model("gpt2"), num_virtual_tokens=3).save_pretrained(run)
    assert "but the model has 64; shorten the text" in refusal("evaluate", model, run, "--data", data)
    assert "but the model has 64; shorten the text" in refusal("generate", model, run, "w1 " * 70)
    assert "70 tokens, more than the model has positions" in refusal("generate", model, "--no-prompt", "w1 " * 70)
    assert "has no tokens in the template" in refusal("generate", model, run, "")
    long = invoke("generate", model, "--no-prompt", "w1", "w1 w2", "--max-new-tokens", 500)
    assert long.exit_code == 0, long.output
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["w1"] = 500
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "the tokenizer gives the id 500" in refusal("generate", model, run, "w1")


def test_generate_writes_a_line_per_text(place):
    model, words = place / "model", ("--max-new-tokens", 4, "--dtype", "float32")
    result = invoke("generate", model, place / "run", "w1 w2", "w3", *words)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 2
    assert invoke("generate", model, place / "run", *words, input="w1 w2\nw3\n").stdout == result.stdout
    bare = invoke("generate", model, "w1 w2", "--no-prompt", *words, "--template", r"{input} :\n")
    assert bare.exit_code == 0
    assert len(bare.stdout.splitlines()) == 1


def test_a_blank_line_of_texts_stays_blank(place):
    words = ("generate", place / "model", place / "run", "--max-new-tokens", 4, "--dtype", "float32")
    first, second = (invoke(*words, text).stdout for text in ("w1 w2", "w3"))
    assert invoke(*words, input="\nw1 w2\n \t\r\nw3\n").stdout == f"\n{first}\n{second}"


def test_generate_refuses_in_one_line(place):
    assert "no PROMPT_FOLDER given" in refusal("generate", place / "model")
    assert "is not a folder" in refusal("generate", place / "model", "w1 w2")
    for text in ("", "\n \n"):
        assert "no TEXT given" in refusal("generate", place / "model", place / "run", input=text)
    assert "is not a folder; give a folder with a model" in refusal("generate", "./nowhere", place / "run", "w1")
    assert "is not a folder; give a folder with a model" in refusal(
        "generate", place / "data.jsonl", place / "run", "w1"
    )
    assert "template" in refusal("generate", place / "model", place / "run", "w1", "--template", "none")


def test_generate_uses_the_template_of_the_training(place, tmp_path):
    words = ("w1", "--dtype", "float32")
    given = invoke("generate", place / "model", place / "run", *words, "--template", r"{input} :\n")
    assert invoke("generate", place / "model", place / "run", *words, "--template", "{input}").stdout != given.stdout
    for folder in (place / "run", place / "run" / "checkpoint-2"):
        assert invoke("generate", place / "model", folder, *words).stdout == given.stdout


def test_another_programs_record_is_not_read(place, tmp_path):
    words = ("w1 w2", "--dtype", "float32")
    shutil.copytree(place / "run", tmp_path / "run")
    expected = invoke("generate", place / "model", tmp_path / "run", *words, "--template", r"{input}\n").stdout
    for settings in ([], {"template": 5}, {"template": "{input} :"}):
        (tmp_path / "run" / "training.json").write_text(json.dumps({"settings": settings}))
        assert invoke("generate", place / "model", tmp_path / "run", *words).stdout == expected


def test_inspect_prints_tables_and_writes_a_picture_and_a_page(place, tmp_path):
    small = ("--steps", 1, "--metric-rows", 1, "--option", "num_virtual_tokens=3", "--option", "init=text")
    words = ("--data", place / "data.jsonl", "--output", tmp_path / "run", "--option", "init_text=w5 w17 w30")
    assert invoke("train", place / "model", "prompt", *words, *small, "--learning-rate", 1e-9).exit_code == 0
    files = ("--png", tmp_path / "a.png", "--html", tmp_path / "a.html")
    result = invoke("inspect", place / "model", tmp_path / "run", "w1 w2", "w3", *files, env={"COLUMNS": "150"})
    assert result.exit_code == 0, result.output
    for part in ("default: prompt_tuning, 3 virtual tokens", "'w5' (1.00,", "'w30' (1.00,", "to the prompt"):
        assert part in result.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (tmp_path / "a.html").read_text("utf-8")
    plain = invoke("inspect", place / "model", place / "run", env={"COLUMNS": "150"})
    assert plain.exit_code == 0, plain.output
    assert "norm of keys" in plain.stdout
    assert "attention" not in plain.stdout


def test_inspect_refuses_in_one_line(place, tmp_path):
    model, run = place / "model", place / "run"
    assert "is not a folder" in refusal("inspect", model, place / "nowhere")
    assert "whose folder does not exist" in refusal("inspect", model, run, "--png", tmp_path / "no" / "a.png")
    assert "a folder; give the name of a file" in refusal("inspect", model, run, "--html", tmp_path)
    assert "no prompt 'other'" in refusal("inspect", model, run, "--name", "other")
    assert "nearest_by is 'luck'" in refusal("inspect", model, run, "--nearest-by", "luck")
    assert "the prompts have no tasks" in refusal("inspect", model, run, "--task", 0)


def test_export_and_import_are_inverse(place, tmp_path):
    model = place / "model"
    assert invoke("export", model, place / "run", tmp_path / "peft").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert invoke("import", model, tmp_path / "peft", tmp_path / "ours").exit_code == 0
    assert (tmp_path / "ours" / "softprompt_zoo.json").is_file()
    words = ("w1 w2", "--template", "{input} :", "--dtype", "float32")
    before, after = (invoke("generate", model, folder, *words).stdout for folder in (place / "run", tmp_path / "ours"))
    assert before == after


def test_export_of_a_fold_and_for_other_engines(place, tmp_path):
    model = place / "model"
    assert invoke("export", model, place / "run", tmp_path / "fold", "--fold").exit_code == 0
    assert json.loads((tmp_path / "fold" / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"
    assert "has keys and values" in refusal("export", model, place / "run", tmp_path / "x", "--to", "vocabulary")
    zoo.get_method("prompt")(tiny_model("llama"), num_virtual_tokens=3).save_pretrained(tmp_path / "prompt")
    for to, file in (("vocabulary", "soft_tokens.json"), ("embeddings", "default.npy")):
        result = invoke("export", model, tmp_path / "prompt", tmp_path / to, "--to", to, "--name", "default")
        assert result.exit_code == 0, result.output
        assert (tmp_path / to / file).is_file()
    assert "no prompt 'x'" in refusal("export", model, tmp_path / "prompt", tmp_path / "x", "--name", "x")
    assert not (tmp_path / "x").exists()


def test_export_and_import_refuse_in_one_line(place, tmp_path):
    model, run = place / "model", place / "run"
    assert "exists and is not an empty folder" in refusal("export", model, run, run)
    assert "exists and is not an empty folder" in refusal("import", model, run, place / "data.jsonl")
    assert "to is 'onnx'; expected one of 'peft'" in refusal("export", model, run, tmp_path / "x", "--to", "onnx")
    assert "which writes none; leave it out" in refusal("export", model, run, tmp_path / "x", "--tokenizer", model)
    assert "holds no saved prompt" in refusal("import", model, model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_prompt_is_added_to_a_bank_as_a_prefix(place, tmp_path):
    bank, alice = tmp_path / "bank", tmp_path / "alice"
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    zoo.get_method("prompt_tuning")(base, "words", num_virtual_tokens=4).save_pretrained(alice)
    result = invoke("bank", "add", place / "model", bank, alice)
    made = "a prefix of 4 tokens, folded from 'words' (prompt_tuning)"
    assert f"stored alice in {bank}, which has 1 now: {made}\n" in result.output
    assert zoo.PrefixReader(bank).find("alice").num_tokens == 4
    assert "'alice'" in refusal("bank", "add", place / "model", bank, alice)
    assert invoke("bank", "add", place / "model", bank, alice, "--overwrite", "--dtype", "float16").exit_code == 0
    assert zoo.PrefixReader(bank).read("alice").layers[0][0].dtype == torch.float16
    prefix = tmp_path / "a.prefix"
    invoke("export", place / "model", alice, prefix, "--to", "kv")
    new = tmp_path / "new"
    assert "choose one with --name" in refusal("bank", "add", place / "model", new, prefix)
    assert "no prompt 'carol'" in refusal("bank", "add", place / "model", new, alice, "--prompt", "carol")
    assert "have no tasks" in refusal("bank", "add", place / "model", new, alice, "--task", "1")
    assert "not a folder" in refusal("bank", "add", place / "model", new, tmp_path / "nothing")
    assert not new.exists()
    result = invoke("bank", "add", place / "model", bank, prefix, "--name", "bob")
    assert "which has 2 now: a prefix of 4 tokens\n" in result.output
    (tmp_path / "saved").mkdir()
    alice.rename(tmp_path / "saved" / "carol")
    assert invoke("bank", "import", place / "model", bank, tmp_path / "saved", "--as-prefix").exit_code == 0
    assert zoo.PrefixReader(bank).find("carol").num_tokens == 4


def test_a_bank_of_prompts(place, tmp_path):
    bank = tmp_path / "bank"
    shutil.copytree(place / "run", tmp_path / "saved" / "alice")
    shutil.copytree(place / "run", tmp_path / "saved" / "bob")
    result = invoke("bank", "import", place / "model", bank, tmp_path / "saved", "--dtype", "float16")
    assert result.exit_code == 0, result.output
    assert "stored 2 prompts" in result.output
    assert "is not a folder" in refusal("bank", "import", place / "model", tmp_path / "new", tmp_path / "nothing")
    assert not (tmp_path / "new").exists()
    assert "'alice'" in refusal("bank", "import", place / "model", bank, tmp_path / "saved")
    (tmp_path / "saved" / "bob" / "softprompt_zoo.json").write_text("{")
    result = invoke("bank", "import", place / "model", tmp_path / "second", tmp_path / "saved")
    assert result.exit_code == 1
    assert "stored 1 prompts" in result.output
    assert "could not be read, the others were stored" in result.output
    assert invoke("bank", "list", bank).output.split() == ["alice", "bob"]
    assert invoke("bank", "list", bank, "--prefix", "b").output.split() == ["bob"]
    assert "2 entries, 0 damaged" in invoke("bank", "verify", bank).output
    assert "no prompt 'carol'" in refusal("bank", "delete", bank, "alice", "carol")
    assert invoke("bank", "delete", bank, "alice").exit_code == 0
    assert invoke("bank", "list", bank).output.split() == ["bob"]
    content = (bank / "data.mdb").read_bytes()
    (bank / "data.mdb").write_bytes(content.replace(b'"float16"', b'"float61"'))
    damaged = invoke("bank", "verify", bank)
    assert damaged.exit_code == 1
    assert "entry 'bob'" in damaged.output
    assert "there is no bank" in refusal("bank", "list", tmp_path / "nothing")
