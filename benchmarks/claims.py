"""Compare the claims of papers with measurements of their methods, at a small size.

Run from the repository root; run the command again to resume it::

    python benchmarks/claims.py --data ../shared/data

Each method is trained on films with the language model, with its recipe but in few steps, next to plain prompts with
the same number of trained parameters. A claim holds here if the difference is at least three standard errors, over
three seeds. See benchmarks/README.md.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import methods
from common import ENOUGH, Trainer, balanced, markdown, rounded, step_rows, versions, write
from comparisons import HEADS, Column, Comparison, compare, line
from methods import FILMS, noting
from paper_claims import CLAIMS, CPU_SECONDS, ENTRIES, Claim, Entry
from runner import Experiment, Result, Runner, command
from softprompt_zoo.examples import Example
from softprompt_zoo.training.data import Collator

UNTRAINED, PAIRED = "untrained", "paired"
PAIRS, PAIRED_ROWS = 4, 8
"""Timed steps of each side, after one that is not timed, and the rows of each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving(Comparison):
    """A comparison of times, by the share of the other side's time that is saved."""

    def statistic(self, *means: float) -> float:
        """Return the share of time that is saved, from the mean seconds of both sides."""
        ours, theirs = means
        return 1 - ours / theirs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(methods.Settings):
    """The options of the command."""

    steps: int = 24
    rows: int = 100
    threads: int = 1


class Bench(methods.Bench):
    """The model and the films of methods.py, with the entries of paper_claims.py."""

    def trained(self, name: str) -> Callable[[int], Result]:
        """Return a function that trains and measures an entry; an entry with shots is shown its training films."""
        entry = ENTRIES[name]

        def measure(seed: int) -> Result:
            options = dict(entry.options)
            if entry.shots:
                options["examples"] = [(film.input, str(film.target)) for film in self.films_of(entry, seed)]
            return self.train(entry, entry.method, options, seed)

        return measure

    def beside(self, name: str, runner_of: Callable[[], Runner]) -> Callable[[int], Result]:
        """Return a function that trains and measures the plain counterpart of an entry on the same films."""
        entry = ENTRIES[name]

        def measure(seed: int) -> Result:
            counted = {} if entry.plain_tokens else {"num_virtual_tokens": self.as_many(name, runner_of(), seed)}
            return self.train(entry, entry.plain, {**entry.plain_options, **counted}, seed)

        return measure

    def as_many(self, name: str, runner: Runner, seed: int) -> int:
        """Return how many plain virtual tokens have as many parameters as an entry has trained."""
        result = runner.result(name, seed)
        assert result is not None, "the runner sees to that"
        one = self.attach(ENTRIES[name].plain, seed, self.tokenizer(), num_virtual_tokens=1)
        return round(result["trained"] / one.prompts["default"].num_parameters)

    def train(self, entry: Entry, method: str, options: Mapping[str, Any], seed: int) -> Result:
        """Train a method on films and measure it on others.

        Args:
            entry: The entry, which says how many films to train on.
            method: The method's name.
            options: The method's options; a method that is shown the films gets them as `examples`.
            seed: The seed of the films, the initial values and the order.

        Returns:
            The `loss` and `accuracy` of each test row, also before training if the method is shown the films; the
            number of `trained` parameters; and the loss and the seconds of each step.
        """
        tokenizer = self.tokenizer()
        labels = self.labels(tokenizer)
        model = self.attach(method, seed, tokenizer, **options)
        test = labels.rows(self.rows(FILMS, "test"))
        shown = labels.measure(model, test) if "examples" in options else {}
        films, recipe = labels.rows(self.films_of(entry, seed)), self.recipe(method)
        # No film may occur twice in a step.
        trainer = Trainer(model, dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(films))))
        collate = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)
        history = trainer.fit(films, collate, seed, method)
        before = {f"before_{key}": values for key, values in shown.items()}
        return {**before, **labels.measure(model, test), "trained": trainer.num_trained, **history}

    def paired(self, name: str) -> Callable[[int], Result]:
        """Return a function that times the steps of an entry and of its plain counterpart in turns in one process."""
        entry = ENTRIES[name]
        sides = {"own": (entry.method, entry.options), "beside": (entry.plain, entry.plain_options)}

        def measure(seed: int) -> Result:
            tokenizer = self.tokenizer()
            collate = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)
            trainers = {
                side: Trainer(self.attach(method, seed, tokenizer, **options), self.recipe(method))
                for side, (method, options) in sides.items()
            }
            films = self.labels(tokenizer).rows(self.films_of(entry, seed))
            seconds: dict[str, list[float]] = {f"{side}_{CPU_SECONDS}": [] for side in sides}
            for number, chosen in enumerate(step_rows(films, 1 + PAIRS, PAIRED_ROWS, seed)):
                for side in list(trainers)[:: 1 if number % 2 else -1]:
                    taken = trainers[side].step(collate(chosen))[CPU_SECONDS]
                    seconds[f"{side}_{CPU_SECONDS}"] += [taken] if number else []  # the first one warms up
            return {name: rounded(values) for name, values in seconds.items()}

        return measure

    def films_of(self, entry: Entry, seed: int) -> list[Example]:
        """Return the films that an entry is trained on."""
        films = self.rows(FILMS, "train")
        return balanced(films, entry.shots, seed) if entry.shots else films


def experiments(bench: Bench, runner_of: Callable[[], Runner]) -> list[Experiment]:
    """List the experiments."""
    shared: dict[str, Any] = {"seeds": bench.settings.seeds}
    sizes = {name: {"options": dict(entry.options), "shots": entry.shots} for name, entry in ENTRIES.items()}
    besides = {entry.beside(name): name for name, entry in ENTRIES.items()}
    found = [
        Experiment(name=UNTRAINED, measure=bench.untrained_films, options=bench.options(data=[FILMS])),
        *(
            Experiment(
                name=name,
                methods=(entry.method,),
                measure=bench.trained(name),
                options=bench.options(entry.method, data=[FILMS], **sizes[name]),
                **shared,
            )
            for name, entry in ENTRIES.items()
        ),
        *(
            Experiment(
                name=beside,
                methods=(ENTRIES[name].plain,),
                measure=bench.beside(name, runner_of),
                options=bench.options(ENTRIES[name].plain, data=[FILMS], tokens=ENTRIES[name].plain_tokens),
                needs=() if ENTRIES[name].plain_tokens else (name,),
                **shared,
            )
            for beside, name in besides.items()
        ),
        *(
            Experiment(
                name=f"{PAIRED}-{claim.entry}",
                methods=(ENTRIES[claim.entry].method, ENTRIES[claim.entry].plain),
                measure=bench.paired(claim.entry),
                options=bench.options(
                    ENTRIES[claim.entry].method,
                    ENTRIES[claim.entry].plain,
                    data=[FILMS],
                    **sizes[claim.entry],
                    beside=ENTRIES[claim.entry].plain_options,
                    pairs=PAIRS,
                    paired_rows=PAIRED_ROWS,
                ),
                **shared,
            )
            for claim in CLAIMS
            if claim.key == CPU_SECONDS
        ),
    ]
    return [noting(experiment, bench.dtype) for experiment in found]


# Tables


CLAIM_HEADS = ("claim", "measured", "three standard errors", "verdict", "seeds", "dtype")


def gains(runner: Runner) -> str:
    """Return the table of each method's gains over the untrained model and over plain prompts."""
    lines = []
    for name, entry in ENTRIES.items():
        for experiment, key, against in _others(runner, name, entry):
            for measure in ("accuracy", "loss"):
                title = f"{_with_size(runner, name)} against {against}"
                columns = {"ours": Column(name, measure), "theirs": Column(experiment, f"{key}{measure}")}
                lines.append(line(runner, Comparison(section="", title=title, measure=measure, **columns)))
    return markdown(HEADS, lines)


def _others(runner: Runner, name: str, entry: Entry) -> list[tuple[str, str, str]]:
    """Return what an entry is compared with: the experiment, the prefix of its keys, and its name in the table."""
    found = [(UNTRAINED, "", "the untrained model"), (entry.beside(name), "", _with_size(runner, entry.beside(name)))]
    return [*found, (name, "before_", "itself before training")] if entry.shots else found


def _with_size(runner: Runner, name: str) -> str:
    """Return the name of an experiment with its number of trained parameters."""
    results = runner.results(name)
    counts = sorted({result["trained"] for result in results})
    shown = " to ".join(f"{count:,}" for count in (counts[:1] + counts[-1:] if len(counts) > 1 else counts))
    return f"{name} ({shown} numbers)" if counts else name


def claim_line(runner: Runner, claim: Claim) -> tuple[str, ...]:
    """Return the line of a claim in the table with `CLAIM_HEADS`; if results cannot be compared, the line says why."""
    says = f"{claim.entry}: {claim.says} ({claim.paper})"
    if claim.key == CPU_SECONDS:
        sides = [Column(f"{PAIRED}-{claim.entry}", f"{side}_{CPU_SECONDS}") for side in ("own", "beside")]
    else:
        beside = claim.against or ENTRIES[claim.entry].beside(claim.entry)
        sides = [Column(claim.entry, claim.key), Column(beside, claim.against_key or claim.key)]
    kind = Saving if claim.key == CPU_SECONDS else Comparison
    found = compare(runner, kind(section="", title=says, measure=claim.key, ours=sides[0], theirs=sides[1]))
    if isinstance(found, str):
        return (says, found, *["-"] * (len(CLAIM_HEADS) - 2))
    value, margin = found.gain.value, ENOUGH * found.gain.error
    means = f"{found.means[1]:.3f} to {found.means[0]:.3f}"
    unit = f"of the time, {means} s a step" if claim.key == CPU_SECONDS else f"{claim.key}, {means}"
    shown = (f"{value:+.3f} ({unit})", f"{value - margin:+.3f} to {value + margin:+.3f}")
    return (says, *shown, verdict(value - margin, value + margin, claim.least), str(found.seeds), found.dtype)


def verdict(lowest: float, highest: float, least: float) -> str:
    """Return the verdict of an interval on the claim that something is better by at least `least`."""
    if lowest >= least and highest > lowest:
        return "holds here"
    return "does not" if highest <= least else "not at this size"


def table(runner: Runner, settings: Settings) -> str:
    """Return the tables of the available results, in Markdown."""
    steps = f"{settings.steps} steps" if settings.steps else "the steps of its recipe"
    shots = ", ".join(f"{name} and what stands beside it on {e.shots}" for name, e in ENTRIES.items() if e.shots)
    notes = (
        f"Each method is trained by its recipe, for {steps}, on {FILMS} with {settings.model} ({shots} films), and "
        f"measured on at most {settings.rows} test rows, the same for all. The papers' runs are larger and longer."
    )
    claims = (
        "A positive number is in the claim's favor; of a loss, in nats, the difference, of time the part that is saved "
        "(processor time of steps that both take by turns). *Holds here*: the whole interval is on the claim's "
        "side. *Does not*: it is on the other side. *Not at this size*: the interval is on both, so this many rows, "
        "steps and seeds cannot tell."
    )
    lines = [claim_line(runner, claim) for claim in CLAIMS]
    parts = ["### Claims", markdown(CLAIM_HEADS, lines), claims, "### What is gained", gains(runner), notes]
    return "\n\n".join(parts) + "\n"


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table."""
    torch.set_num_threads(settings.threads)
    bench = Bench(settings)
    bench.file(FILMS, "train")
    shared = {
        **{name: getattr(settings, name) for name in ("model", "rows")},
        "versions": versions("softprompt-zoo", "transformers", "torch"),
    }
    runners = list[Runner]()
    runners.append(Runner(folder, shared, experiments(bench, lambda: runners[0])))
    return runners[0], lambda: write(folder / "table.md", table(runners[0], settings))


main = command((__doc__ or "").splitlines()[0], Settings, "claims", make)

if __name__ == "__main__":
    main()
