"""Search the recipes of the methods: short runs at a few rates, measured on rows that nothing else uses.

Run from the repository root; run the command again to resume it::

    python benchmarks/recipes.py --data ../shared/data

Models, texts and measures are those of methods.py, but the last rows of each training file are held out and used for
measuring instead of the test rows. See benchmarks/README.md.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import methods
from common import Trainer, balanced, markdown, versions, write
from methods import FILMS, SHOTS, SOURCES, context_rows, noting
from runner import Experiment, Result, Runner, command, numbers, recipe_of
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.examples import Example, read_examples
from softprompt_zoo.methods.multitask_prompt_tuning import ADAPTATION_RECIPE
from softprompt_zoo.training.data import Collator

SHORT: dict[str, Any] = {"steps": 60, "batch_size": 8, "warmup_steps": 5, "schedule": "linear", "weight_decay": 0.0}
LONG: dict[str, Any] = {**SHORT, "steps": 200}
FEW: dict[str, Any] = {**SHORT, "batch_size": 1}
ENCODER: dict[str, Any] = {**LONG, "batch_size": 16}
GRID: dict[str, tuple[tuple[dict[str, Any], tuple[float, ...]], ...]] = {
    "p_tuning_v2": ((ENCODER, (5e-3, 1e-2, 2e-2, 5e-2)),),
    "prompt_tuning": ((LONG, (3e-2,)),),
    "p_tuning": ((SHORT, (1e-3, 3e-3, 1e-2)), (LONG, (1e-3,))),
    "llama_adapter": ((SHORT, (3e-3, 1e-2, 3e-2, 1e-1)), (LONG, (3e-3,))),
    "multitask_prompt_tuning": ((SHORT, (1e-2, 3e-2, 1e-1)),),
    "idpg": ((SHORT, (1e-3, 3e-3)),),
    "capt": ((SHORT, (3e-3, 1e-2, 3e-2)),),
    "smop": ((SHORT, (3e-2, 1e-1)),),
    "cpt": ((FEW, (1e-4, 1e-3, 1e-2)),),
}
"""What is tried for each method: the settings that runs share, and their rates."""
TRANSFER = "multitask_prompt_tuning"
ADAPTATIONS = {16: ((1e-2, 20), (3e-3, 20), (3e-3, 60)), 64: ((1e-2, 20), (3e-3, 20), (3e-3, 60))}
"""For each number of films, the rates and steps that are tried when a multitask prompt is adapted to them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(methods.Settings):
    """The options of the command."""

    rows: int = 150
    """Number of rows at the end of each training file that are used for measuring."""
    seeds: int = 1


class Bench(methods.Bench):
    """The models and the data of methods.py, without its test rows."""

    def rows(self, name: str, part: str) -> list[Example]:
        """Return the training file's last rows if `part` is `"test"`, and all others if not."""
        rows = read_examples(self.file(name, "train"))
        return rows[-self.settings.rows :] if part == "test" else rows[: -self.settings.rows]

    def sums(self, *names: str) -> dict[str, str]:
        """Return the checksums of training files."""
        return {name: found for name, found in super().sums(*names).items() if name.endswith("train")}

    def measure(self, method: str, recipe: Recipe) -> Callable[[int], Result]:
        """Return a function that trains a method with a recipe and measures it."""
        bench = Bench(self.settings)
        bench.recipe = lambda _: recipe  # type: ignore[method-assign]
        special: dict[str, Callable[[int], Result]] = {
            "p_tuning_v2": bench.encoder_films(method),
            "cpt": bench.few_examples,
            "multitask_prompt_tuning": bench.sources,
        }
        return special.get(method, bench.films(method))

    def few_examples(self, seed: int) -> Result:
        """Train CPT on a few examples."""
        tokenizer = self.tokenizer()
        examples = balanced(self.rows(FILMS, "train"), SHOTS, seed)
        model = self.context_model(seed, tokenizer, examples)
        collate = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)
        Trainer(model, self.recipe("cpt")).fit(context_rows(model, tokenizer, examples), collate, seed, "cpt")
        return self.labels(tokenizer).measure(model, context_rows(model, tokenizer, self.rows(FILMS, "test")))

    def adaptation(self, seed: int) -> Result:
        """Train a multitask prompt on its sources, and adapt it to a few films with every recipe that is tried."""
        tokenizer = self.tokenizer()
        labels = self.labels(tokenizer)
        source = self.source_model(seed, tokenizer)
        test = labels.rows(self.rows(FILMS, "test"))
        found: Result = {}
        for count, tried in ADAPTATIONS.items():
            few = labels.rows(balanced(self.rows(FILMS, "train"), count, seed))
            for rate, steps in ((0.0, 0), *tried):
                recipe = Recipe(**{**SHORT, "steps": self.settings.steps or steps}, learning_rate=rate or 1.0)
                model = self.adapted(source, few, recipe if steps else None, seed, tokenizer)
                no_task = torch.zeros(len(test), dtype=torch.long)
                measured = labels.measure(model, test, task_ids=no_task)
                found |= {f"{key}_{count}_{rate:g}_{steps}": value for key, value in measured.items()}
        return found

    def sources(self, seed: int) -> Result:
        """Train a multitask prompt on its sources and measure it on held-out rows of these, each row with its task."""
        tokenizer = self.tokenizer()
        labels = self.labels(tokenizer)
        model = self.source_model(seed, tokenizer)
        rows = [(row, task) for task, name in enumerate(SOURCES) for row in labels.rows(self.rows(name, "test"))]
        tasks = torch.tensor([task for _, task in rows])
        return labels.measure(model, [row for row, _ in rows], task_ids=tasks)


def recipes(method: str, settings: Settings) -> Iterable[Recipe]:
    """Return the recipes that are tried for a method."""
    steps = {"steps": settings.steps} if settings.steps else {}
    return [Recipe(**{**shared, **steps}, learning_rate=rate) for shared, rates in GRID[method] for rate in rates]


def name_of(method: str, recipe: Recipe) -> str:
    """Return the experiment's name."""
    return f"{method}-{recipe.learning_rate:g}-{recipe.steps}"


def experiments(bench: Bench) -> list[Experiment]:
    """List the experiments."""
    data = bench.sums(FILMS, *SOURCES)
    found = [
        Experiment(
            name=name_of(method, recipe),
            methods=(method,),
            measure=bench.measure(method, recipe),
            options=lambda recipe=recipe: {"recipe": numbers(recipe), "data": data},  # type: ignore[misc]
            seeds=bench.settings.seeds,
        )
        for method in GRID
        for recipe in recipes(method, bench.settings)
    ] + [
        Experiment(
            name="adaptation",
            methods=(TRANSFER,),
            measure=bench.adaptation,
            options=lambda: {
                "recipe": numbers(recipe_of(TRANSFER, 0)),
                "tried": ADAPTATIONS,
                "data": data,
            },
            seeds=bench.settings.seeds,
        )
    ]
    return [noting(experiment, bench.dtype) for experiment in found]


HEADS = ("method", "learning rate", "steps", "rows a step", "loss", "accuracy", "dtype", "the recipe's rate now")


def table(runner: Runner, settings: Settings) -> str:
    """Return the table of the available results, in Markdown."""
    lines = []
    for method in GRID:
        for recipe in recipes(method, settings):
            name = name_of(method, recipe)
            results = runner.results(name)
            problem = runner.missing(name) or "not run"
            means = [_mean(results, key) for key in ("loss", "accuracy")]
            found = [*means, results[0]["dtype"]] if results else [problem, "-", "-"]
            now = "" if runner.missing(name) else f"{recipe_of(method, 0).learning_rate:g}"
            lines.append((method, f"{recipe.learning_rate:g}", str(recipe.steps), str(recipe.batch_size), *found, now))
    results = runner.results("adaptation")
    for count, tried in ADAPTATIONS.items():
        for rate, steps in ((0.0, 0), *tried) if results else ():
            means = [_mean(results, f"{key}_{count}_{rate:g}_{steps}") for key in ("loss", "accuracy")]
            found = [*means, results[0]["dtype"]]
            title = f"{TRANSFER}, adapted to {count} films" if steps else f"{TRANSFER}, before it is adapted"
            now = f"{ADAPTATION_RECIPE.learning_rate:g}"
            lines.append((title, f"{rate:g}", str(steps), str(SHORT["batch_size"]), *found, now))
    note = (
        f"Means over {settings.rows} rows of each training file that are not trained on: of films, for "
        f"multitask_prompt_tuning of its sources; cpt learns from {SHOTS} examples. Nats."
    )
    return "\n".join([markdown(HEADS, lines), "", note, ""])


def _mean(results: list[Result], key: str) -> str:
    values = [value for result in results for value in result[key]]
    return f"{sum(values) / len(values):.3f}" if values else "-"


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table."""
    torch.set_num_threads(settings.threads)
    shared = {
        **{name: getattr(settings, name) for name in ("model", "encoder", "rows")},
        "versions": versions("softprompt-zoo", "transformers", "torch"),
    }
    runner = Runner(folder, shared, experiments(Bench(settings)))
    return runner, lambda: write(folder / "table.md", table(runner, settings))


main = command((__doc__ or "").splitlines()[0], Settings, "recipes", make)

if __name__ == "__main__":
    main()
