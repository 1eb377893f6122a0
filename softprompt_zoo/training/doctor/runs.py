"""Find what looks wrong in a run: its losses, the norms of its prompt, its rows and its template."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from softprompt_zoo.operations.inspect import inspect
from softprompt_zoo.operations.load_and_export import load
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.evaluation import BASE, TRAINED
from softprompt_zoo.training.findings import Finding
from softprompt_zoo.training.objectives.kinds import recorded
from softprompt_zoo.training.record import FINISHED
from softprompt_zoo.training.settings import Settings

ENDS = 5
"""The losses of the first and the last fifth of the steps are compared. Our choice."""
FEWEST = 6
"""Minimum number of steps for a judgment. Our choice."""
ERRORS = 2.0
"""A change in the loss counts if it exceeds this multiple of its standard error."""
FAR = 3.0
"""Norms are unusual if their median exceeds this multiple of the largest word's norm. Our choice."""
MANY_LEFT_OUT = 0.1
"""Share of the rows left out above which it is reported as a problem. Our choice."""


def look_at_losses(record: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the losses of a run, using only its record.

    Args:
        record: The contents of `training.json`.

    Yields:
        Findings on the training loss, the validation loss and the results.
    """
    settings, history = record["settings"], record.get("history", [])
    if record["status"] != FINISHED:
        yield Finding("status", "not finished; softprompt-zoo train --resume continues it", is_problem=True)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if losses:
        yield _training(losses, settings)
    validations = {int(entry["step"]): entry["eval_loss"] for entry in history if "eval_loss" in entry}
    if len(validations) > 1:
        yield _validation(validations)
    yield from _results(record["results"])


def _training(losses: Sequence[float], settings: Mapping[str, Any]) -> Finding:
    """Compare the beginning and the end of the training."""
    if not all(map(math.isfinite, losses)):
        step = next(step for step, loss in enumerate(losses, 1) if not math.isfinite(loss))
        text = f"not finite from step {step} on; train with a lower --learning-rate than {settings['learning_rate']:g}"
        return Finding("training loss", text, is_problem=True)
    if len(losses) < FEWEST:
        return Finding("training loss", f"{len(losses)} steps are too few to tell; give more --steps", is_problem=True)
    part = max(FEWEST // 2, len(losses) // ENDS)
    first, last = losses[:part], losses[-part:]
    change = statistics.fmean(last) - statistics.fmean(first)
    error = math.sqrt(sum(statistics.pvariance(end) / len(end) for end in (first, last)))
    course = f"from {statistics.fmean(first):.3f} to {statistics.fmean(last):.3f} in {len(losses)} steps"
    if change > ERRORS * error:
        rate = settings["learning_rate"]
        return Finding("training loss", f"{course}: it rises; the rate, {rate:g}, is too high", is_problem=True)
    if change > -ERRORS * error:
        remedy = "try another rate (train --find-rate) or more steps"
        return Finding("training loss", f"{course}: no more than noise (±{error:.3f}); {remedy}", is_problem=True)
    return Finding("training loss", course)


def _validation(losses: Mapping[int, float]) -> Finding:
    """Report whether the best validation was the last one, and whether the loss was still falling."""
    best, final = min(losses, key=losses.__getitem__), max(losses)
    course = f"lowest {losses[best]:.3f} at step {best}, {losses[final]:.3f} at the end"
    if best < final and losses[final] > 1.02 * losses[best]:
        return Finding("validation loss", f"{course}: it rises again; train with --early-stopping", is_problem=True)
    before = losses[sorted(losses)[-2]]
    if before - losses[final] > (losses[min(losses)] - losses[final]) / 10:
        return Finding("validation loss", f"{course}: it is still falling; more --steps may help", is_problem=True)
    return Finding("validation loss", course)


def _results(results: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the trained prompt with everything measured without training."""
    if TRAINED not in results:
        return
    trained = results[TRAINED]["loss"]
    for name, result in results.items():
        if name != TRAINED:
            is_worse = not trained < result["loss"]
            state = "not better than" if is_worse else "better than"
            text = f"{trained:.3f} with the prompt, {state} {result['loss']:.3f}"
            yield Finding(f"against the {name}", text, is_problem=is_worse and name == BASE)


def look_at_rows(record: Mapping[str, Any], base: Base, template: str | None) -> Iterator[Finding]:
    """Check the rows and their template.

    Args:
        record: The contents of `training.json`.
        base: The run's model.
        template: The template the prompt is used with; `None` for the run's.

    Yields:
        How many rows were read, how many were left out, and whether the templates agree.
    """
    settings, rows = record["settings"], sum(source.get("rows", 0) for source in record["data"].values())
    read = int(settings["steps"]) * int(settings["batch_size"])
    count = record["data"]["train"].get("rows", 0)
    text = f"{read:,} were read, of {count:,} in the file"
    yield Finding("rows", text if read >= count else f"{text}, so not every row once; give more --steps", read < count)
    yield _left_out(record.get("left_out"), rows, settings)
    yield _form(settings["template"], template, base)


def _left_out(count: int | None, rows: int, settings: Mapping[str, Any]) -> Finding:
    if count is None:
        return Finding("left out", "not known: the run was made by an earlier version")
    text = f"{count} rows of more than {settings['max_length']} tokens"
    is_many = count > MANY_LEFT_OUT * rows
    return Finding("left out", f"{text}; raise --max-length" if is_many else text, is_many)


def _form(trained: str, used: str | None, base: Base) -> Finding:
    """Compare the training template with the one in use, and with the tokenizer's chat template."""
    if used is not None and used != trained:
        text = f"{used!r} in use, {trained!r} in training: the prompt expects what it was trained with"
        return Finding("template", text, is_problem=True)
    if base.tokenizer.chat_template is None or any(token in trained for token in base.tokenizer.all_special_tokens):
        return Finding("template", repr(trained))
    plain = "plain text, but the tokenizer has a chat template; chats will look different from the training rows"
    return Finding("template", f"{trained!r}: {plain}")


def look_at_prompt(record: Mapping[str, Any], base: Base, folder: Path) -> Iterator[Finding]:
    """Compare the norms of a trained prompt with those of real words.

    Args:
        record: The contents of `training.json`.
        base: The run's model; its weights are loaded.
        folder: The folder of the run.

    Yields:
        For each prompt and kind of vector, how the norms compare with those of words.
    """
    settings = Settings(**record["settings"])
    model = load(recorded(record.get("objective", {}), base, settings.template).load(str(settings.dtype)), folder)
    for prompt in inspect(model, task=_first_task(model)):
        for kind, norms in prompt.norms.items():
            largest = norms.words.max(dim=1).values.clamp(min=torch.finfo().tiny)
            ratio = float((norms.tokens / largest[:, None]).nanmedian())
            text = f"{float(norms.tokens.nanmean()):.2f} on average, words have {float(norms.words.mean()):.2f}"
            is_far = not ratio <= FAR
            far = f"; half of them exceed {FAR:g} times the largest word's: the rate may be too high"
            yield Finding(f"norms, {kind}", text + (far if is_far else ""), is_far)


def _first_task(model: Any) -> int | None:
    tasks = [model.prompts[name].config.tasks for name in model.prompts.active]
    return None if all(count is None for count in tasks) else 0
