"""A training run from beginning to end, or from its last checkpoint on."""

import dataclasses
import math
import os
import platform
import shlex
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from softprompt_zoo.backbone import identity
from softprompt_zoo.errors import OutputError, StoppedError, check_packages
from softprompt_zoo.files.start_folders import with_absolute_folders
from softprompt_zoo.method import Method, get_method
from softprompt_zoo.model.attachment import detach
from softprompt_zoo.operations.load_and_export import load
from softprompt_zoo.registry.discovery import own_version
from softprompt_zoo.training import folder as folders
from softprompt_zoo.training.base import Base, fast_dtype, with_tokenizer
from softprompt_zoo.training.data import Data, read_data
from softprompt_zoo.training.evaluation import TRAINED, Evaluator, Score
from softprompt_zoo.training.objectives.objective import fitting
from softprompt_zoo.training.objectives.writing import Writing
from softprompt_zoo.training.picture import draw_losses
from softprompt_zoo.training.record import FINISHED, RUNNING, read_record, write_record
from softprompt_zoo.training.report import print_next_steps, print_samples, print_scores, printer, short_path
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train(settings: Settings, console: Console, *, overwrite: bool = False) -> None:
    """Train a prompt, and measure, draw and save what came of it.

    Args:
        settings: The run.
        console: Where progress and results go.
        overwrite: Whether an earlier run in the same folder may be removed.

    Raises:
        ZooError: If something the user gave cannot be used; nothing was written then.
        StoppedError: If the user stopped it.
    """
    _check_installed()
    settings = settings.absolute()
    folder = Path(settings.output)
    folders.open_new(folder, overwrite=overwrite)
    method = get_method(settings.method)
    options = with_absolute_folders(settings.options, method.config_class)
    method = method.configure(**options)
    settings = dataclasses.replace(settings, options=options).with_recipe(method.name, method.recipe)
    data = read_data(settings)
    base = Base(settings.model, progress=printer(console))
    settings = dataclasses.replace(settings, dtype=settings.dtype or fast_dtype())
    run = _Run(settings, method, data, base, console, _new_record(settings, method, data))
    model = run.attach()
    with folders.locked(folder):
        folders.open_new(folder, overwrite=overwrite)  # another run may have ended here meanwhile
        if overwrite:
            folders.clear(folder)
        run.finish(model)


def resume(folder: Path, console: Console) -> None:
    """Go on with a run that was stopped, exactly as if it had not been.

    Args:
        folder: The folder of the run.
        console: Where progress and results go.

    Raises:
        ZooError: If there is nothing to go on with, or the data or the model have changed since.
        StoppedError: If the user stopped it again.
    """
    _check_installed()
    read_record(folder)  # a folder of something else stays as it is
    with folders.locked(folder):
        _go_on(folder, read_record(folder), console)


def _go_on(folder: Path, record: dict[str, Any], console: Console) -> None:
    if record["status"] == FINISHED:
        raise OutputError(f"the run in {folder} is finished; train anew with --overwrite or in a new folder")
    settings = dataclasses.replace(Settings(**record["settings"]), output=os.path.abspath(folder))
    method = get_method(settings.method).configure(**settings.options)
    data = read_data(settings)
    _check_unchanged(data, record["data"], folder)
    folders.remove_broken_checkpoints(folder)
    run = _Run(settings, method, data, Base(settings.model, progress=printer(console)), console, record)
    run.finish(run.attach())


def _check_unchanged(data: Data, recorded: dict[str, Any], folder: Path) -> None:
    """Refuse data that are not those that the run began with."""
    for name, source in data.sources.items():
        if source["sha256"] != recorded.get(name, {}).get("sha256"):
            raise OutputError(
                f"{source['path']} has changed since the run in {folder} began; restore it, or train anew with "
                "--overwrite"
            )


class _Run:
    """What one run knows; made before the weights are loaded, so that bad input fails early."""

    def __init__(
        self, settings: Settings, method: Method, data: Data, base: Base, console: Console, record: dict[str, Any]
    ) -> None:
        self.settings, self.method, self.base, self.console, self.record = settings, method, base, console, record
        self.folder = Path(settings.output)
        self.options = with_tokenizer(method, base.tokenizer)
        self.objective = Writing(base.tokenizer, base.is_encoder_decoder, settings.template)
        kept = {
            name: fitting(self.objective, examples, settings.max_length, name)
            for name, examples in (("training", data.train), ("validation", data.validation))
        }
        left_out = len(data.train) + len(data.validation) - sum(map(len, kept.values()))
        if left_out:
            console.print(f"left out {left_out} rows of more than --max-length {settings.max_length}", style="yellow")
        self.rows = self.objective.rows(kept["training"])
        self.evaluator = Evaluator(kept["validation"], self.objective, settings.metric_rows, settings.handwritten)

    def attach(self) -> "PreTrainedModel":
        """Load the model, put the prompt in and try it on the longest rows; nothing is written before that works."""
        from transformers import set_seed

        printer(self.console)(f"loading {self.settings.model} in {self.settings.dtype}")
        model = self.objective.load(self.base, str(self.settings.dtype))
        # Start values are drawn; a resumed run draws the same ones and then reads its checkpoint over them.
        set_seed(self.settings.seed)
        model = self.method(model, **self.options)
        backbone: Any = model.prompts.backbone  # type: ignore[union-attr]
        if "model" in self.record:
            identity.check(self.record["model"], backbone, f"the run in {self.folder}")
        self.record["model"] = identity.describe(backbone)
        self.evaluator.try_out(model, self.rows)
        return model

    def finish(self, model: "PreTrainedModel") -> None:
        """Do what is still to be done."""
        try:
            self._write()
            self._measure_untrained(model)
            model, history = self._train(model)
            model.save_pretrained(self.folder)
            self._measure(TRAINED, model)
        except KeyboardInterrupt as error:
            raise StoppedError(self._how_to_resume()) from error
        self.record |= {"history": history, "status": FINISHED}
        self._draw(history)
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

        checkpoint = folders.latest_checkpoint(self.folder)
        if checkpoint is not None:
            step = folders.checkpoint_step(checkpoint)
            if step >= int(self.settings.steps or 0):
                return load(detach(model), checkpoint), folders.read_history(checkpoint)
            self.console.print(f"going on after step {step}")
        self._announce(model)
        bar, began = ProgressBar(self.console), time.perf_counter()
        with StopOnInterrupt(self.console) as interrupt:
            trainer = make_trainer(model, self.method, self.settings, self.rows, self.evaluator, [bar, interrupt])
            try:
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            finally:
                bar.stop()
                spent = self.record["seconds"].get("training", 0.0)
                self.record["seconds"]["training"] = round(spent + time.perf_counter() - began, 1)
                self._write()
        if interrupt.is_requested:
            raise KeyboardInterrupt
        return model, trainer.state.log_history

    def _announce(self, model: "PreTrainedModel") -> None:
        """Count what is trained, for the record and the terminal."""
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.record["trained_parameters"] = trainable
        self.console.print(
            f"training {trainable:,} parameters of {self.method.name} on {len(self.rows)} rows, "
            f"{self.settings.steps} steps of {self.settings.batch_size}",
            highlight=False,
        )

    def _how_to_resume(self) -> str:
        checkpoint = folders.latest_checkpoint(self.folder)
        step = folders.checkpoint_step(checkpoint) if checkpoint is not None else 0
        # The shortest way to name the folder from here, as the user would.
        command = shlex.join(["softprompt-zoo", "train", "--resume", "--output", short_path(self.folder)])
        return f"stopped; saved after step {step} of {self.settings.steps}; to go on, run: {command}"

    def _write(self) -> None:
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
            self.console.print("the loss is not a number: train again with a lower --learning-rate", style="red")
        first, _ = self.objective.shown(self.evaluator.examples[0])
        print_next_steps(self.console, self.folder, self.base, self.objective, first)


def _new_record(settings: Settings, method: Method, data: Data) -> dict[str, Any]:
    packages = ("torch", "transformers", "accelerate")
    versions = {"softprompt-zoo": own_version(), **{name: metadata.version(name) for name in packages}}
    recipe = method.recipe
    return {
        "status": RUNNING,
        "command": settings.command(),
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "settings": dataclasses.asdict(settings),
        "recipe": dataclasses.asdict(recipe) if recipe is not None else None,
        "data": data.sources,
        "results": {},
        "seconds": {},
    }


def _check_installed() -> None:
    remedy = 'pip install "softprompt-zoo[train]"'
    check_packages("training needs", "accelerate", "filelock", "matplotlib", remedy=remedy)
