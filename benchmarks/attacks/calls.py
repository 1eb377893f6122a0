"""Public functions that get strange arguments, and forwards while another thread uses the model."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import softprompt_zoo as zoo
from attacks.common import CHANGED, CLEAR, OTHER, RAW, RIGHT, TEXT, Outcome, answer, describe, is_clear, prompted

STRANGE: list[Any] = [
    None, True, 0, -1, 10**30, 1.5, float("nan"), "", "x", "\0", "a/b", b"x", [], [None], {}, {"a": 1}, (), object(),
    torch.ones(2), torch.tensor(float("nan")), int, lambda: None, range(3), {1}, Path("/nonexistent"), "default",
]  # fmt: skip
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "get_method": lambda model, given: zoo.get_method(given),
    "method": lambda model, given: zoo.get_method("prefix_tuning")(given),
    "add": lambda model, given: model.prompts.add("new", given),
    "add name": lambda model, given: model.prompts.add(given, "prompt_tuning", num_virtual_tokens=2),
    "num_virtual_tokens": lambda model, given: model.prompts.add("new", "prompt_tuning", num_virtual_tokens=given),
    "init": lambda model, given: model.prompts.add("new", "prompt_tuning", num_virtual_tokens=2, init=given),
    "remove": lambda model, given: model.prompts.remove(given),
    "activate": lambda model, given: model.prompts.activate(given),
    "set_weight": lambda model, given: model.prompts.set_weight("default", given),
    "bank": lambda model, given: setattr(model.prompts, "bank", given),
    "load": lambda model, given: zoo.load(model, given),
    "merge": lambda model, given: zoo.merge(given),
    "fold": lambda model, given: zoo.fold(model, given),
    "detach": lambda model, given: zoo.detach(given),
    "blend": lambda model, given: zoo.blend(given),
    "inspect": lambda model, given: zoo.inspect(model, given),
    "export to": lambda model, given: zoo.export(model, "/nonexistent/x", to=given),
    "prompts=": lambda model, given: model(input_ids=TEXT, prompts=given),
    "PromptBank": lambda model, given: zoo.PromptBank("attacked-bank", model, dtype=given),
    "cache_bytes": lambda model, given: zoo.PromptBank("attacked-bank", model, cache_bytes=given),
}  # fmt: skip


def calls(choose: random.Random, place: Path) -> Outcome:
    """Call a function with a strange argument; a refused call must not change anything."""
    import os

    os.chdir(place)
    name, given = choose.choice(list(CALLS)), choose.choice(STRANGE)
    model = prompted()
    before, what = answer(model), f"{name} {str(given)[:40]!r} ({type(given).__name__})"
    try:
        CALLS[name](model, given)
    except Exception as error:
        is_changed = list(model.prompts) != ["default"] or not answer(model).equal(before)
        return f"{what} -> {describe(error)}", CHANGED if is_changed else CLEAR if is_clear(error) else RAW
    return what, RIGHT


def threads(choose: random.Random, place: Path) -> Outcome:
    """Compute in two threads while this one inspects the model, or changes it in ways that do not affect its output."""
    method = choose.choice(["prompt_tuning", "prefix_tuning"])
    model = prompted(method)
    expected, wrong = answer(model), []
    is_done = threading.Event()

    def compute() -> None:
        while not is_done.is_set():
            try:
                found = answer(model)
            except Exception as error:
                wrong.append(describe(error))
                return
            if not torch.allclose(found, expected, atol=1e-4):
                wrong.append(f"off by {float((found - expected).abs().max()):.3g}")

    workers = [threading.Thread(target=compute) for _ in range(2)]
    for worker in workers:
        worker.start()
    kinds = [choose.choice(["inspect", "add", "weight"]) for _ in range(6)]
    for kind in kinds:
        if kind == "inspect":
            zoo.inspect(model, inputs={"input_ids": TEXT})
        elif kind == "add":
            model.prompts.add("other", "prefix_tuning", num_virtual_tokens=2)
            model.prompts.remove("other")
        else:
            model.prompts.set_weight("default", 1.0)
    is_done.set()
    for worker in workers:
        worker.join()
    return f"{method}: {', '.join(kinds)} -> {wrong[:1]}", OTHER if wrong else RIGHT
