"""A training run, from the beginning or from its last checkpoint."""

import dataclasses
import math
import os
import shlex
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from softprompt_zoo.backbone import identity
from softprompt_zoo.config.config_file import config_text
from softprompt_zoo.errors import OutputError, StoppedError, check_packages
from softprompt_zoo.files.writing import write_atomically
from softprompt_zoo.method import get_method
from softprompt_zoo.model.attachment import detach
from softprompt_zoo.operations.load_and_export import load
from softprompt_zoo.training import folder as folders
from softprompt_zoo.training import processes
from softprompt_zoo.training.card import describe_run
from softprompt_zoo.training.data import Data, read_data
from softprompt_zoo.training.evaluation import TRAINED, Score
from softprompt_zoo.training.picture import draw_losses
from softprompt_zoo.training.prepared import Prepared, prepare
from softprompt_zoo.training.record import FINISHED, new_record, read_record, write_record
from softprompt_zoo.training.report import print_next_steps, print_samples, print_scores, short_path
from softprompt_zoo.training.settings import Settings
from softprompt_zoo.training.stopping import result_of, what_stopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_HEAD = "The settings of this run: softprompt-zoo train --config FILE --output NEW_FOLDER repeats it."


def train(settings: Settings, console: Console, *, overwrite: bool = False) -> None:
    """Train a prompt; measure, plot and save the result.

    Args:
        settings: The run.
        console: Where progress and results go.
        overwrite: Whether an earlier run in the same folder may be removed.

    Raises:
        ZooError: If some input cannot be used; nothing has been written then.
        StoppedError: If the user stopped it.
    """
    check_installed()
    console = processes.console_of_main(console)
    settings = settings.absolute()
    folder = Path(settings.output)
    if processes.is_main():
        folders.open_new(folder, overwrite=overwrite)
    prepared = prepare(settings, console)
    record = new_record(prepared.settings, prepared.method.recipe, prepared.data.sources)
    run = _Run(prepared, {**record, "left_out": prepared.left_out})
    model = run.attach()
    with _sole_writer(folder):
        if processes.is_main():
            folders.open_new(folder, overwrite=overwrite)  # another run may have finished here in the meantime
            if overwrite:
                folders.clear(folder)
            run.write_config()
        run.finish(model)


def _sole_writer(folder: Path) -> AbstractContextManager[None]:
    """Lock a folder for this run; the main process holds the lock for all processes of the run."""
    return folders.locked(folder) if processes.is_main() else nullcontext()


def resume(folder: Path, console: Console) -> None:
    """Resume a run that was stopped, exactly as if it had not been.

    Args:
        folder: The folder of the run.
        console: Where progress and results go.

    Raises:
        ZooError: If there is nothing to resume, or the data or the model have changed since.
        StoppedError: If the user stopped it again.
    """
    check_installed()
    read_record(folder)  # before the lock: other folders stay untouched
    with _sole_writer(folder):
        _go_on(folder, read_record(folder), processes.console_of_main(console))


def _go_on(folder: Path, record: dict[str, Any], console: Console) -> None:
    if record["status"] == FINISHED:
        raise OutputError(f"the run in {folder} is finished; train again with --overwrite or in a new folder")
    settings = dataclasses.replace(Settings(**record["settings"]), output=os.path.abspath(folder))
    method = get_method(settings.method).configure(**settings.options)
    data = read_data(settings)
    _check_unchanged(data, record["data"], folder)
    if processes.is_main():
        folders.remove_broken_checkpoints(folder)
    run = _Run(Prepared(settings, method, data, console), record)
    run.finish(run.attach())


def _check_unchanged(data: Data, recorded: dict[str, Any], folder: Path) -> None:
    """Refuse data that have changed since the run started."""
    for name, source in data.sources.items():
        if source["sha256"] != recorded.get(name, {}).get("sha256"):
            raise OutputError(
                f"{source['path']} has changed since the run in {folder} began; restore it, or start over with "
                "--overwrite"
            )


class _Run:
    """The steps of a prepared run, and its record."""

    def __init__(self, prepared: Prepared, record: dict[str, Any]) -> None:
        self.prepared, self.record = prepared, record
        self.settings, self.method, self.console = prepared.settings, prepared.method, prepared.console
        self.evaluator, self.folder = prepared.evaluator, Path(prepared.settings.output)
        record["objective"] = {"name": prepared.objective.name, **prepared.objective.facts}

    def attach(self) -> "PreTrainedModel":
        """Load the model and attach the prompt; nothing is written until this has worked."""
        return self.prepared.attach(self._check_model)

    def _check_model(self, backbone: Any) -> None:
        """Refuse a model other than the one the run started with."""
        if "model" in self.record:
            identity.check(self.record["model"], backbone, f"the run in {self.folder}")
        self.record["model"] = identity.describe(backbone)

    def write_config(self) -> None:
        """Write the settings to a file for `train --config`; first the record, which marks the folder as a run's."""
        self._write()
        settings = self.record["settings"]
        write_atomically(self.folder / folders.CONFIG_FILE, config_text(settings, CONFIG_HEAD).encode())

    def finish(self, model: "PreTrainedModel") -> None:
        """Do the remaining steps."""
        try:
            self._write()
            self._measure_untrained(model)
            model, history = self._train(model)
            if processes.is_main():
                model.save_pretrained(self.folder)
            self._measure(TRAINED, model)
        except KeyboardInterrupt as error:
            raise StoppedError(self._how_to_resume()) from error
        self.record |= {"history": history, "status": FINISHED}
        if processes.is_main():
            self._draw(history)
            describe_run(self.folder, self.record, self.evaluator)
            self._write()
            self._report()

    def _measure_untrained(self, model: "PreTrainedModel") -> None:
        for name in self.evaluator.untrained:
            if name not in self.record["results"]:
                self._measure(name, model)

    def _measure(self, name: str, model: "PreTrainedModel") -> None:
        began = time.perf_counter()
        score = self.evaluator.score(name, model, self.console.print)
        self.record["results"][name] = dataclasses.asdict(score)
        self.record["seconds"][name] = round(time.perf_counter() - began, 1)
        self._write()

    def _train(self, model: "PreTrainedModel") -> tuple["PreTrainedModel", list[dict[str, float]]]:
        from softprompt_zoo.training.progress import ProgressBar, StopOnInterrupt
        from softprompt_zoo.training.trainer import make_trainer

        processes.wait()  # the main process may have to clear the folder
        checkpoint = folders.latest_checkpoint(self.folder)
        if checkpoint is not None:
            result = result_of(checkpoint, self.settings)
            if result is not None:
                return load(detach(model), result), folders.read_state(checkpoint)["log_history"]
            self.console.print(f"resuming after step {folders.checkpoint_step(checkpoint)}")
        self._announce(model)
        bar, began = ProgressBar(self.console), time.perf_counter()
        with StopOnInterrupt(self.console) as interrupt:
            trainer = make_trainer(
                model, self.method, self.settings, self.prepared.rows, self.evaluator, [bar, interrupt]
            )
            try:
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            finally:
                bar.stop()
                spent = self.record["seconds"].get("training", 0.0)
                self.record["seconds"]["training"] = round(spent + time.perf_counter() - began, 1)
                self._write()
        if interrupt.is_requested:
            raise KeyboardInterrupt
        self._tell_what_stopped(trainer.state)
        return model, trainer.state.log_history

    def _tell_what_stopped(self, state: Any) -> None:
        line = what_stopped(state, self.settings)
        if line is not None:
            self.record["best_step"] = state.best_global_step
            self.console.print(line, highlight=False)

    def _announce(self, model: "PreTrainedModel") -> None:
        """Count what is trained, for the record and the terminal."""
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.record["trained_parameters"] = trainable
        self.console.print(
            f"training {trainable:,} parameters of {self.method.name} on {self.prepared.num_rows} rows, "
            f"{self.settings.steps} steps of {self.settings.batch_size}",
            highlight=False,
        )

    def _how_to_resume(self) -> str:
        checkpoint = folders.latest_checkpoint(self.folder)
        step = folders.checkpoint_step(checkpoint) if checkpoint is not None else 0
        # The shortest path to the folder from here, as the user would write it.
        command = shlex.join(["softprompt-zoo", "train", "--resume", "--output", short_path(self.folder)])
        return f"stopped; saved after step {step} of {self.settings.steps}; to resume, run: {command}"

    def _write(self) -> None:
        if processes.is_main():
            write_record(self.folder, self.record)

    def _draw(self, history: list[dict[str, float]]) -> None:
        losses = {name: self.record["results"][name]["loss"] for name in self.evaluator.untrained}
        title = f"{self.method.name} on {Path(self.settings.model).name}"
        draw_losses(self.folder / folders.PICTURE_FILE, title, history, losses)

    def _report(self) -> None:
        scores = [Score(**self.record["results"][name]) for name in (*self.evaluator.untrained, TRAINED)]
        print_samples(self.console, scores, self.evaluator)
        self.console.print()
        print_scores(self.console, scores, self.evaluator)
        if not math.isfinite(scores[-1].loss):
            self.console.print("the loss is not finite: train again with a lower --learning-rate", style="red")
        first = self.evaluator.examples[0]
        print_next_steps(self.console, self.folder, self.prepared.base, self.prepared.objective, first)


def check_installed() -> None:
    """Refuse to train if required packages are missing."""
    remedy = 'pip install "softprompt-zoo[train]"'
    check_packages("training needs", "accelerate", "filelock", "matplotlib", remedy=remedy)
