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
"""Where trials that are trained together have their checkpoints."""
MADE_BY = "softprompt-zoo compare"
CONFIG_FILE = "config.yaml"
"""The comparison as a configuration file."""
OUTPUTS = ("report.html", "table.csv", "results.json", CONFIG_FILE, ".training.lock")
"""Files besides the trials that a comparison writes."""


class Store:
    """Results by trial."""

    def __init__(self, folder: Path, config: str = "") -> None:
        """Choose a folder.

        Args:
            folder: The folder of the comparison.
            config: What is left there for `--config` to repeat it; empty for nothing.
        """
        self.folder, self._config = folder, config

    def open(self, shared: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Begin a comparison, or go on with the one that is there.

        Args:
            shared: What all its trials depend on.
            overwrite: Whether another comparison there may be removed.

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
        """Refuse a folder that `open` would refuse; arguments and errors as there. Nothing is changed."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise OutputError(f"--output {self.folder} is a file; expected a folder that is new or a comparison's")
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
                "remove that one"
            )

    def clear(self) -> None:
        """Remove the comparison, and nothing else that lies in its folder; its mark goes last."""
        for folder in (TRIALS_FOLDER, SEARCH_FOLDER, TOGETHER_FOLDER):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        for name in OUTPUTS[:-1]:
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / MARK_FILE).unlink(missing_ok=True)

    def path(self, trial: Trial) -> Path:
        """Return the file of a trial."""
        return self.folder / TRIALS_FOLDER / f"{trial.key}.json"

    def has(self, trial: Trial) -> bool:
        """Return whether the result of a trial is there, and whole."""
        return self.load(trial) is not None

    def load(self, trial: Trial) -> TrialResult | None:
        """Return the result of a trial, or nothing if it is not there, or is damaged: it is then run again."""
        try:
            return TrialResult(**read_json(self.path(trial))["result"])
        except (CheckpointError, LookupError, TypeError):
            return None

    def save(self, trial: Trial, result: TrialResult) -> None:
        """Keep the result of a trial, whole or not at all.

        Raises:
            OSError: If there is no room for it.
        """
        path = self.path(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"trial": dataclasses.asdict(trial), "result": dataclasses.asdict(result)})

    def results(self, trials: Iterable[Trial]) -> dict[str, TrialResult]:
        """Return by key the results of those trials that are there."""
        found = ((trial.key, self.load(trial)) for trial in trials)
        return {key: result for key, result in found if result is not None}

    def _names_besides_lock(self) -> set[str]:
        names = {path.name for path in self.folder.iterdir()}
        return names - {OUTPUTS[-1]} - {path.name for path in temporaries_of(self.folder / MARK_FILE)}

    def _shared(self) -> Mapping[str, Any] | None:
        """Return what the trials here depend on; `None` if this is no comparison's folder."""
        try:
            record = read_json(self.folder / MARK_FILE)
        except CheckpointError:
            return None
        shared: Mapping[str, Any] | None = record.get("shared") if record.get("made_by") == MADE_BY else None
        return shared


def _first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say in which setting two comparisons differ."""
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"whose {name.replace('_', ' ')} was {before.get(name)!r} and is now {now.get(name)!r}"
    return None
