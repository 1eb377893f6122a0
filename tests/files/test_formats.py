"""What holds for every format of a folder, whichever it is."""

import shutil

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.files.formats import FORMATS, format_of, read_folder
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.comparison import assert_equal

TEXT = torch.arange(3, 9)[None]
WRITERS = {
    "softprompt_zoo.json": lambda model, folder: model.save_pretrained(folder),
    "adapter_config.json": lambda model, folder: zoo.export(model, folder),
    "soft_tokens.json": lambda model, folder: zoo.export(model, folder, to="vocabulary", tokenizer=tiny_tokenizer()),
    "prompt_embeds.json": lambda model, folder: zoo.export(model, folder, to="embeddings"),
    "prefix.json": lambda model, folder: zoo.export(model, folder, to="kv"),
}
"""By the index file of a format, what writes it."""


@pytest.fixture(scope="module", params=[one.index_file for one in FORMATS])
def saved(request, tmp_path_factory):
    """A model with a prompt, the folder it was written to, and the format."""
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=3).eval()
    folder = tmp_path_factory.mktemp("formats") / "prompt"
    WRITERS[request.param](model, folder)
    return model, folder, next(one for one in FORMATS if one.index_file == request.param)


def test_it_is_recognized(saved):
    _, folder, expected = saved
    assert format_of(folder) is expected


def test_its_files_are_enough(saved, tmp_path):
    """Those are all that is downloaded from a repository."""
    model, folder, found = saved
    for pattern in (found.index_file, *found.other_files):
        for file in folder.glob(pattern):
            (tmp_path / file.relative_to(folder)).parent.mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / file.relative_to(folder))
    loaded = zoo.load(tiny_model("llama"), tmp_path).eval()
    assert_equal(loaded(input_ids=TEXT).logits, model(input_ids=TEXT).logits, found.index_file)


def test_its_description_names_what_is_read(saved):
    model, folder, found = saved
    prompts, active = read_folder(folder, model.prompts.backbone)
    described = found.describe(folder)
    assert list(described.prompts) == found.names(folder) == list(prompts)
    assert described.active == active
    assert {name: one.num_virtual_tokens for name, one in described.prompts.items()} == {
        name: prompt.num_virtual_tokens for name, prompt in prompts.items()
    }
