"""Shared parts of the campaigns: models, outcomes of a case, and processes that are killed."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

CLEAR, SAME, RIGHT = "clear error", "same", "right"
"""One of our errors, with nothing changed; the same result as without the damage; another result that is allowed."""
RAW, CHANGED, MIXED, OTHER = "raw error", "changed model", "mixed state", "loaded but other"
TEXT = torch.randint(3, 101, (2, 7), generator=torch.Generator().manual_seed(7))
OWN = str(Path(zoo.__file__).parent)

Outcome = tuple[str, str]
"""What was done with its result, and the kind of outcome."""
Case = Callable[[random.Random, Path], Outcome]


def prompted(method: str = "prompt_tuning", seed: int = 0, **options: Any) -> Any:
    """Return a tiny llama with a prompt of random numbers."""
    model = zoo.get_method(method)(tiny_model("llama"), **{"num_virtual_tokens": 4, **options})
    return shaken(model, seed)


def shaken(model: Any, seed: int) -> Any:
    """Add random numbers to all trained parameters of a model, and return it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def answer(model: Any) -> Tensor:
    """Return a model's logits for a fixed text."""
    logits: Tensor = model.eval()(input_ids=TEXT).logits
    return logits


def is_clear(error: BaseException) -> bool:
    """Return whether an error is one of ours: by its class, or a `TypeError` or `ValueError` that our code raised."""
    if isinstance(error, zoo.ZooError):
        return True
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    is_own = traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(OWN)
    return isinstance(error, TypeError | ValueError) and is_own


def describe(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def killed(action: Callable[[], Any], seconds: float) -> None:
    """Run a function in its own process, and kill the process after the given time."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
