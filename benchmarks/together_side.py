"""One side of together.py: a model, and eight trainings of prompt tuning on it, together or one after the other."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

import softprompt_zoo as zoo
from softprompt_zoo.examples import demo_data, read_examples
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.objectives.writing import Writing
from softprompt_zoo.training.together.training import train_together
from softprompt_zoo.training.trainer import PromptTrainer

METHOD = "prompt_tuning"
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Rates around the recipe's; a sweep should find out that the largest are too large."""
ROWS = 64
WARM_UP = 1
"""Steps of each training that are not timed: the first step creates buffers."""


class Clock(TrainerCallback):
    """A callback that measures the elapsed and processor time of steps."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start timing."""
        self._began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop timing."""
        if state.global_step > WARM_UP:
            self.wall.append(time.perf_counter() - self._began[0])
            self.processor.append(time.process_time() - self._began[1])


class Side:
    """A model, its training rows, and both ways to train on them."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        self.settings = settings
        base = Base(settings["model"])
        objective = Writing(base, "{input}\n")
        self.rows = objective.rows(read_examples(demo_data() / "train.jsonl"))[:ROWS]
        self.collate = objective.collate
        self.model: Any = objective.load(settings["dtype"])
        self.clock = Clock()
        self.folder = tempfile.mkdtemp(prefix="softprompt-zoo-together-")

    def arguments(self, rate: float) -> Any:
        """Return Trainer's arguments for a rate."""
        return zoo.get_method(METHOD).training_arguments(
            self.folder,
            learning_rate=rate,
            max_steps=self.settings["steps"],
            per_device_train_batch_size=self.settings["batch_size"],
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )

    def attach(self, name: str, seed: int) -> None:
        """Put a new prompt on the model."""
        set_seed(seed)
        zoo.get_method(METHOD)(self.model, name=name, num_virtual_tokens=20)

    def one_after_the_other(self) -> list[list[float]]:
        """Train each rate alone; return the losses of each."""
        losses = []
        for rate in RATES[: self.settings["trials"]]:
            self.attach("alone", 0)
            trainer = PromptTrainer(
                model=self.model,
                args=self.arguments(rate),
                train_dataset=self.rows,
                data_collator=self.collate,
                callbacks=[self.clock],
            )
            trainer.train()
            losses.append(_losses(trainer.state.log_history))
            zoo.detach(self.model)
        return losses

    def together(self) -> list[list[float]]:
        """Train all rates at once; return the losses of each."""
        arguments = {}
        for index, rate in enumerate(RATES[: self.settings["trials"]]):
            self.attach(f"rate{index}", 0)
            arguments[f"rate{index}"] = self.arguments(rate)
        histories = train_together(self.model, arguments, self.rows, self.collate, callbacks=[self.clock])
        return [_losses(history) for history in histories.values()]

    def measure(self, side: str) -> dict[str, Any]:
        """Train, and return the time, the memory and the losses."""
        losses = self.together() if side == "together" else self.one_after_the_other()
        return {
            "wall_seconds": round(sum(self.clock.wall), 4),
            "processor_seconds": round(sum(self.clock.processor), 4),
            "peak_bytes": _peak(),
            "losses": losses,
        }


def _losses(history: Sequence[Mapping[str, float]]) -> list[float]:
    return [round(entry["loss"], 6) for entry in history if "loss" in entry]


def _peak() -> int:
    """Return the peak main memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Print the result as a line of JSON; the arguments are the side and the settings of together.py."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    side, settings = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(Side(settings).measure(side)))


if __name__ == "__main__":
    main()
