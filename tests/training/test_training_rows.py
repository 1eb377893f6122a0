"""The rows that a run trains on and measures."""

import json
import random
import re

import pytest
from helpers.tiny_runs import tiny_settings, train, write_rows

from softprompt_zoo.examples import Example
from softprompt_zoo.training.data import Collator, Row, Tokenized, pad
from softprompt_zoo.training.metrics import rouge_l


def test_a_tenth_is_held_out(place, tmp_path):
    train(tiny_settings(place, tmp_path / "run", validation=None, steps=1))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert [*record["data"]] == ["train"]
    assert len(record["results"]["base model"]["answers"]) == 2
    data = write_rows(tmp_path / "one.jsonl", 1)
    with pytest.raises(ValueError, match="has one row, which leaves none to validate on"):
        train(tiny_settings(place, tmp_path / "other", data=str(data), validation=None))


def test_long_rows_are_left_out_and_counted(place, tmp_path):
    printed = train(tiny_settings(place, tmp_path / "run", max_length=10, steps=1))
    assert re.search(r"left out \d+ rows of more than --max-length 10", printed)


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("police killed the gunman", ["police killed the gunman"], 1.0),
        # Lin 2004, section 3.1: three and two of four words in order.
        ("police kill the gunman", ["police killed the gunman"], 0.75),
        ("the gunman kill police", ["police killed the gunman"], 0.5),
        ("the gunman police killed", ["police killed the gunman"], 0.5),
        ("testing one two", ["testing"], 0.5),
        ("", ["something"], 0.0),
        ("nothing shared", ["at all"], 0.0),
        ("A b-c", ["x", "a B c"], 1.0),
    ],
)
def test_rouge_l_has_known_values(text, references, expected):
    assert rouge_l(text, references) == pytest.approx(expected)


def test_rouge_l_is_that_of_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(0)
    for _ in range(100):
        first, second = (" ".join(draw.choices(["a_b", "C", "d.", "e-f", "7"], k=draw.randint(1, 9))) for _ in "ab")
        assert rouge_l(first, [second]) == pytest.approx(scorer.score(second, first)["rougeL"].fmeasure)


def test_only_targets_have_labels():
    rows = [Row([5, 6, 7], [8, 2]), Row([5], [9, 2])]
    batch = Collator(0, is_encoder_decoder=False)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2], [5, 9, 2, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 2], [-100, 9, 2, -100, -100]]
    split = Collator(0, is_encoder_decoder=True)(rows)
    assert split["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert split["labels"].tolist() == [[8, 2], [9, 2]]
    assert pad([[5, 6], [7]], 0, left=True)["input_ids"].tolist() == [[5, 6], [0, 7]]


def test_an_instruction_stands_in_front_as_it_is(place):
    plain = Tokenized(None, False, "{input}\n")
    assert plain.with_instruction("keep {this}").template == "keep {{this}}\n\n{input}\n"


class Letters:
    """A tokenizer that begins texts with a 1, and joins two spaces into one token 99 only at the end of a text."""

    eos_token_id = 2

    def __call__(self, text, add_special_tokens=True, **others):
        joined = text.endswith("  ")
        letters = [ord(letter) for letter in (text[:-2] if joined else text)] + [99] * joined
        return {"input_ids": [1] * add_special_tokens + letters}


def test_examples_are_tokenized_by_themselves_behind_what_begins_a_text():
    plain = Tokenized(Letters(), False, "{input}:")
    shown = plain.with_examples(["a:b", "  ", "c:d", "  "])
    [row], [alone] = shown.rows([Example("e", "f")]), plain.rows([Example("e", "f")])
    assert row.text == [1, *map(ord, "a:b"), 99, *map(ord, "c:d"), 99, *alone.text[1:]]
    assert row.target == alone.target
