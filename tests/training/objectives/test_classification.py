"""Classification by a task head, and by the words that a language model writes."""

import json

import pytest
import torch
from helpers.commands import invoke
from helpers.tiny_labels import LABELS, write_labeled
from helpers.tiny_runs import save_tiny, tiny_settings, train
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import softprompt_zoo as zoo
from softprompt_zoo.examples import read_examples
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.metrics import accuracy, macro_f1
from softprompt_zoo.training.objectives.label_words import LabelWords

CLASSES = sorted(LABELS.values())


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labeled")
    for name in ("bert", "llama", "t5"):
        save_tiny(folder / name, name)
    write_labeled(folder / "train.jsonl", 60)
    write_labeled(folder / "validation.jsonl", 12, seed=1)
    return folder


def settings(labeled, output, model, **changes):
    plain = {"handwritten": None, "template": "{input}", "metric_rows": 2, "evaluate_every": 40, "save_every": 40}
    files = {"data": str(labeled / "train.jsonl"), "validation": str(labeled / "validation.jsonl")}
    return tiny_settings(labeled, output, model=str(labeled / model), **{**plain, **files, **changes})


def scores(output):
    return json.loads((output / "training.json").read_text())["results"]


@pytest.mark.parametrize(("model", "objective"), [("bert", None), ("llama", "classification")])
def test_a_head_is_trained_along_on_encoders_and_decoders(labeled, tmp_path, model, objective):
    options = {"num_virtual_tokens": 3}
    learning = {"steps": 20, "batch_size": 12, "learning_rate": 0.03, "options": options, "method": "prefix"}
    learning |= {"data": str(labeled / "validation.jsonl")}  # generalization is a question for real models
    printed = train(settings(labeled, tmp_path / "run", model, objective=objective, **learning))
    trained = scores(tmp_path / "run")["trained prompt"]
    assert trained["loss"] < scores(tmp_path / "run")["base model"]["loss"]
    assert trained["metrics"].keys() == {"accuracy", "macro_f1"}
    assert "AutoModelForSequenceClassification.from_pretrained" in printed
    assert "num_labels=3" in printed
    right = [example.target for example in read_examples(labeled / "validation.jsonl")]
    assert trained["metrics"]["accuracy"] == accuracy(trained["answers"], right)
    assert trained["metrics"]["macro_f1"] == macro_f1(trained["answers"], right)
    words = (labeled / model, tmp_path / "run", "--dtype", "float32")
    table = invoke("evaluate", *words, "--data", labeled / "validation.jsonl")
    assert table.exit_code == 0, table.output
    assert f"{trained['metrics']['macro_f1']:.3f} │\n" in table.stdout
    texts = [example.input for example in read_examples(labeled / "validation.jsonl")]
    said = invoke("generate", *words, *texts)
    assert said.stdout.split() == trained["answers"]


@pytest.mark.parametrize(("model", "cls"), [("llama", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)])
def test_the_likeliest_word_is_the_label(labeled, model, cls):
    """The oracle scores one word of one text at a time."""
    base = Base(str(labeled / model))
    words = dict(zip(CLASSES, ["w10", "w11 w12", "w13 w14 w15"], strict=True))
    objective = LabelWords(base, "{input}", words)
    examples = read_examples(labeled / "validation.jsonl")
    network = cls.from_pretrained(labeled / model).eval()
    measured = objective.measure(network, examples, objective.rows(examples), 1)
    for example, answer in zip(examples, measured.answers, strict=True):
        logs = [log_probability(network, base.tokenizer, example.input, word) for word in words.values()]
        assert logs[CLASSES.index(answer)] == max(logs)
    assert measured.metrics["accuracy"] == accuracy(measured.answers, [example.target for example in examples])


@torch.no_grad()
def log_probability(network, tokenizer, text, word):
    text, word = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, word))
    if network.config.is_encoder_decoder:
        logits = network(input_ids=torch.tensor([text]), labels=torch.tensor([word])).logits[0]
    else:
        logits = network(input_ids=torch.tensor([text + word])).logits[0, len(text) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(word)), word].sum())


def test_the_end_is_scored_where_one_word_begins_another(labeled):
    targets = LabelWords(Base(str(labeled / "llama")), "{input}", {"a": "w1", "b": "w1 w2"})._targets
    assert [target[-1] for target in targets] == [2, 2]
    targets = LabelWords(Base(str(labeled / "llama")), "{input}", {"a": "w1", "b": "w2"})._targets
    assert [len(target) for target in targets] == [1, 1]


def test_a_language_model_learns_label_words_from_the_command_line(labeled, tmp_path):
    words = [word for label, name in LABELS.items() for word in ("--label-word", f"{name}={label}")]
    small = ("--steps", 4, "--option", "num_virtual_tokens=3", "--dtype", "float32", "--template", "{input}")
    data = ("--data", labeled / "train.jsonl", "--output", tmp_path / "run", "--objective", "label-words")
    result = invoke("train", labeled / "llama", "prefix", *data, *words, *small)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["objective"] == {"name": "label-words", "words": {name: label for label, name in LABELS.items()}}
    assert "--label-word w10=w0" in record["command"]
    assert len(record["results"]["trained prompt"]["answers"]) == 6  # a tenth of 60, two of each class
    said = invoke("generate", labeled / "llama", tmp_path / "run", "w30 w0 w31", "--dtype", "float32")
    assert said.stdout.strip() in CLASSES


def test_metrics_have_known_values():
    assert accuracy("aab", "abb") == pytest.approx(2 / 3)
    # For a: precision 1/2 and recall 1; for b: 1 and 1/2.
    assert macro_f1("aab", "abb") == pytest.approx(2 / 3)
    assert macro_f1("aaa", "abb") == pytest.approx((0.5 + 0) / 2)
    assert macro_f1("ac", "aa") == pytest.approx((2 / 3 + 0) / 2)


def rows_of(*labels):
    return "".join(json.dumps({"text": f"w{number}", "label": label}) + "\n" for number, label in enumerate(labels))


BAD = [
    ("aabbc", None, r"train.jsonl:5: the label 'c' occurs once; a class needs at least two rows"),
    (["good", "good", "goood", "bad", "bad"], None, r"train.jsonl:3: the label 'goood' occurs once \(did you mean 'go"),
    ("aaaa", None, r"train.jsonl:1: all 3 rows have the label 'a'; a classifier needs at least two"),
    ("aabb", "abc", r"validation.jsonl:3: the label 'c' is not one of the classes to learn: 'a', 'b'"),
    ("aabb", "aaa", r"validation.jsonl: no validation row has the label 'b', which 2 training rows have"),
]


@pytest.mark.parametrize(("rows", "validation", "message"), BAD)
@pytest.mark.parametrize(("model", "objective"), [("bert", "classification"), ("llama", "label-words")])
def test_labels_that_cannot_be_learned_or_measured(labeled, tmp_path, rows, validation, message, model, objective):
    (tmp_path / "train.jsonl").write_text(rows_of(*rows))
    files = {"data": str(tmp_path / "train.jsonl"), "validation": validation and str(tmp_path / "validation.jsonl")}
    (tmp_path / "validation.jsonl").write_text(rows_of(*validation or "a"))
    with pytest.raises(zoo.DataError, match=message):
        train(settings(labeled, tmp_path / "run", model, objective=objective, **files))
    assert not (tmp_path / "run").exists()


def test_label_words_that_cannot_be_used(labeled, tmp_path):
    for words, message in (
        ({"w19": "w1"}, r"gives a word for 'w19', which is not the label of any row; existing labels: 'w10', '"),
        ({"w10": "w11"}, r"'w10' and 'w11' have the same word, 'w11'"),
    ):
        with pytest.raises(zoo.DataError, match=message):
            train(settings(labeled, tmp_path / "run", "llama", objective="label-words", label_words=words))
    with pytest.raises(zoo.UnsupportedError, match="does not write text"):
        train(settings(labeled, tmp_path / "run", "bert", objective="label-words"))


def test_a_head_of_another_size_is_refused_and_one_of_the_same_is_kept(labeled, tmp_path):
    base = Base(str(labeled / "bert"))
    two = base.load_as("AutoModelForSequenceClassification", "float32", id2label={0: "w11", 1: "w10"}, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    base.tokenizer.save_pretrained(tmp_path / "two")
    model = tmp_path / "two"
    with pytest.raises(zoo.DataError, match=r"is for 2 classes \('w11', 'w10'\), but the data have 3 \('w10', 'w11'"):
        train(settings(labeled, tmp_path / "run", model))
    files = {"data": str(tmp_path / "data.jsonl"), "validation": None}
    write_labeled(tmp_path / "data.jsonl", 20, labels={"w0": "w10", "w1": "w11"})
    train(settings(labeled, tmp_path / "run", model, steps=1, **files))
    assert json.loads((tmp_path / "run" / "training.json").read_text())["objective"]["classes"] == ["w11", "w10"]
