"""Train prompts: `PromptTrainer` and `train_together` for your own code, `run.train` for the command line."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt_zoo.training.together.training import train_together as train_together
    from softprompt_zoo.training.trainer import PromptTrainer as PromptTrainer

__all__ = ["PromptTrainer", "train_together"]
_PLACES = {"PromptTrainer": "trainer", "train_together": "together.training"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:  # transformers' Trainer is slow to import and needs accelerate
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
