"""Damaged folders, and folders that try to run code: they must be refused, or load as before."""

import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import peft

import softprompt_zoo as zoo
from attacks.common import (
    CHANGED,
    CLEAR,
    OTHER,
    RAW,
    RIGHT,
    SAME,
    Outcome,
    answer,
    describe,
    is_clear,
    prompted,
    shaken,
)
from softprompt_zoo.testing import tiny_model

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    3.5,
    1e308,
    10**30,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    [1],
    {},
    {"a": 1},
    "\x1b[2J",
]


def make_sources(place: Path) -> dict[str, Path]:
    """Save the folders to damage, unless they exist, and return them by name."""
    folder = place / "sources"
    if not folder.exists():
        for method in ("prompt_tuning", "prefix_tuning", "p_tuning"):
            prompted(method).save_pretrained(folder / method)
            zoo.export(prompted(method), folder / f"{method}-peft")
        zoo.export(prompted(), folder / "embeddings", to="embeddings")
        zoo.export(prompted(), folder / "kv", to="kv")
        zoo.merge(prompted("prefix_tuning")).save_pretrained(folder / "merged")
        base = tiny_model("llama")
        base.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]), "lora")
        shaken(zoo.get_method("prompt_tuning")(base, num_virtual_tokens=4), 1).save_pretrained(folder / "lora")
    return {path.name: path for path in sorted(folder.iterdir())}


def damage(choose: random.Random, place: Path) -> Outcome:
    """Damage one file of a saved folder, and load the folder."""
    name, source = choose.choice(list(make_sources(place).items()))
    copy = place / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    model = tiny_model("llama")
    zoo.load(model, source)
    expected, before = answer(model), answer(tiny_model("llama"))
    path = choose.choice([path for path in sorted(copy.rglob("*")) if path.is_file()])
    what = f"{name}/{path.relative_to(copy)}: {_damage_file(path, choose)}"
    # Only our own folders have a checksum; a damaged file of another kind may be valid and hold different numbers.
    return _load(copy, what, expected, before, has_checksum=not name.endswith(("peft", "embeddings")))


def _load(folder: Path, what: str, expected: Any, before: Any, has_checksum: bool) -> Outcome:
    model = tiny_model("llama")
    try:
        zoo.load(model, folder)
        found = answer(model)
    except Exception as error:
        is_changed = not answer(model).equal(before)
        kind = CHANGED if is_changed else CLEAR if is_clear(error) else RAW
        return f"{what} -> {describe(error)}", kind
    if found.equal(expected):
        return what, SAME
    is_valid = not has_checksum and bool(found.isfinite().all())
    return f"{what} -> other numbers", RIGHT if is_valid else OTHER


def _damage_file(path: Path, choose: random.Random) -> str:
    kinds = [_truncate, _flip, _special]
    if path.suffix == ".json":
        kinds += [_change_json] * 4
    if path.suffix == ".safetensors":
        kinds += [_change_header] * 2
    return choose.choice(kinds)(path, choose)


def _truncate(path: Path, choose: random.Random) -> str:
    data = path.read_bytes()
    size = choose.randrange(len(data) + 1)
    path.write_bytes(data[:size])
    return f"cut at {size}"


def _flip(path: Path, choose: random.Random) -> str:
    data = bytearray(path.read_bytes() or b"0")
    place = choose.randrange(len(data))
    data[place] ^= 1 << choose.randrange(8)
    path.write_bytes(data)
    return f"bit of byte {place} flipped"


def _special(path: Path, choose: random.Random) -> str:
    path.unlink()
    kind = choose.choice(["folder", "missing", "loop", "empty", "nested"])
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        os.symlink(path.name, path)
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "[" * 100_000)
    return kind


def _change_json(path: Path, choose: random.Random) -> str:
    content = json.loads(path.read_text())
    what = _change(content, choose)
    path.write_text(json.dumps(content))
    return what


def _change_header(path: Path, choose: random.Random) -> str:
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    content = json.loads(data[8 : 8 + size])
    what = _change(content, choose)
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return f"header: {what}"


def _change(content: Any, choose: random.Random) -> str:
    places = list(_places(content))
    if not places:
        return "nothing to change"
    inner, key = choose.choice(places)
    if choose.random() < 0.2 and isinstance(inner, dict):
        del inner[key]
        return f"{key!r} removed"
    inner[key] = choose.choice(VALUES)
    return f"{key!r} = {inner[key]!r}"


def _places(content: Any) -> Any:
    for key in list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from _places(content[key])


def supply(choose: random.Random, place: Path) -> Outcome:
    """Load a LoRA or PEFT config that names modules or expressions; nothing may be imported, and nothing may hang."""
    copy = place / "supply"
    shutil.rmtree(copy, ignore_errors=True)
    sources = make_sources(place)
    name = choose.choice(["lora", "prompt_tuning-peft", "p_tuning-peft"])
    shutil.copytree(sources[name], copy)
    marker = place / "imported"
    for module in ("megatron", "planted"):
        (copy / module).mkdir()
        for file in ("__init__", "core"):
            (copy / module / f"{file}.py").write_text(f"open({str(marker)!r}, 'w').close()")
    os.chdir(copy)
    path = next(copy.rglob("adapter_config.json"))
    content = json.loads(path.read_text())
    field, value = choose.choice(
        [
            ("megatron_config", {"a": 1}),
            ("megatron_core", "planted.core"),
            ("auto_mapping", {"base_model_class": "X", "parent_library": "planted.core"}),
            ("target_modules", "(.*)*" * 12 + "!"),
            ("exclude_modules", "(([a-z.])+.)+[A-Z]"),
            ("target_modules", "^(([a-z_.0-9])+)+$!"),
            ("tokenizer_kwargs", {"trust_remote_code": True}),
            ("tokenizer_name_or_path", "planted"),
            ("r", 2 * 10**7),
            ("runtime_config", {"ephemeral_gpu_offload": True}),
        ]
    )
    content[field] = value
    path.write_text(json.dumps(content))
    before, what = answer(tiny_model("llama")), f"{name}: {field} = {value!r}"
    model = tiny_model("llama")
    zoo.load(model, sources[name])
    import sys

    sys.path.insert(0, str(copy))
    outcome = _load(copy, what, answer(model), before, has_checksum=False)
    return (f"{what}: its code ran", OTHER) if marker.exists() else outcome
