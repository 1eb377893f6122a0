"""Data in tables: Parquet files, folders of `save_to_disk`, names on the hub."""

import json

import datasets
import pytest
from helpers.commands import invoke
from helpers.tiny_runs import tiny_settings, train

import softprompt_zoo as zoo
from softprompt_zoo.examples.sources import Source
from softprompt_zoo.training.data import read_data

ROWS = [{"text": f"w{number} w{number + 1}", "label": number % 2, "tags": [1, 0]} for number in range(8)]
NAMES = ["bad", "good"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    named = datasets.ClassLabel(names=NAMES)
    features = datasets.Features({"text": datasets.Value("string"), "label": named, "tags": datasets.List(named)})
    table = datasets.Dataset.from_list(ROWS, features)
    table.to_parquet(folder / "rows[1].parquet")
    table.save_to_disk(folder / "one")
    parts = {"train": table, "held": table.select(range(2))}
    datasets.DatasetDict(parts).save_to_disk(folder / "several")
    return folder


@pytest.mark.parametrize("name", ["rows[1].parquet", "one", "several"])
def test_every_kind_of_table_gives_the_same_rows_with_the_names_of_classes(tables, name):
    rows = [*Source(str(tables / name)).rows()]
    assert [row.fields["text"] for row in rows] == [row["text"] for row in ROWS]
    assert [row.fields["label"] for row in rows] == [NAMES[row["label"]] for row in ROWS]
    assert rows[0].fields["tags"] == ["good", "bad"]
    assert rows[4].place == f"{tables / name}:5"
    assert Source(str(tables / name)).checksum() == Source(str(tables / name)).checksum()


def test_a_run_reads_a_split_and_validates_on_another(tables, place, tmp_path):
    splits = {"data": str(tables / "several"), "validation": None, "validation_split": "held"}
    settings = tiny_settings(place, tmp_path / "run", steps=1, **splits)
    data = read_data(settings)
    assert (len(data.train), len(data.validation)) == (8, 2)
    assert data.sources["validation"]["split"] == "held"
    assert "--validation-split held" in settings.command()
    train(settings)
    assert json.loads((tmp_path / "run" / "training.json").read_text())["data"]["train"]["rows"] == 8
    data = ("--data", tables / "several", "--split", "held", "--dtype", "float32")
    table = invoke("evaluate", place / "model", tmp_path / "run", *data)
    assert "on 2 rows" in " ".join(table.output.split()), table.output


def refused(name, **parts):
    with pytest.raises(zoo.DataError) as caught:
        list(Source(str(name), **parts).rows())
    return str(caught.value)


def test_what_cannot_be_read_is_told_apart(tables, tmp_path, monkeypatch):
    assert "several: has no split 'tests'; splits found: 'train', 'held'" in refused(tables / "several", split="tests")
    assert "one: has no splits, but --split is 'test'" in refused(tables / "one", split="test")
    assert "--subset is 'a'" in refused(tables / "one", subset="a")
    assert "--split is 'a'" in refused(tables / "rows[1].parquet", split="a")
    (tmp_path / "bad.parquet").write_text("no table")
    assert "bad.parquet: is not a Parquet file, or is damaged" in refused(tmp_path / "bad.parquet")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "state.json").write_text("{")
    assert "is damaged" in refused(tmp_path / "bad")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused("user/set")
    assert "'user/set' is neither a local file nor in the cache, and HF_HUB_OFFLINE is set" in said
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "could not be downloaded from the Hub (no route)" in refused("user/set")


def unreachable(*arguments, **options):
    raise ConnectionError("no route")


def test_a_missing_package_is_asked_for_by_name(tables, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        zoo.MissingPackageError, match=r'reading this data needs datasets, .*pip install "softprompt-zoo\[data\]"'
    ):
        list(Source(str(tables / "one")).rows())


def test_a_field_that_is_not_there_is_told_with_the_nearest(place, tmp_path):
    with pytest.raises(zoo.DataError, match="no field 'inputs'; did you mean 'input'"):
        train(tiny_settings(place, tmp_path / "run", input_field="inputs"))
