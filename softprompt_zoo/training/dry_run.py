"""Dry runs: how large a run is, how long it would take, and what the model would see."""

import dataclasses
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console

from softprompt_zoo.training import folder as folders
from softprompt_zoo.training import processes
from softprompt_zoo.training.amounts import shown_bytes, shown_time
from softprompt_zoo.training.arguments import rows_at_once
from softprompt_zoo.training.evaluation import target_loss
from softprompt_zoo.training.findings import Finding, print_findings
from softprompt_zoo.training.memory import StepMemory, estimate, free_memory
from softprompt_zoo.training.peak_memory import peak_memory
from softprompt_zoo.training.prepared import Prepared, prepare
from softprompt_zoo.training.row_view import view_row
from softprompt_zoo.training.run import check_installed
from softprompt_zoo.training.settings import Settings
from softprompt_zoo.training.step_clock import StepClock
from softprompt_zoo.training.trainer import make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARMUP, TIMED = 1, 2
"""Steps that are run and discarded: the first is slower than the rest."""
TIMED_ROWS = 20
"""Validation rows on which the time is measured."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Time and peak memory of some steps of a run."""

    step: float
    """Seconds per step."""
    validation: float
    """Seconds per validation."""
    peak: int
    """Peak memory of the steps in bytes, without the weights."""


def dry_run(settings: Settings, console: Console, *, overwrite: bool = False) -> None:
    """Check a run as `train` does, load its model, run a few steps without a trace, and print what it would take.

    Args:
        settings: The run.
        console: Where to print.
        overwrite: Whether an earlier run in the same folder may be removed; a dry run never removes it.

    Raises:
        ZooError: If some input cannot be used.
    """
    check_installed()
    console = processes.console_of_main(console)
    settings = settings.absolute()
    folders.open_new(Path(settings.output), overwrite=overwrite)
    run = prepare(settings, console)
    model = run.attach()
    batch = run.objective.collate([max([*run.sample, *run.evaluator.rows], key=len)])
    memory = estimate(model.train(), {name: tensor.to(model.device) for name, tensor in batch.items()})
    room = free_memory(model.device)
    rows = rows_at_once(run.settings)
    fits = memory.training + rows * memory.row <= room or run.settings.gradient_checkpointing
    parts = view_row(model, run.objective, run.base.tokenizer, run.sample[0])
    lines = [*_size(run, model), *_memory(memory, rows, room), *_time(run, _timed(run, model) if fits else None)]
    print_findings(console, "the run", lines)
    print_findings(console, "the first row, as the model sees it", [Finding(*part) for part in parts])
    console.print("nothing was written; leave out --dry-run to train", highlight=False)


def _size(run: Prepared, model: "PreTrainedModel") -> list[Finding]:
    settings, of_all = run.settings, model.num_parameters()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    steps, rows = int(settings.steps or 0), int(settings.batch_size or 0)
    left_out = f"; {run.left_out} rows of more than {settings.max_length} tokens are left out" if run.left_out else ""
    return [
        Finding("parameters", f"{trained:,} trained, {of_all - trained:,} frozen, in {settings.dtype}"),
        Finding("rows", f"{run.num_rows} to train on, {len(run.evaluator.rows)} to validate on{left_out}"),
        Finding("steps", f"{steps} of {rows} rows, which is {steps * rows / run.num_rows:.1f} epochs"),
    ]


def _memory(memory: StepMemory, rows: int, room: int) -> list[Finding]:
    batch = rows * memory.row
    fitting = memory.rows_in(room + memory.weights)
    return [
        Finding("memory, estimated", f"{shown_bytes(memory.of_rows(rows))}, plus temporary tensors"),
        Finding("", f"{shown_bytes(memory.weights)} weights, {shown_bytes(memory.training)} gradients and optimizer"),
        Finding("", f"{shown_bytes(batch)} activations, if all {rows} rows read at once were as long as the longest"),
        Finding(
            "free here",
            f"{shown_bytes(room)} with the weights loaded; {fitting:,} of the longest rows at once would fit",
        ),
    ]


def _time(run: Prepared, times: Times | None) -> list[Finding]:
    if times is None:
        text = "not measured: a step would not fit; give a smaller --batch-size, or accumulate gradients"
        return [Finding("time", text, is_problem=True)]
    settings = run.settings
    steps = int(settings.steps or 0)
    validations = steps // int(settings.evaluate_every or steps)
    total = steps * times.step + validations * times.validation
    return [
        Finding("time, estimated", f"{shown_time(total)}, plus the evaluations before and after training"),
        Finding(
            "",
            f"{times.step:.2f} s per step, the mean of {TIMED}; {validations} validations of {times.validation:.1f} s",
        ),
        Finding(
            "measured", f"these steps took {shown_bytes(times.peak)} on top of the weights, on the run's first rows"
        ),
    ]


def _timed(run: Prepared, model: "PreTrainedModel") -> Times:
    """Run a few steps and part of a validation; what they trained is discarded with the model."""
    clock = StepClock(WARMUP + TIMED)
    with TemporaryDirectory() as folder:
        settings = run.settings.thrown_away(folder)
        trainer = make_trainer(model, run.method, settings, run.rows, run.evaluator, [clock])
        with peak_memory() as peak:
            trainer.train()
    rows = run.evaluator.rows[:TIMED_ROWS]
    began = time.perf_counter()
    target_loss(model, rows, run.objective.collate)
    of_row = (time.perf_counter() - began) / len(rows)
    timed = clock.times[WARMUP:] or clock.times
    return Times(statistics.mean(timed), of_row * len(run.evaluator.rows), peak.bytes)
