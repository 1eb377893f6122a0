"""The command line: what it prints, how it refuses, and what it does not import."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.tiny_runs import save_tiny, write_rows
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import softprompt_zoo as zoo
from softprompt_zoo import MethodConfig
from softprompt_zoo.cli import app
from softprompt_zoo.cli.train import parse_option, unescape
from softprompt_zoo.testing import tiny_model

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "datasets")


def invoke(*words, **options):
    return CliRunner().invoke(app, [str(word) for word in words], **options)


def refusal(*words, **options):
    """Run a command that must fail, and return its one line."""
    result = invoke(*words, **options)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, data and a trained prompt."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    write_rows(folder / "data.jsonl", 20)
    words = ("--data", folder / "data.jsonl", "--output", folder / "run", "--template", r"{input} :\n")
    small = ("--steps", 2, "--metric-rows", 2, "--option", "num_virtual_tokens=3", "--dtype", "float32")
    result = invoke("train", folder / "model", "prefix", *words, *small)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def registered():
    """Register methods for one test."""
    names = []

    def register(plugin, name):
        names.append(name)
        return zoo.register(plugin, name)

    yield register
    for name in names:
        zoo.unregister(name)


def test_light_commands_import_nothing_heavy():
    commands = [["--help"], ["methods"], ["methods", "--json"], ["plugins"], ["train", "--help"]]
    code = (
        "import sys; from softprompt_zoo.cli import app\n"
        f"for words in {commands}:\n"
        "    try: app(words)\n"
        "    except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip().splitlines()[-1] == "[]"


def _cpu_seconds(code):
    """Best of three, for other processes disturb even CPU time."""
    timed = (
        f"import sys, time\nbegan = time.process_time()\n{code}\nprint(time.process_time() - began, file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True) for _ in range(3)]
    return min(float(run.stderr.splitlines()[-1]) for run in runs)


def test_the_package_imports_quickly():
    assert _cpu_seconds("import softprompt_zoo") < 0.15


def test_methods_is_quick():
    assert _cpu_seconds("from softprompt_zoo.cli import app\ntry: app(['methods'])\nexcept SystemExit: pass") < 0.6


def test_methods_lists_names_aliases_summaries_and_distributions():
    rows = {row["name"]: row for row in json.loads(invoke("methods", "--json").stdout)}
    assert rows["prefix_tuning"]["aliases"] == ["prefix"]
    assert rows["prefix_tuning"]["summary"].startswith("Prefix tuning:")
    assert rows["prefix_tuning"]["distribution"].startswith("softprompt-zoo")
    assert "prefix_tuning" in invoke("methods").stdout


def test_a_narrow_terminal_cuts_no_name():
    for command, names in (("methods", ["multitask_prompt_tuning", "prefix_tuning"]), ("plugins", zoo.list_methods())):
        cells = [
            line.split("│")[1].strip() for line in invoke(command, env={"COLUMNS": "60"}).stdout.splitlines()[3:-1]
        ]
        assert set(names) <= set(cells)


def test_a_reader_that_has_enough_is_no_error():
    words = [sys.executable, "-m", "softprompt_zoo", "methods", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_plugins_check_passes_what_is_built_in():
    result = invoke("plugins", "--check", env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert not re.search(r"softprompt-zoo \d.*hooks not run", result.output)
    rows = json.loads(invoke("plugins", "--check", "--json").stdout)
    assert {row["problem"] for row in rows if row["origin"].startswith("softprompt-zoo ")} == {None}


def _method(**changes):
    """A method with the hooks of prompt tuning, some of them other."""
    from softprompt_zoo.methods import prompt_tuning as page

    names = ("Config", "Parameters", "build_virtual_tokens")
    return type("Page", (), {**{name: getattr(page, name) for name in names}, **changes})


def test_plugins_check_reports_hooks_that_return_nothing_or_wrong_shapes(registered):
    import torch

    @zoo.hookimpl
    def merge():
        """Return nothing."""

    @zoo.hookimpl
    def build_virtual_tokens():
        return zoo.InputTokens(torch.zeros(3, 5))

    registered(_method(merge=merge), "silent")
    registered(_method(build_virtual_tokens=build_virtual_tokens), "crooked")
    result = invoke("plugins", "--check")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert any(re.match(r"silent \(zoo\.register\): .*'merge'.* returned nothing", line) for line in lines)
    assert any(re.match(r"crooked \(zoo\.register\): .*'build_virtual_tokens'", line) for line in lines)
    assert invoke("plugins").exit_code == 0


def test_plugins_check_says_which_hooks_it_could_not_run(registered):
    def refuse(self):
        raise ValueError("examples is None; expected texts")

    registered(_method(Config=type("Config", (MethodConfig,), {"__post_init__": refuse})), "picky")
    result = invoke("plugins", "--check", env={"COLUMNS": "200"})
    assert "loads; hooks not run: examples is None" in result.stdout


def test_plugins_check_names_the_hook_that_raises_and_goes_on(registered):
    @zoo.hookimpl
    def merge():
        raise RuntimeError("boom")

    def stumble(self):
        raise AttributeError("no words")

    @zoo.hookimpl(wrapper=True)
    def inject():
        raise KeyError("wrapped")
        yield

    config = type("Config", (MethodConfig,), {"__post_init__": stumble})
    registered(_method(Config=config), "stumbles")
    registered(_method(merge=merge), "raises")
    lines = invoke("plugins", "--check").stdout.splitlines()
    assert "stumbles (zoo.register): AttributeError: no words" in lines
    assert "raises (zoo.register): RuntimeError: boom; raised by method 'raises' (zoo.register), hook 'merge'" in lines
    registered(type("Around", (), {"inject": inject}), "around")
    text = (
        r"prompt_tuning \(softprompt-zoo .*\): KeyError: 'wrapped'; raised by method 'prompt_tuning' \(.*\), hook "
        r"'inject' or wrapper 'around' of zoo.register around it"
    )
    assert any(re.fullmatch(text, line) for line in invoke("plugins", "--check").stdout.splitlines())


def test_show_prints_page_options_and_recipe():
    text = invoke("show", "PREFIX-tuning").stdout
    assert "Source: Li and Liang" in text
    assert "  num_virtual_tokens: int = 20\n      Virtual tokens of the prompt, at least 1.\n" in text
    assert '  reparameterization: str | None = None\n      `"mlp"` makes the prefix' in text
    assert f"  learning_rate: {zoo.get_method('prefix').recipe.learning_rate}" in text
    assert "did you mean 'prefix_tuning'?" in refusal("show", "prefx_tuning")


def test_show_says_that_there_is_no_recipe(registered):
    registered(_method(), "bare")
    assert "none; give train a --learning-rate and --steps" in invoke("show", "bare").stdout


def test_train_prints_the_table_and_what_to_do_next(place):
    result = invoke(
        *("train", place / "model", "prompt", "--data", place / "data.jsonl", "--output", place / "other"),
        *("--steps", 1, "--metric-rows", 1, "--handwritten", "w1 w2"),
    )
    assert result.exit_code == 0, result.output
    for part in ("base model", "hand-written prompt", "trained prompt", "ROUGE-L", "loss_curve.png", "or in Python"):
        assert part in result.stdout


def test_paths_and_texts_are_shown_as_they_are(place, tmp_path):
    model = tmp_path / "a[b]$x_{$" / "[" / "c]$x_{$"  # markup and mathematics, were they read so
    shutil.copytree(place / "model", model)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"input": ":warning: [b]w1[/b]", "target": "w2 :smile:"}) + "\n")
    output = tmp_path / "[/red]"
    words = ("--data", data, "--validation", data, "--output", output, "--steps", 1)
    result = invoke("train", model, "prefix", *words)
    assert result.exit_code == 0, result.output
    for line in (f"loading {model} in", " :warning: [b]w1[/b]\n", " w2 :smile:\n", "':warning: [b]w1[/b]'\n"):
        assert line in result.stdout
    assert (output / "loss_curve.png").is_file()


def test_the_command_that_is_shown_works(place, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"input": "- w1", "target": "w2"}\n')
    words = ("--data", data, "--validation", data, "--output", tmp_path / "run", "--steps", 1)
    shown = invoke("train", place / "model", "prefix", *words).stdout.split("use it:\n")[1].splitlines()[0]
    assert invoke(*shlex.split(shown)[1:]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--option", "three"], "--option is 'three'; expected name=value"),
        (["--option", "num_virtual_tokens=many"], "num_virtual_tokens is 'many'"),
        (["--option", "length=3"], "unknown option 'length'"),
        (["--option", "tokenizer=other"], "a run uses the model's own; leave it out"),
        (["--template", "no place"], "'no place'"),
        (["--steps", "0"], "steps is 0; expected an integer of at least 1"),
        (["--dtype", "int8"], "dtype is 'int8'; expected one of"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--resume", "--steps", "3"], "--steps was given with --resume"),
        (["--resume"], "holds no training run to resume"),
    ],
)
def test_train_refuses_in_one_line(place, tmp_path, words, message):
    data = [] if "--resume" in words else ["--data", place / "data.jsonl"]
    model = [] if "--resume" in words else [place / "model", "prefix"]
    assert message in refusal("train", *model, *data, "--output", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_help_says_what_holds_if_an_option_is_not_given():
    import typer

    commands = typer.main.get_command(app).commands
    for command, options in {
        "train": ("dtype", "steps", "evaluate_every", "save_every"),
        "evaluate": ("dtype",),
    }.items():
        texts = {parameter.name: parameter.help for parameter in commands[command].params}
        assert all("not given" in texts[option] for option in options)


def test_train_refuses_models_that_are_not_there(place, tmp_path):
    refusal("train", tmp_path / "nowhere", "--data", place / "data.jsonl", "--output", tmp_path / "run")


def test_train_refuses_models_that_are_not_whole(place, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    words = ("train", model, "--data", place / "data.jsonl", "--output", tmp_path / "run")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "are damaged" in refusal(*words)
    for file in model.glob("token*"):
        file.unlink()
    assert "cannot be loaded; save one into its folder" in refusal(*words)
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback():
    result = invoke("show", "prefx", "--debug")
    assert isinstance(result.exception, zoo.UnknownMethodError)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(place, tmp_path, monkeypatch):
    from softprompt_zoo.training import run

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run._Run, "_measure_untrained", interrupt)
    result = invoke("train", place / "model", "--data", place / "data.jsonl", "--output", tmp_path / "run")
    assert result.exit_code == 130
    assert "stopped" in result.stderr
    assert "softprompt-zoo train --resume --output" in result.stderr


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
    assert "a folder; name the file to write" in refusal("inspect", model, run, "--html", tmp_path)
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num-virtual-tokens=3", ("num_virtual_tokens", 3)),
        ("init_text=a b", ("init_text", "a b")),
        ('sites=["encoder"]', ("sites", ["encoder"])),
        ("init_text=a=b", ("init_text", "a=b")),
        ("reparameterization=null", ("reparameterization", None)),
    ],
)
def test_options_are_json_or_text(text, expected):
    assert parse_option(text) == expected


def test_templates_may_spell_new_lines():
    assert unescape(r"{input}\n\t") == "{input}\n\t"


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
    assert "cannot be read, the others are stored" in result.output
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
