"""A runner that runs missing experiments, stores each result immediately, and reports what cannot be run."""

import argparse
import dataclasses
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

import softprompt_zoo as zoo
from common import Store
from softprompt_zoo.config.recipe import Recipe

Result = dict[str, Any]


class MissingError(Exception):
    """Something that an experiment needs is missing; the message says what."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Something to measure, once for each seed."""

    name: str
    measure: Callable[[int], Result]
    """A function from the seed to a result of JSON values."""
    options: Callable[[], Mapping[str, Any]]
    """A function that returns what the result depends on, besides the seed and the shared settings, as JSON values."""
    methods: tuple[str, ...] = ()
    """Methods that must be installed."""
    seeds: int = 1
    needs: tuple[str, ...] = ()
    """Names of experiments whose results this one reads; they come earlier in the list."""


class Runner:
    """The experiments of one command and their results."""

    def __init__(self, folder: Path, shared: Mapping[str, Any], experiments: Iterable[Experiment]) -> None:
        self.store = Store(folder, shared)
        self.experiments = {experiment.name: experiment for experiment in experiments}

    def missing(self, name: str) -> str | None:
        """Return what keeps an experiment from being run; `None` if nothing does."""
        installed = zoo.list_methods()
        experiment = self.experiments[name]
        for needed in (*(self.experiments[need] for need in experiment.needs), experiment):
            absent = [method for method in needed.methods if method not in installed]
            if absent:
                return f"{', '.join(absent)} is not installed"
            try:
                needed.options()
            except MissingError as error:
                return str(error)
        return None

    def result(self, name: str, seed: int = 0) -> Result | None:
        """Return the result of one run; `None` if there is none."""
        return None if self.missing(name) else self.store.load(name, self.run_of(name, seed))

    def results(self, name: str) -> list[Result]:
        """Return the results of an experiment, up to the first seed that has none."""
        found = list[Result]()
        for seed in range(self.experiments[name].seeds):
            result = self.result(name, seed)
            if result is None:
                break
            found.append(result)
        return found

    def run(self, only: Sequence[str]) -> list[str]:
        """Run the missing experiments, and print the progress.

        Args:
            only: Names of experiments or, if no experiment has such a name, beginnings of names; all if empty.

        Returns:
            The name of each experiment that could not be run, with the reason.
        """
        problems = list[str]()
        for experiment in self.chosen(only):
            missing = self.missing(experiment.name)
            if missing:
                problems.append(f"{experiment.name}: {missing}")
                print(f"missing: {problems[-1]}", flush=True)
                continue
            for seed in range(experiment.seeds):
                problem = self._run_one(experiment, seed)
                if problem:
                    problems.append(f"{experiment.name}, seed {seed}: {problem}")
                    print(f"failed: {problems[-1]}", flush=True)
                    break
        return problems

    def _run_one(self, experiment: Experiment, seed: int) -> str | None:
        if self.result(experiment.name, seed) is not None:
            print(f"kept: {experiment.name}, seed {seed}", flush=True)
            return None
        absent = [need for need in experiment.needs if len(self.results(need)) < self.experiments[need].seeds]
        if absent:
            return f"it reads the results of {', '.join(absent)}, which are not there"
        print(f"running: {experiment.name}, seed {seed}", flush=True)
        began = time.perf_counter()
        try:
            result = experiment.measure(seed)
        except Exception as error:  # hours of other runs should not end with this one
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        self.store.save(experiment.name, self.run_of(experiment.name, seed), result)
        print(f"done: {experiment.name}, seed {seed}, {time.perf_counter() - began:.0f} s", flush=True)
        return None

    def chosen(self, only: Sequence[str]) -> list[Experiment]:
        """Return the experiments that the names choose and those that the runnable ones among them need, in order."""
        wanted = set[str]() if only else {*self.experiments}
        for name in only:
            begin = {found for found in self.experiments if found.startswith(name)}
            wanted |= {name} if name in begin else begin
        for experiment in reversed(self.experiments.values()):
            if experiment.name in wanted and not self.missing(experiment.name):
                wanted.update(experiment.needs)
        return [experiment for experiment in self.experiments.values() if experiment.name in wanted]

    def run_of(self, name: str, seed: int) -> dict[str, Any]:
        """Return everything that the result of a run depends on, for the store."""
        experiment = self.experiments[name]
        needs = {need: self.experiments[need].options() for need in experiment.needs}
        return {"experiment": name, "seed": seed, "options": experiment.options(), "needs": needs}


def recipe_of(method: str, steps: int) -> Recipe:
    """Return a method's own recipe.

    Args:
        method: The method's name.
        steps: Optimizer steps to use instead of the recipe's; 0 to keep those.

    Raises:
        MissingError: If the method has no recipe.
    """
    recipe = zoo.get_method(method).recipe
    if recipe is None:
        raise MissingError(f"{method} has no recipe")
    return dataclasses.replace(recipe, steps=steps) if steps else recipe


def numbers(recipe: Recipe) -> dict[str, Any]:
    """Return what a result depends on in a recipe: everything except its source."""
    return {name: value for name, value in dataclasses.asdict(recipe).items() if name != "source"}


def command(
    description: str, settings: type, results: str, make: Callable[[Any, Path], tuple[Runner, Callable[[], None]]]
) -> Callable[[list[str] | None], None]:
    """Build the `main` function of a benchmark.

    Args:
        description: What the benchmark does, in one line.
        settings: Dataclass whose fields are options.
        results: Name of the benchmark's folder in `results`, next to the scripts.
        make: A function from the settings and the folder of the results to the runner and to a function that writes
            the table (and pictures) of the available results.

    Returns:
        A function of command line arguments, which exits with 1 if something could not be run.
    """

    def main(arguments: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / results)
        parser.add_argument(
            "--table", action="store_true", help="write and print the table of the available results; run nothing"
        )
        parser.add_argument("--list", action="store_true", help="print the names of the experiments; run nothing")
        parser.add_argument(
            "--only",
            action="append",
            default=[],
            metavar="NAME",
            help="run the experiment NAME, or all whose names start with it, and what they need; repeatable",
        )
        for field in dataclasses.fields(settings):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=type(field.default), default=field.default, help=f"default: {field.default}")
        options = vars(parser.parse_args(arguments))
        folder, only = options.pop("results"), options.pop("only")
        is_table, is_list = options.pop("table"), options.pop("list")
        try:
            runner, write_table = make(settings(**options), folder)
        except FileNotFoundError as error:
            parser.error(str(error))
        wrong = [name for name in only if not runner.chosen([name])]
        if wrong:
            parser.error(f"no experiment begins with {wrong[0]!r}; there are {', '.join(runner.experiments)}")
        if is_list:
            for experiment in runner.chosen(only):
                problem = runner.missing(experiment.name)
                found = f"{len(runner.results(experiment.name))} of {experiment.seeds} seeds are there"
                print(f"{experiment.name}: {problem or found}")
            return
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # new heads are expected here
        problems = [] if is_table else runner.run(only)
        write_table()
        print((folder / "table.md").read_text("utf-8"))
        if problems:
            raise SystemExit("\n".join(["not run:", *problems]))

    return main
