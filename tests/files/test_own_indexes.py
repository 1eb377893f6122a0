"""Wrong indexes in a folder: one CheckpointError names the file and the field, and the model stays as it was."""

import dataclasses
import json
import os
import re
import shutil
from typing import Annotated, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import softprompt_zoo as zoo
from softprompt_zoo.config import typed
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.testing import tiny_model

DEEP = "[" * 100_000


def rewrite_header(folder, change):
    """Change the index in the header of our tensors' file."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if "checksum" not in key}
    content = json.loads(metadata["softprompt_zoo"])
    content = change(content) or content
    metadata["softprompt_zoo"] = content if isinstance(content, str) else json.dumps(content)
    save_file(load_file(path), path, metadata)


def rewrite_json(file):
    def rewrite(folder, change):
        path = folder / file
        content = json.loads(path.read_text())
        content.pop("checksum", None)
        content = change(content) or content
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    return rewrite


INDEXES = {
    "native": (rewrite_header, "model.safetensors"),
    "merged": (rewrite_header, "model.safetensors"),
    "net": (rewrite_header, "model.safetensors"),
    "embeddings": (rewrite_json("prompt_embeds.json"), "prompt_embeds.json"),
    "vocabulary": (rewrite_json("soft_tokens.json"), "soft_tokens.json"),
}


def put(value, *path):
    """Set the value at a place of an index."""

    def change(content):
        *parents, last = path
        for part in parents:
            content = content[part]
        content[last] = value

    return change


def drop(*path):
    def change(content):
        *parents, last = path
        for part in parents:
            content = content[part]
        del content[last]

    return change


ONE = ("prompts", "default")
WRONG = [
    *((kind, lambda content: DEEP, "nested too deep") for kind in INDEXES),
    *((kind, lambda content: "[1, 2]", "format None|expected a JSON object") for kind in ("native", "embeddings")),
    *((kind, put("x", "strange"), "strange is unknown") for kind in INDEXES),
    *((kind, put(True, "format"), "format True") for kind in INDEXES),
    *((kind, put(["default", "default"], "active"), "twice") for kind in INDEXES),
    *((kind, put(["gone"], "active"), "'gone' is active") for kind in INDEXES),
    *((kind, put([["default"]], "active"), r"active\[0\]") for kind in INDEXES),
    *((kind, put("", "active"), "active is ''") for kind in INDEXES),
    *((kind, drop("active"), "active is missing; expected a list") for kind in INDEXES),
    ("native", put(5, "backbone"), "backbone is 5"),
    ("native", put({"a": 1}, "backbone", "family"), "backbone.family is"),
    ("native", put([], "backbone", "layers", "decoder"), "backbone.layers.decoder is"),
    ("native", put("x", "adapters"), "adapters is 'x'"),
    ("native", put({"../x": {}}, "prompts"), "a name in prompts is '../x'"),
    ("native", put(None, *ONE, "method"), "prompts.default.method is None"),
    ("native", put("yes", *ONE, "is_merged"), "prompts.default.is_merged is 'yes'"),
    ("native", put(1, *ONE, "is_trained"), "prompts.default.is_trained is 1"),
    *(("native", put(w, *ONE, "weight"), "prompts.default.weight is") for w in (float("nan"), 1e308, 1e39, -1, "1")),
    ("native", put([], *ONE, "config"), "prompts.default.config is"),
    ("native", put([{}], *ONE, "config", "init"), "default.*init"),
    ("native", put(10**9, *ONE, "config", "num_virtual_tokens"), r"embeddings' has shape \(4, 32\); expected"),
    ("merged", put(10**9, *ONE, "config", "num_virtual_tokens"), r"decoder' has shape \(3, 64\); expected"),
    ("merged", put("x", *ONE, "config", "always_visible"), "always_visible is 'x'"),
    ("net", put(3 * 10**7, *ONE, "config", "reparameterization_size"), "head.* has shape"),
    ("net", put(10**30, *ONE, "config", "reparameterization_size"), "default"),
    ("embeddings", put({"../x": [4, 32]}, "shapes"), "a name in shapes is '../x'"),
    ("embeddings", put({"default": [4]}, "shapes"), "shapes.default is"),
    ("embeddings", put({"default": [5, 32]}, "shapes"), "says {'default': "),
    ("vocabulary", put("12", *ONE, "ids"), "prompts.default.ids is '12'"),
    ("vocabulary", put([], *ONE, "ids"), "prompts.default.ids is"),
    ("vocabulary", put([float("inf")], *ONE, "ids"), r"prompts.default.ids\[0\] is inf"),
    ("vocabulary", put([10**12], *ONE, "ids"), "ids up to"),
    *(("vocabulary", put(scale, "scale"), "scale is") for scale in (None, 0, float("nan"), float("inf"))),
    ("vocabulary", put(1e300, "scale"), r"scale 1e\+300: tensor 'default' holds NaN or infinity"),
    ("vocabulary", put("model.norm.weight", "tensor"), "has the shape"),
]


def check_refused(folder, message, file):
    base = tiny_model("llama")
    try:
        zoo.load(base, folder)
        said: Any = "loaded"
    except Exception as error:
        said = error
    assert isinstance(said, zoo.CheckpointError), said
    assert re.search(message, str(said)), said
    assert str(folder) in str(said)
    assert not hasattr(base, "prompts")
    assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize(("kind", "change", "message"), WRONG)
def test_a_wrong_index_is_refused_with_its_field(kind, change, message, folders, tmp_path):
    rewrite, file = INDEXES[kind]
    shutil.copytree(folders / kind, tmp_path / "bad")
    rewrite(tmp_path / "bad", change)
    check_refused(tmp_path / "bad", message, file)


@pytest.mark.parametrize("kind", INDEXES)
def test_a_right_index_that_was_rewritten_loads(kind, folders, tmp_path):
    shutil.copytree(folders / kind, tmp_path / "good")
    INDEXES[kind][0](tmp_path / "good", lambda content: None)
    assert zoo.load(tiny_model("llama"), tmp_path / "good").prompts.active == ("default",)


def test_the_check_notices_a_reader_that_takes_everything(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(typed, "convert", lambda kind, value, path="": _trusting(kind, value))
    shutil.copytree(folders / "native", tmp_path / "bad")
    rewrite_header(tmp_path / "bad", put(5, "backbone"))
    with pytest.raises(AssertionError):
        check_refused(tmp_path / "bad", "backbone is 5", "model.safetensors")


def _trusting(kind, value):
    return kind(**value) if dataclasses.is_dataclass(kind) and isinstance(value, dict) else value


def test_numbers_of_a_file_cost_no_memory_before_its_shapes_are_compared(folders, tmp_path, monkeypatch):
    made = []
    own = LoadedMethod.make_parameters

    def noted(self, config, backbone):
        made.append(backbone.device.type)
        return own(self, config, backbone)

    monkeypatch.setattr(LoadedMethod, "make_parameters", noted)
    shutil.copytree(folders / "net", tmp_path / "bad")
    rewrite_header(tmp_path / "bad", put(10**8, *ONE, "config", "reparameterization_size"))
    check_refused(tmp_path / "bad", "has shape", "model.safetensors")
    assert made == ["meta"]


# Merged prompts

SITE = "prompts.default.learned.tensors.decoder"
EMBEDDINGS = "prompts.default.learned.tensors.embeddings"
TENSORS = {
    "missing": (lambda t: {}, "there is no tensor"),
    "too many rows": (lambda t: {SITE: torch.cat([t[SITE]] * 3)}, r"has shape \(9, 64\); expected \(3, 64\)"),
    "no rows": (lambda t: {SITE: t[SITE][:0]}, r"has shape \(0, 64\); expected \(3, 64\)"),
    "another width": (lambda t: {SITE: t[SITE][:, :7]}, r"has shape \(3, 7\); expected \(3, 64\)"),
    "another site": (lambda t: {SITE.replace("decoder", "cross"): t[SITE]}, "the tensors 'cross' do not belong"),
    "embeddings beside": (lambda t: {**t, EMBEDDINGS: torch.zeros(3, 32)}, "do not belong to one prompt"),
    "a layer beside": (lambda t: {**t, f"{SITE}_0": torch.zeros(3, 32)}, "do not belong to one prompt"),
    "other embeddings": (lambda t: {EMBEDDINGS: torch.zeros(3, 7)}, r"has shape \(3, 7\); expected \(3, 32\)"),
}


@pytest.mark.parametrize("wrong", TENSORS)
def test_a_merged_prompt_holds_what_its_index_says(wrong, folders, tmp_path):
    change, message = TENSORS[wrong]
    shutil.copytree(folders / "merged", tmp_path / "bad")
    path = tmp_path / "bad" / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if "checksum" not in key}
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, metadata)
    check_refused(tmp_path / "bad", message, "model.safetensors")


# Files that are not regular files

PLACES = [
    ("native", "model.safetensors"),
    ("embeddings", "prompt_embeds.safetensors"),
    ("vocabulary", "model.safetensors"),
]


@pytest.mark.parametrize(("kind", "file"), PLACES)
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(kind, file, folders, tmp_path):
    shutil.copytree(folders / kind, tmp_path / "bad")
    (tmp_path / "bad" / file).unlink()
    os.mkfifo(tmp_path / "bad" / file)
    check_refused(tmp_path / "bad", "not a regular file|is missing", file)


def test_a_huge_json_is_not_read(folders, tmp_path):
    shutil.copytree(folders / "native", tmp_path / "bad")
    with open(tmp_path / "bad" / "softprompt_zoo.json", "r+b") as file:
        file.truncate(2**40)  # a sparse file that takes no space on the disk
    check_refused(tmp_path / "bad", "bytes; a prompt's JSON files have at most", "softprompt_zoo.json")


@pytest.mark.parametrize("path", ["x" * 5000, "a/" * 3000, "with\0zero"])
def test_a_path_that_no_file_has_is_refused(path):
    with pytest.raises(zoo.CheckpointError, match="is not a folder") as caught:
        zoo.load(tiny_model("llama"), path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_a_vocabulary_export_reads_nothing_outside_its_folder(name, folders, tmp_path):
    shutil.copytree(folders / "vocabulary", tmp_path / "bad")
    os.replace(tmp_path / "bad" / "model.safetensors", tmp_path / "outside.safetensors")
    content = {"weight_map": {"model.embed_tokens.weight": name}}
    (tmp_path / "bad" / "model.safetensors.index.json").write_text(json.dumps(content))
    check_refused(tmp_path / "bad", "expected the name of a file next to it", "model.safetensors.index.json")


# Options


WRONG_TYPES = {bool: "no", int: "3", float: "0.1", str: 3}


def _plain_options():
    for name in zoo.list_methods():
        hints, _ = typed.fields_of(registry.lookup(name).config_class)
        for option, kind in hints.items():
            if kind in WRONG_TYPES:
                yield name, option, WRONG_TYPES[kind]


@pytest.mark.parametrize(("method", "option", "value"), [*_plain_options()])
def test_an_option_of_another_type_is_refused_by_name(method, option, value):
    with pytest.raises((TypeError, ValueError), match=option):
        zoo.get_method(method).configure(**{**zoo.get_method(method).example_options[0], option: value})


def test_an_option_is_named_where_its_methods_check_fails_on_the_type():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(zoo.MethodConfig):
        volume: float = 1.0

        def __post_init__(self):
            super().__post_init__()
            if not self.volume > 0:
                raise ValueError(f"volume is {self.volume!r}; expected a number above 0")

    with pytest.raises(TypeError, match=r"^volume is 'loud' \(str\); expected a finite number"):
        Config.from_options({"volume": "loud"})
    with pytest.raises(ValueError, match=r"^volume is -1; expected a number above 0$"):
        Config.from_options({"volume": -1})


def test_an_option_takes_what_its_annotation_says():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(zoo.MethodConfig):
        shares: tuple[float, ...] | None = None
        table: dict[str, int] = dataclasses.field(default_factory=dict)
        anything: Any = None
        width: Annotated[int, typed.integer(1, 8)] = 1

    assert Config.from_options({"shares": [1, 0.5], "table": {"a": 1}, "anything": object(), "width": 8})
    for options, said in (
        ({"shares": ["x"]}, r"shares is \('x',\) \(tuple\); expected a finite number|shares\[0\]|shares is"),
        ({"table": {"a": "b"}}, r"table.a is 'b' \(str\); expected an integer"),
        ({"width": 9}, r"width is 9 \(int\); expected an integer from 1 to 8"),
        ({"train_head": 1}, "train_head is 1"),
    ):
        with pytest.raises(TypeError, match=said):
            Config.from_options(options)


# PEFT's config and an adapter's description are not only ours, but what is read from them is typed, too.

PEFT_FIELDS = [
    ("peft_type", 5, "peft_type 5"),
    ("num_virtual_tokens", True, "num_virtual_tokens is True"),
    ("num_virtual_tokens", 0, "num_virtual_tokens is 0"),
    ("num_virtual_tokens", 10**30, "num_virtual_tokens is 1000"),
    ("num_virtual_tokens", 9, "says 9 virtual tokens"),
    ("num_layers", 2.0, r"num_layers is 2.0 \(float\)"),
    ("num_transformer_submodules", "2", "num_transformer_submodules is '2'"),
    ("task_type", [], r"task_type is \[\]"),
]


@pytest.mark.parametrize(("field", "value", "message"), PEFT_FIELDS)
def test_a_wrong_field_of_pefts_is_named(field, value, message, folders, tmp_path):
    prefix = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=3)
    zoo.export(prefix, tmp_path / "bad")
    file = tmp_path / "bad" / "adapter_model.safetensors"
    save_file(load_file(file), file)  # as PEFT writes it, without what our exports say about themselves
    rewrite_json("adapter_config.json")(tmp_path / "bad", put(value, field))
    check_refused(tmp_path / "bad", message, "adapter_config.json")


def test_what_an_export_says_of_its_method_cannot_fail_the_import(tmp_path):
    prompt = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=3)
    for number, origin in enumerate((DEEP, "[1]", '{"method": 5, "distribution": {}, "version": null}', "null")):
        folder = tmp_path / str(number)
        zoo.export(prompt, folder)
        file = folder / "adapter_model.safetensors"
        save_file(load_file(file), file, {"softprompt_zoo": origin})
        assert zoo.load(tiny_model("llama"), folder).prompts.active == ("default",)
