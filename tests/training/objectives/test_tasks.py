"""Several tasks in one file, for prompts that have tasks."""

import json

import pytest
import torch
from helpers.commands import invoke, refusal
from helpers.tiny_runs import WORDS, save_tiny, tiny_settings, train

import softprompt_zoo as zoo
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.objectives.tasks import OfTask, Tasks
from softprompt_zoo.training.objectives.writing import Writing

METHOD = "multitask_prompt_tuning"


def rows_of(count):
    """Return rows of two tasks, one after the other: the same inputs; the target is the first word or the last."""
    texts = [" ".join(WORDS[number : number + 4]) for number in range(count)]
    places = {"first": 0, "last": -1}
    return [
        {"input": text, "target": text.split()[place], "task": task} for task, place in places.items() for text in texts
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    save_tiny(folder / "model")
    write(folder / "train.jsonl", rows_of(10))
    write(folder / "validation.jsonl", rows_of(3))
    return folder


def settings(place, output, **changes):
    plain = {"method": METHOD, "options": {"num_virtual_tokens": 3}, "handwritten": None, "steps": 2}
    return tiny_settings(place, output, **{**plain, **changes})


def loss_of(model, tokenizer, tasks):
    """Compute the mean loss of target tokens row by row, with the tasks in the given order."""
    losses = []
    for row in rows_of(3):
        ids, target = (tokenizer(row[name])["input_ids"] for name in ("input", "target"))
        target = [*target, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + target]), task_ids=[tasks.index(row["task"])]).logits
        logs = logits[0, -len(target) - 1 : -1].log_softmax(-1)
        losses += [-float(logs[place, token]) for place, token in enumerate(target)]
    return sum(losses) / len(losses)


def test_each_row_is_read_with_the_prompt_of_its_task(place, tmp_path):
    printed = train(settings(place, tmp_path / "run", metric_rows=4, steps=6, learning_rate=0.3))
    assert "softprompt-zoo generate --task first " in printed
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["objective"]["tasks"] == ["first", "last"]
    base = Base(str(place / "model"))
    model = zoo.load(base.load("float32"), tmp_path / "run")
    trained = record["results"]["trained prompt"]
    assert trained["loss"] == pytest.approx(loss_of(model, base.tokenizer, ["first", "last"]), rel=1e-4)
    assert trained["loss"] != pytest.approx(loss_of(model, base.tokenizer, ["last", "first"]), rel=1e-3)
    for task, answers in ("first", trained["answers"][:3]), ("last", trained["answers"][3:]):
        texts = [row["input"] for row in rows_of(3)[: len(answers)]]
        words = (place / "model", tmp_path / "run", "--dtype", "float32", "--max-new-tokens", 60)
        told = invoke("generate", *words, "--task", task, *texts).stdout.splitlines()
        assert all(line.startswith(answer) for line, answer in zip(told, answers, strict=True)), (told, answers)
    words = ("evaluate", place / "model", tmp_path / "run", "--dtype", "float32")
    table = invoke(*words, "--data", place / "validation.jsonl")
    assert f"{trained['loss']:.3f}" in table.stdout, table.output
    words = ("generate", place / "model", tmp_path / "run")
    assert "--task is missing; give one of first, last" in refusal(*words, "w1")
    assert "--task is 'lats'" in refusal(*words, "--task", "lats", "w1")
    bare = refusal("generate", place / "model", "--no-prompt", "--task", "last", "w1")
    assert "no prompt is used that was trained on several" in bare


def test_metrics_are_means_over_tasks_however_many_rows_they_have(place):
    base = Base(str(place / "model"))
    examples = [*read(place / "validation.jsonl")][1:]  # two rows of one task, three of the other
    objective = Tasks(Writing(base, "{input}\n"), ["first", "last"])
    model = zoo.get_method(METHOD)(objective.load("float32"), num_virtual_tokens=2, num_tasks=2)
    rows = objective.rows(examples)
    measured = objective.measure(model, examples, rows, 5)
    parts = [
        objective.inner.measure(OfTask(model, task), part, objective.inner.rows(part), 5)
        for task, part in enumerate((examples[:2], examples[2:]))
    ]
    assert measured.metrics["rouge_l"] == sum(part.metrics["rouge_l"] for part in parts) / 2
    assert measured.answers == [*parts[0].answers, *parts[1].answers]


def read(path):
    from softprompt_zoo.examples.reading import Reading
    from softprompt_zoo.examples.sources import Source

    return Reading(Source(str(path)), "pairs")


BAD = [
    ({"input": "w1", "target": "w2"}, r"bad.jsonl:7: the row names no task; the tasks are 'first', 'last'; give every"),
    ({"input": "w1", "target": "w2", "task": "frist"}, r"bad.jsonl:7: the task 'frist' is not .* mean 'first'\?"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_task_that_is_missing_or_unknown(place, tmp_path, row, message):
    bad = write(tmp_path / "bad.jsonl", [*rows_of(3), row])
    with pytest.raises(zoo.DataError, match=message):
        train(settings(place, tmp_path / "run", validation=bad))
    assert not (tmp_path / "run").exists()


def test_another_number_of_tasks(place, tmp_path):
    options = {"num_virtual_tokens": 3, "num_tasks": 3}
    with pytest.raises(zoo.DataError, match=r"num_tasks is 3, but the training rows have 2 tasks: 'first', 'last'"):
        train(settings(place, tmp_path / "run", options=options))
