"""A model's life in random steps, each compared with a copy without caches; and commands with strange arguments."""

import copy
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

import softprompt_zoo as zoo
from attacks.common import CHANGED, CLEAR, OTHER, RAW, RIGHT, TEXT, Outcome, answer, describe, is_clear, prompted
from softprompt_zoo.cli import app

METHODS = ("prompt_tuning", "prefix_tuning", "p_tuning", "p_tuning_v2")


def _layer(model: Any, choose: random.Random) -> Any:
    return choose.choice(list(model.model.layers))


def _write_data(model: Any, choose: random.Random) -> None:
    parameter = choose.choice([p for p in model.parameters() if p.ndim > 1])
    parameter.data.mul_(choose.choice([0.5, 1.5]))


def _write_numpy(model: Any, choose: random.Random) -> None:
    _layer(model, choose).self_attn.k_proj.weight.detach().numpy()[...] *= 1.25


def _write_buffer(model: Any, choose: random.Random) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.9)


def _hook(model: Any, choose: random.Random) -> None:
    _layer(model, choose).mlp.register_forward_hook(lambda module, args, output: output * 1.1)


def _add(model: Any, choose: random.Random) -> None:
    name = f"more{len(model.prompts)}"
    model.prompts.add(name, choose.choice(METHODS), num_virtual_tokens=choose.randint(1, 3))
    model.prompts.activate(*(choose.sample(model.prompts.keys(), choose.randint(1, len(model.prompts)))))


def _remove(model: Any, choose: random.Random) -> None:
    if len(model.prompts) > 1:
        model.prompts.remove(choose.choice(model.prompts.keys()))


def _weigh(model: Any, choose: random.Random) -> None:
    model.prompts.set_weight(choose.choice(model.prompts.keys()), choose.choice([0.0, 0.5, 2.0]))


def _refused(model: Any, choose: random.Random) -> None:
    """Make a call that must be refused and must not affect the model."""
    kinds: list[Callable[[], Any]] = [
        lambda: zoo.get_method("prefix_tuning")(model.model),
        lambda: model.prompts.add(model.prompts.keys()[0], "prompt_tuning"),
        lambda: model.prompts.activate("nobody"),
        lambda: model(input_ids=TEXT, prompts=["nobody", None]),
        lambda: model(input_ids=TEXT, prompts=["default"] * 9),
        lambda: zoo.load(model, "/nonexistent"),
    ]
    try:
        choose.choice(kinds)()
    except (zoo.ZooError, ValueError, KeyError):
        return
    raise AssertionError("what should be refused was accepted")


def _raise_inside(model: Any, choose: random.Random) -> None:
    """Let a layer fail in the middle of a forward or of `generate`."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = _layer(model, choose).register_forward_hook(fail)
    try:
        model.generate(input_ids=TEXT, max_new_tokens=2) if choose.random() < 0.5 else answer(model)
    except ZeroDivisionError:
        pass
    finally:
        handle.remove()


def _use(model: Any, choose: random.Random) -> None:
    with model.prompts.disabled():
        answer(model)
    model.generate(input_ids=TEXT, max_new_tokens=2, do_sample=False)


STEPS = (_write_data, _write_numpy, _write_buffer, _hook, _add, _remove, _weigh, _refused, _raise_inside, _use)


def life(choose: random.Random, place: Path) -> Outcome:
    """Change a model in random steps; after each, its answer must equal that of a copy without caches."""
    method = choose.choice(METHODS)
    model = prompted(method)
    done = [method]
    for _ in range(8):
        step = choose.choice(STEPS)
        done.append(step.__name__.strip("_"))
        answer(model)
        try:
            with torch.no_grad():
                step(model, choose)
        except Exception as error:
            if is_clear(error):
                continue  # such as too many tokens for the model
            return f"{', '.join(done)} -> {describe(error)}", RAW
        found, expected = answer(model), answer(copy.deepcopy(model))
        if not torch.allclose(found, expected, atol=1e-5):
            return f"{', '.join(done)} -> off by {float((found - expected).abs().max()):.3g}", OTHER
    zoo.detach(model)
    return ", ".join(done), RIGHT


WORDS = (
    "", "x", "-1", "0", "1e308", "nan", "9" * 30, "a/b", "../x", "\x1b[2J", "[" * 5000, "{", "null", "self=1", "x=[[",
    "-x", "é", "/dev/null", "/nonexistent", ".", "name=\x00", "a" * 5000,
)  # fmt: skip
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "methods": (),
    "plugins": (),
    "show": ("METHOD",),
    "train": ("--model", "--data", "--output", "--method", "--steps", "--learning-rate", "--option", "--seed"),
    "evaluate": ("PROMPT", "--model", "--data"),
    "generate": ("PROMPT", "--model", "--text"),
    "inspect": ("PROMPT", "--model"),
    "export": ("PROMPT", "OUTPUT", "--model", "--to", "--name"),
    "import": ("PROMPT", "OUTPUT", "--model"),
    "bank list": ("BANK",),
    "bank verify": ("BANK", "--model"),
    "bank delete": ("BANK", "NAME", "--model"),
    "bank import": ("BANK", "PROMPT", "--model"),
}
"""Commands with their arguments: positional ones are in capitals, and each option takes a word."""


def command(choose: random.Random, place: Path) -> Outcome:
    """Give a command strange words: it must end without a traceback, and write nothing if it refuses them."""
    name = choose.choice(list(COMMANDS))
    words = name.split()
    for part in COMMANDS[name]:
        if part.isupper() or choose.random() < 0.4:
            words += [] if part.isupper() else [part]
            words.append(choose.choice(WORDS))
    if name == "train" and "--data" not in words:
        words += ["--data", choose.choice(WORDS)]  # without it, the command would train on the demo data
    folder = place / "commands"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(app, words)
    what = f"{' '.join(word[:30] for word in words)!r} -> {result.exit_code}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{what} {describe(result.exception)}", RAW
    if "Traceback" in result.output or "\x1b[2J" in result.output:
        return f"{what} {result.output[-160:]!r}", RAW
    if result.exit_code and sorted(folder.rglob("*")) != before:
        return f"{what} left {sorted(folder.rglob('*'))[:2]}", CHANGED
    return what, CLEAR if result.exit_code else RIGHT
