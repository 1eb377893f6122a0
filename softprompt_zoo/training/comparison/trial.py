"""A trial: one candidate, trained and measured once; everything it depends on, and its result."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything a result depends on, as JSON values: equal trials give equal results."""

    candidate: str
    """Name of a method or baseline."""
    seed: int = 0
    """Seed of the start values, the order of the rows, and the examples of few-shot prompts."""
    steps: int = 0
    """Optimizer steps; 0 for candidates that are not trained."""
    batch_size: int = 8
    """Rows per optimizer step."""
    learning_rate: float | None = None
    """Peak learning rate; `None` for candidates that are not trained."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the candidate that differ from its defaults."""
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What all trials of a comparison depend on: model, data, rows, template, number format, versions."""

    @property
    def key(self) -> str:
        """Its candidate, its seed and a hash of everything it depends on."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.candidate}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def variant(self) -> "Trial":
        """The trial without its seed: what all seeds of one line of the table share."""
        return dataclasses.replace(self, seed=0)

    @property
    def label(self) -> str:
        """The candidate with the options it was given, for people."""
        given = [f"{name}={value}" for name, value in self.options.items()]
        return f"{self.candidate} ({', '.join(given)})" if given else self.candidate


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The result of one trial, as JSON values; `None` if a number does not apply to the candidate."""

    loss: float
    """Mean loss per target token on the validation rows, in nats."""
    metrics: Mapping[str, float]
    """Metrics of the objective, by name."""
    row_losses: Sequence[float]
    """Mean loss per target token of each validation row, in nats."""
    answers: Sequence[str]
    """Generated answers to the first validation rows."""
    parameters: int
    """Number of trained parameters."""
    prompt_tokens: int
    """Number of tokens in front of the text: virtual ones, or those of a written prompt."""
    file_bytes: int
    """Size of what has to be kept, in bytes."""
    step_seconds: float | None
    """Median wall-clock seconds of an optimizer step; for trials that shared batches, of all of them together."""
    peak_memory: int | None
    """Peak memory of training in bytes, above the process with the loaded model; shared batches as for step time."""
    first_token_seconds: float | None
    """Median wall-clock seconds until the first token of an answer."""
    forgetting: float | None
    """Loss per token on unrelated text with the candidate minus without it, in nats."""
    history: Sequence[Mapping[str, float]]
    """Trainer's log: entries with `step`, and `loss` or `eval_loss`."""
    seconds: float
    """Wall-clock seconds of the whole trial; an equal share for trials that shared their batches."""
    together: int = 1
    """Number of trials that shared its batches, including itself."""
