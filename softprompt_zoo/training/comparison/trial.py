"""A trial: one candidate trained and measured once; all that it depends on, and what came of it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """All that a result depends on, as JSON values: equal trials give equal results."""

    candidate: str
    """Name of a method or of a baseline."""
    seed: int = 0
    """Of the start values, the order of the rows, and the examples of few-shot prompts."""
    steps: int = 0
    """Optimizer steps; 0 for what is not trained."""
    batch_size: int = 8
    """Rows per optimizer step."""
    learning_rate: float | None = None
    """Peak learning rate; `None` for what is not trained."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the candidate that differ from its defaults."""
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What all trials of a comparison depend on: model, data, rows, template, number format, versions."""

    @property
    def key(self) -> str:
        """A name that says what it is, and a hash of all it depends on."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.candidate}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def variant(self) -> "Trial":
        """The trial without its seed: what is the same in all seeds of one line of the table."""
        return dataclasses.replace(self, seed=0)

    @property
    def label(self) -> str:
        """The candidate with the options that it was given, for people."""
        given = [f"{name}={value}" for name, value in self.options.items()]
        return f"{self.candidate} ({', '.join(given)})" if given else self.candidate


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What one trial gave, as JSON values; `None` where a number has no meaning for the candidate."""

    loss: float
    """Mean loss per target token on the validation rows, in nats."""
    metrics: Mapping[str, float]
    """The objective's, by name."""
    row_losses: Sequence[float]
    """Mean loss per target token of each validation row, in nats."""
    answers: Sequence[str]
    """What was answered, row by row; those of the first rows."""
    parameters: int
    """Numbers that were trained."""
    prompt_tokens: int
    """Tokens in front of the text: virtual ones, or those of a written prompt."""
    file_bytes: int
    """Size of what has to be kept."""
    step_seconds: float | None
    """Median time of an optimizer step, by the clock; of a batch that several trials shared that of all of them."""
    peak_memory: int | None
    """Bytes that training took at its peak, above what the process with the loaded model had; as for a step's time."""
    first_token_seconds: float | None
    """Median time until the first token of an answer, by the clock."""
    forgetting: float | None
    """Loss per token on unrelated text with the candidate on, minus off, in nats."""
    history: Sequence[Mapping[str, float]]
    """Trainer's log: entries with `step`, and `loss` or `eval_loss`."""
    seconds: float
    """Time of the whole trial, by the clock; of trials that shared their batches an equal part."""
    together: int = 1
    """Trials that shared its batches, itself among them."""
