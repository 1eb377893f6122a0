"""The comparison with PEFT, on a tiny model: what is kept, what is shown, and that both libraries do the same."""

import dataclasses
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softprompt_zoo.testing import tiny_model

pytest.importorskip("peft")

ROWS = [
    {"input": f"a : {letter} | b : {letter * 2}", "target": f"{letter} is {letter * 3} ."} for letter in "rstuvwxyz"
]
SMALL = {
    "tokens": 6,
    "batch_size": 2,
    "warmup_steps": 1,
    "final_steps": 2,
    "search_steps": 1,
    "timed_pairs": 2,
    "untimed_pairs": 1,
    "final_rows": 3,
    "search_rows": 2,
    "threads": 1,
}


@pytest.fixture(scope="module")
def compare(benchmark):
    return benchmark("compare_with_peft")


@pytest.fixture(scope="module")
def settings(compare, tmp_path_factory):
    data, model = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("model")
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    tiny_model("llama").save_pretrained(model)
    special = ["<pad>", "<s>", "</s>"]
    characters = sorted(set(compare.INSTRUCTION + json.dumps(ROWS)))
    words = {token: number for number, token in enumerate([*special, *characters])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    template = "{% for message in messages %}<s>{{ message.content }}{% endfor %}"
    PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **names).save_pretrained(model)
    return compare.Settings(data=str(data), model=str(model), **SMALL)


@pytest.fixture
def command(compare, settings, tmp_path):
    options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in dataclasses.asdict(settings).items()]
    arguments = [part for option in options for part in option]
    return lambda *more: compare.main([*arguments, "--results", str(tmp_path), *more])


def run_of(compare, **chosen):
    usual = {"phase": "rate", "method": "prefix_tuning", "package": "zoo", "start": "text", "rate": 1e-2, "steps": 2}
    return compare.Run(**{**usual, **chosen})


def test_a_command_that_was_stopped_goes_on_where_it_was(compare, command, tmp_path, monkeypatch, capsys):
    command()
    table = (tmp_path / "table.md").read_text("utf-8")
    assert table in capsys.readouterr().out
    assert " - |" not in table
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == 2 * (1 + 2 * (3 + 1 + 2))  # methods * (time + libraries * (rates + starts + seeds))

    done = []
    execute = compare.execute
    monkeypatch.setattr(compare, "execute", lambda run, settings: done.append(run) or execute(run, settings))
    command()
    assert not done
    assert (tmp_path / "table.md").read_text("utf-8") == table

    next(tmp_path.glob("final-prompt_tuning-peft-*.json")).unlink()
    command("--table")
    assert not done
    command()
    assert [(run.phase, run.method, run.package) for run in done] == [("final", "prompt_tuning", "peft")]
    assert sorted(tmp_path.glob("*.json")) == files


def test_a_result_belongs_to_its_settings(compare, settings, tmp_path):
    run = run_of(compare)
    store = compare.Store(tmp_path, settings)
    store.put(run, {"loss": 1.0})
    assert store.get(run) == {"loss": 1.0}
    assert store.get(dataclasses.replace(run, seed=1)) is None
    assert compare.Store(tmp_path, dataclasses.replace(settings, tokens=5)).get(run) is None
    assert compare.Store(tmp_path, dataclasses.replace(settings, seeds=9)).get(run) == {"loss": 1.0}


def test_the_table_shows_the_best_of_the_search(compare, settings, tmp_path):
    store = compare.Store(tmp_path, settings)
    assert compare.table(store).count("| prefix_tuning | - | - | - | - | - | - | - | - | - |") == 1
    for run in compare.all_runs(store):
        if run.phase == "time":
            seconds = {"zoo": [1.0, 2.0, 3.0], "peft": [2.0, 4.0, 6.0]}
            store.put(run, {"seconds": seconds, "cpu_seconds": {"zoo": [3.0, 3.0], "peft": [4.0, 4.0]}})
        else:
            worse = {"final": 0.0, "start": -0.25}.get(run.phase, abs(run.rate - 1e-2)) + 0.5 * run.seed
            store.put(run, {"loss": 1.0 + worse + (0.25 if run.package == "peft" else 0.0)})
    row = next(line for line in compare.table(store).splitlines() if line.startswith("| prefix_tuning"))
    assert row.split(" | ") == [
        "| prefix_tuning",
        "chat, 0.01",
        "chat, 0.01",
        "1.250 (1.000 to 1.500)",
        "1.500 (1.250 to 1.750)",
        "-0.250 (-0.250 to -0.250)",
        "2.00 (1.50 to 2.50)",
        "4.00 (3.00 to 5.00)",
        "0.50 (0.50 to 0.50)",
        "0.75 (0.75 to 0.75) |",
    ]


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_both_libraries_get_the_same_batches(compare, settings, method, monkeypatch):
    seen = []
    step = compare.Trainer.step
    monkeypatch.setattr(compare.Trainer, "step", lambda self, batch: seen.append(batch) or step(self, batch))
    for library in compare.LIBRARIES:
        compare.execute(run_of(compare, method=method, package=library, seed=1), settings)
    assert len(seen) == 4
    for ours, theirs in zip(seen[:2], seen[2:], strict=True):
        assert ours.keys() == theirs.keys() == {"input_ids", "attention_mask", "labels"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("method", "start"), [("prefix_tuning", "text"), ("prefix_tuning", "chat"), ("prompt_tuning", "text")]
)
def test_from_the_same_tokens_both_libraries_train_alike(compare, settings, method, start):
    ours, theirs = (
        compare.execute(run_of(compare, method=method, start=start, package=library, steps=3), settings)
        for library in compare.LIBRARIES
    )
    assert ours["training_losses"] == pytest.approx(theirs["training_losses"], abs=1e-4)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_missing_data_is_named(compare, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main(["--data", str(tmp_path)])
    assert str(tmp_path / "train.jsonl") in capsys.readouterr().err
