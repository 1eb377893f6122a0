"""Training a prompt: `PromptTrainer` for your own runs, and what the command line trains with, `run.train`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt_zoo.training.trainer import PromptTrainer as PromptTrainer

__all__ = ["PromptTrainer"]


def __getattr__(name: str) -> Any:
    if name == "PromptTrainer":  # transformers' Trainer loads slowly, and needs accelerate
        from softprompt_zoo.training.trainer import PromptTrainer

        return PromptTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
