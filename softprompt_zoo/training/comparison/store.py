"""The folder of a comparison: a JSON file for each trial, written whole or not at all."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import CheckpointError, OutputError
from softprompt_zoo.files.reading import read_json
from softprompt_zoo.files.writing import temporaries_of, write_atomically, write_json
from softprompt_zoo.training.comparison.trial import Trial, TrialResult

MARK_FILE = "comparison.json"
TRIALS_FOLDER = "trials"
SEARCH_FOLDER = "search"
"""Where a search keeps its studies."""
TOGETHER_FOLDER = "together"
"""Where trials that are trained together keep their checkpoints."""
MADE_BY = "softprompt-zoo compare"
CONFIG_FILE = "config.yaml"
"""The comparison as a configuration file."""
OUTPUTS = ("report.html", "table.csv", "results.json", CONFIG_FILE, ".training.lock")
"""Files that a comparison writes in addition to the trials."""


class Store:
    """Results by trial."""

    def __init__(self, folder: Path, config: str = "") -> None:
        """Choose a folder.

        Args:
            folder: The folder of the comparison.
            config: Content of the configuration file written there, for `--config`; empty to write none.
        """
        self.folder, self._config = folder, config

    def open(self, shared: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Begin a comparison, or continue the one in the folder.

        Args:
            shared: What all its trials depend on.
            overwrite: Whether another comparison in the folder may be removed.

        Raises:
            OutputError: If the folder holds anything else.
        """
        self.check(shared, overwrite=overwrite)
        if overwrite:
            self.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / MARK_FILE, {"made_by": MADE_BY, "shared": shared})
        if self._config:
            write_atomically(self.folder / CONFIG_FILE, self._config.encode())

    def check(self, shared: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Raise the errors of `open`, with the same arguments, and change nothing."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise OutputError(f"--output {self.folder} is a file; expected a new folder or the folder of a comparison")
        if not self._names_besides_lock():
            return
        before = self._shared()
        if before is None:
            raise OutputError(
                f"--output {self.folder} holds files that are not a comparison's; nothing was changed; give a new "
                "folder"
            )
        difference = _first_difference(before, shared)
        if difference is not None and not overwrite:
            raise OutputError(
                f"--output {self.folder} holds another comparison, {difference}; give a new folder, or --overwrite to "
                "remove the other comparison"
            )

    def clear(self) -> None:
        """Remove the comparison and nothing else in its folder; the mark file is removed last."""
        for folder in (TRIALS_FOLDER, SEARCH_FOLDER, TOGETHER_FOLDER):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        for name in OUTPUTS[:-1]:
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / MARK_FILE).unlink(missing_ok=True)

    def path(self, trial: Trial) -> Path:
        """Return the file of a trial."""
        return self.folder / TRIALS_FOLDER / f"{trial.key}.json"

    def has(self, trial: Trial) -> bool:
        """Return whether a trial has a result that is complete."""
        return self.load(trial) is not None

    def load(self, trial: Trial) -> TrialResult | None:
        """Return the result of a trial; `None` if it is missing or damaged, so that the trial is run again."""
        try:
            return TrialResult(**read_json(self.path(trial))["result"])
        except (CheckpointError, LookupError, TypeError):
            return None

    def save(self, trial: Trial, result: TrialResult) -> None:
        """Keep the result of a trial, whole or not at all.

        Raises:
            OSError: If the disk is full.
        """
        path = self.path(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"trial": dataclasses.asdict(trial), "result": dataclasses.asdict(result)})

    def results(self, trials: Iterable[Trial]) -> dict[str, TrialResult]:
        """Return the results that exist, by trial key."""
        found = ((trial.key, self.load(trial)) for trial in trials)
        return {key: result for key, result in found if result is not None}

    def _names_besides_lock(self) -> set[str]:
        names = {path.name for path in self.folder.iterdir()}
        return names - {OUTPUTS[-1]} - {path.name for path in temporaries_of(self.folder / MARK_FILE)}

    def _shared(self) -> Mapping[str, Any] | None:
        """Return what the trials in the folder depend on; `None` if it is not a comparison's."""
        try:
            record = read_json(self.folder / MARK_FILE)
        except CheckpointError:
            return None
        shared: Mapping[str, Any] | None = record.get("shared") if record.get("made_by") == MADE_BY else None
        return shared


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Describe the first setting in which two comparisons differ."""
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"whose {name.replace('_', ' ')} was {before.get(name)!r} and is now {now.get(name)!r}"
    return None
