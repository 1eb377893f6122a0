"""How many files of the package the loading of a PEFT folder walks through; `pytest -s` prints the walk."""

import pytest
from helpers.walk import walk

import softprompt_zoo as zoo
from softprompt_zoo.files.save_and_read import read_prompts
from softprompt_zoo.testing import tiny_model


@pytest.fixture
def folder(tmp_path):
    model = zoo.get_method("prefix")(tiny_model("llama"), num_virtual_tokens=3)
    zoo.export(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_reading_a_prefix_walks_through_few_files(folder):
    backbone = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=2).prompts.backbone
    found = walk(lambda: read_prompts(folder, backbone))
    print(found)
    assert found.files[:2] == ["files/save_and_read.py", "files/prompt_folder.py"]
    assert sum(file.startswith("files/") for file in found.files) <= 8
    assert len(found.files) <= 22


def test_only_the_page_that_reads_the_type_is_entered(folder):
    backbone = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=2).prompts.backbone
    found = walk(lambda: read_prompts(folder, backbone))
    pages = [file for file in found.files if file.startswith("methods/") and not file.startswith("methods/parts/")]
    assert pages == ["methods/prefix_tuning.py"]


def test_putting_it_next_to_other_prompts_adds_few_files(folder):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=2)
    read = walk(lambda: read_prompts(folder, model.prompts.backbone))
    found = walk(lambda: zoo.load(model, folder, name="loaded"))
    print(found)
    assert model.prompts.active == ("loaded",)
    assert len(set(found.files) - set(read.files)) <= 9


def test_putting_it_on_a_model_examines_that_model(folder):
    model = tiny_model("llama")
    found = walk(lambda: zoo.load(model, folder, name="loaded"))
    print(found)
    assert model.prompts.active == ("loaded",)
    assert len(found.files) <= 52
