"""Words with tags, learned with a task head."""

import json
import random

import pytest
import torch
from helpers.commands import invoke
from helpers.tiny_runs import WORDS, save_tiny, tiny_settings, train

import softprompt_zoo as zoo
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.metrics import accuracy, macro_f1
from softprompt_zoo.training.objectives.rows import IGNORED
from softprompt_zoo.training.objectives.token_classification import TokenClassification


def rows_of(count, seed=0):
    """Return rows whose words are tagged by their number."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(3, 6))
        rows.append({"tokens": words, "tags": ["high" if int(word[1:]) > 30 else "low" for word in words]})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagged")
    for name in ("bert", "llama"):
        save_tiny(folder / name, name)
    write(folder / "train.jsonl", rows_of(40))
    write(folder / "validation.jsonl", rows_of(8, seed=1))
    return folder


def settings(tagged, output, model="bert", **changes):
    plain = {"handwritten": None, "metric_rows": 2, "evaluate_every": 40, "save_every": 40}
    return tiny_settings(tagged, output, model=str(tagged / model), **{**plain, **changes})


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_tags_are_learned_measured_and_told(tagged, tmp_path, model):
    learning = {"steps": 30, "batch_size": 20, "learning_rate": 0.03, "options": {"num_virtual_tokens": 3}}
    learning |= {"data": str(tagged / "validation.jsonl")}  # generalization is a question for real models
    train(settings(tagged, tmp_path / "run", model, method="prefix", **learning))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["objective"] == {"name": "token-classification", "classes": ["high", "low"]}
    trained = record["results"]["trained prompt"]
    assert trained["loss"] < record["results"]["base model"]["loss"]
    rows = rows_of(8, seed=1)
    said, right = " ".join(trained["answers"]).split(), [tag for row in rows for tag in row["tags"]]
    assert trained["metrics"]["accuracy"] == accuracy(said, right)
    assert trained["metrics"]["macro_f1"] == macro_f1(said, right)
    words = (tagged / model, tmp_path / "run", "--dtype", "float32")
    table = invoke("evaluate", *words, "--data", tagged / "validation.jsonl")
    assert f"{trained['metrics']['macro_f1']:.3f} │\n" in table.stdout, table.output
    answers = invoke("generate", *words, *(" ".join(row["tokens"]) for row in rows))
    assert answers.stdout.splitlines() == trained["answers"]


def test_a_word_of_several_tokens_has_its_tag_at_the_first(tagged):
    """`w1:w2` is three tokens to this tokenizer."""
    objective = TokenClassification(Base(str(tagged / "bert")), "{input}\n", ["a", "b"])
    row = objective._row(["w1:w2", "w3"], [1, 0])
    assert row.labels == [1, IGNORED, IGNORED, 0]
    batch = objective.collate([row, objective._row(["w3"], [1])])
    assert batch["labels"].tolist() == [[1, IGNORED, IGNORED, 0], [1, IGNORED, IGNORED, IGNORED]]
    front = objective.with_instruction("w9 w8")._row(["w1:w2", "w3"], [1, 0])
    assert front.labels == [IGNORED, IGNORED, 1, IGNORED, IGNORED, 0]


def test_the_loss_is_the_mean_over_words(tagged):
    objective = TokenClassification(Base(str(tagged / "bert")), "{input}\n", ["high", "low"])
    model = objective.load("float32")
    rows = [objective._row(row["tokens"], [["high", "low"].index(tag) for tag in row["tags"]]) for row in rows_of(30)]
    losses = []
    for row in rows:
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        losses += [-float(logs[place, label]) for place, label in enumerate(row.labels)]
    assert objective._predict(model, rows)[0] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


BAD = [
    ({"tokens": ["w1"], "tags": ["low", "low"]}, r"'tokens' has 1 words and field 'tags' 2 tags; every word needs one"),
    ({"tokens": [], "tags": []}, r"field 'tokens' is \[\]; it must be a list of at least one item"),
    ({"tokens": ["w1"], "tags": ["lo"]}, r"the label 'lo' occurs once \(did you mean 'low'\?\)"),
    ({"tokens": ["w1", 2], "tags": ["low", "low"]}, r"word 2 of field 'tokens' is 2; it must be text"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_what_cannot_be_learned_from(tagged, tmp_path, row, message):
    data = write(tmp_path / "bad.jsonl", [*rows_of(8), row])
    with pytest.raises(zoo.DataError, match="bad.jsonl:9: .*" + message):
        train(settings(tagged, tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()


def test_tags_that_validation_has_not_or_training_has_not(tagged, tmp_path):
    only = write(tmp_path / "only.jsonl", [{"tokens": ["w1", "w2"], "tags": ["low", "low"]}])
    with pytest.raises(zoo.DataError, match=r"only.jsonl: no validation row has the label 'high'"):
        train(settings(tagged, tmp_path / "run", validation=only))
    other = write(tmp_path / "other.jsonl", [*rows_of(3), {"tokens": ["w1"], "tags": ["middle"]}])
    with pytest.raises(zoo.DataError, match=r"other.jsonl:4: the label 'middle' is not one of the classes to learn"):
        train(settings(tagged, tmp_path / "run", validation=other))


def test_a_head_for_other_tags(tagged, tmp_path):
    objective = TokenClassification(Base(str(tagged / "bert")), "{input}\n", ["a", "b", "c"])
    objective.load("float32").save_pretrained(tmp_path / "three")
    objective.tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(zoo.DataError, match=r"for 3 classes \('a', 'b', 'c'\), but the data have 2 \('high', 'low'\)"):
        train(settings(tagged, tmp_path / "run", model=tmp_path / "three"))
    assert not (tmp_path / "run").exists()
