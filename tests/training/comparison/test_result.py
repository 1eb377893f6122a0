"""The result of a comparison in Python."""

import csv
import dataclasses
import re

from helpers.tiny_runs import tiny_settings
from rich.console import Console

from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.compare import compare

CHOICES = Choices(methods=("prompt_tuning",), baselines=("untrained",), seeds=(0,), steps=2, batch_size=4)


def test_a_notebook_shows_the_table_and_the_answer(place, tmp_path):
    settings = tiny_settings(place, tmp_path / "compared", options={}, dtype="float32", metric_rows=2)
    found = compare(settings, CHOICES, Console(quiet=True))
    assert [line.name for line in found.lines] == ["untrained", "prompt_tuning"]
    [head, *rows] = re.findall(r"<tr>(.*?)</tr>", found._repr_html_())
    with (tmp_path / "compared" / "table.csv").open(encoding="utf-8") as file:
        losses = [f"{float(row['loss']):.3f}" for row in csv.DictReader(file)]
    assert "<th>loss</th>" in head
    assert all(f"<td>{loss}</td>" in row for loss, row in zip(losses, rows, strict=True))
    for text in (*losses, *found.conclusion.sentences):
        assert text in repr(found)


def test_names_are_text_in_a_notebook(place, tmp_path):
    settings = tiny_settings(place, tmp_path / "compared", options={}, dtype="float32", metric_rows=2)
    found = compare(settings, CHOICES, Console(quiet=True))
    answer = dataclasses.replace(found.conclusion, sentences=["a < b"])
    assert "a &lt; b" in dataclasses.replace(found, conclusion=answer)._repr_html_()
