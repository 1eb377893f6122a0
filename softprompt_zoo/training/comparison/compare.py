"""A comparison from beginning to end, or resumed after the last finished trial."""

import shutil
from pathlib import Path

from rich.console import Console

from softprompt_zoo.errors import OutputError, check_packages
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.config import written_config
from softprompt_zoo.training.comparison.dry_run import print_plan
from softprompt_zoo.training.comparison.finish import finish
from softprompt_zoo.training.comparison.plan import Plan, check_names, make_plan
from softprompt_zoo.training.comparison.result import Comparison
from softprompt_zoo.training.comparison.running.choice import ONE_BY_ONE, Running
from softprompt_zoo.training.comparison.running.run_all import run_all
from softprompt_zoo.training.comparison.store import Store
from softprompt_zoo.training.comparison.summary import summarize
from softprompt_zoo.training.comparison.trial import Trial
from softprompt_zoo.training.folder import locked
from softprompt_zoo.training.report import printer
from softprompt_zoo.training.settings import Settings

NEEDED_ROOM = 50_000_000
"""Bytes that the results of a comparison may take, including the report. Our choice."""


def compare(
    settings: Settings,
    choices: Choices,
    console: Console,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    command: str = "",
    running: Running = ONE_BY_ONE,
) -> Comparison | None:
    """Compare methods and baselines, and report the result.

    Args:
        settings: Model, data, rows and output folder.
        choices: The candidates and their budget.
        console: Where progress and results go.
        overwrite: Whether an earlier comparison in the same folder may be removed.
        dry_run: Whether to only print what would be run and how long it would take; nothing is kept.
        command: The command that repeats the comparison, for the report.
        running: How trials are run.

    Returns:
        The result, which a notebook shows as a table; `None` for a dry run.

    Raises:
        ZooError: If something the user gave cannot be used; nothing has been written then.
        StoppedError: If the user stopped it.
        ValueError: If a dry run is combined with a search, which chooses its trials as it goes.
    """
    if dry_run and running.search is not None:
        raise ValueError("--dry-run lists the trials, and --search chooses them as it goes; leave one of the two out")
    remedy = 'pip install "softprompt-zoo[train]"'
    check_packages("comparing needs", "accelerate", "filelock", "psutil", remedy=remedy)
    check_names(choices)
    settings = settings.absolute()
    tell = printer(console)
    bench = Bench(settings, choices, tell)
    store = Store(Path(settings.output), written_config(settings, choices, running))
    store.check(bench.shared, overwrite=overwrite)
    _check_room(store.folder)
    bench.load()
    is_done = _nothing_is_done if overwrite else store.has
    plan = make_plan(bench, is_done, lambda name: tell(f"trying {name}"))
    _tell_refused(plan, console)
    if not plan.trials:
        raise OutputError("no chosen candidate fits the model; the lines above say why")
    if dry_run:
        print_plan(plan, bench, is_done, console)
        return None
    if running.search is not None:
        from softprompt_zoo.training.comparison.search.search import search

        plan = search(plan, bench, store, running, console, overwrite=overwrite)
    else:
        with locked(store.folder):
            store.open(bench.shared, overwrite=overwrite)
            run_all(plan.trials, bench, store, console, running.runner(tell))
    lines = summarize(plan.trials, store.results(plan.trials))
    return finish(store.folder, bench, plan, lines, command, console)


def _nothing_is_done(trial: Trial) -> bool:
    return False


def _check_room(folder: Path) -> None:
    """Reject a disk without room for the results before hours are spent on them."""
    there = next(filter(Path.exists, (folder, *folder.absolute().parents)))
    free = shutil.disk_usage(there).free
    if free < NEEDED_ROOM:
        raise OutputError(
            f"--output {folder}: its disk has {free:,} bytes left, and a comparison needs {NEEDED_ROOM:,}; "
            "free some space, or give a folder elsewhere"
        )


def _tell_refused(plan: Plan, console: Console) -> None:
    for name, reason in plan.refused.items():
        console.print(f"left out {name}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
