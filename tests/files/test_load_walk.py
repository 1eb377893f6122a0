"""The number of files of the package that loading a PEFT folder walks through; `pytest -s` prints the walk."""

import pytest
from helpers.walk import walk

import softprompt_zoo as zoo
from softprompt_zoo import load
from softprompt_zoo.testing import tiny_model


@pytest.fixture
def folder(tmp_path):
    model = zoo.get_method("prefix")(tiny_model("llama"), num_virtual_tokens=3)
    zoo.export(model, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def walked(folder):
    """The walk of loading the folder onto a model that has prompts, once what is looked up only once is known."""
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=2)
    load(model, folder, name="first")
    found = walk(lambda: load(model, folder, name="loaded"))
    print(found)
    assert model.prompts.active == ("loaded",)
    return found


def test_loading_a_prefix_walks_through_few_files(walked):
    assert walked.files[:2] == ["operations/load_and_export.py", "files/formats.py"]
    assert len(walked.files) <= 22


def test_only_the_page_that_reads_the_type_is_entered(walked):
    pages = [file for file in walked.files if file.startswith("methods/") and not file.startswith("methods/parts/")]
    assert pages == ["methods/prefix_tuning.py"]


def test_a_name_is_looked_up_once(folder):
    found = [walk(lambda name=name: zoo.load(tiny_model("llama"), folder, name=name)) for name in ("first", "second")]
    assert "__init__.py" not in found[1].files


def test_a_model_without_prompts_is_examined_first(folder, walked):
    model = tiny_model("llama")
    found = walk(lambda: load(model, folder))
    print(found)
    assert model.prompts.active == ("default",)
    rooms = {file.partition("/")[0] for file in set(found.files) - set(walked.files)}
    assert rooms <= {"trial", "backbone", "sites", "model", "prompt"}
    assert len(found.files) <= 47
