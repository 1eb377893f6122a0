"""Show what each method gains over the untrained model, with its own recipe, on real data.

Run from the repository root; run the command again to resume it::

    python benchmarks/methods.py --data ../shared/data

Every experiment is run on three seeds. Both sides of a comparison are measured on the same rows, and a difference
counts if it is at least three standard errors. Methods that are not installed are named. See benchmarks/README.md.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

import softprompt_zoo as zoo
from common import (
    ENOUGH,
    Classified,
    Labels,
    Trainer,
    balanced,
    checksum,
    encoder_folder,
    has_head,
    load_encoder,
    load_language_model,
    markdown,
    versions,
    write,
)
from comparisons import HEADS, Column, Comparison, line
from runner import Experiment, MissingError, Result, Runner, command, numbers, recipe_of
from self_study import STUDY, make_study, match_study, train_on_study
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.examples import Example, demo_data, read_examples
from softprompt_zoo.methods.multitask_prompt_tuning import ADAPTATION_RECIPE
from softprompt_zoo.training.base import fast_dtype, with_tokenizer
from softprompt_zoo.training.data import IGNORED, Collator, Row

TEMPLATE = "Review: {input}\nSentiment:"
CONTEXT_TEMPLATE = TEMPLATE + " {target}\n\n"
WORDS = {"negative": " negative", "positive": " positive"}
SOURCES = ("tweet_sentiment", "product_sentiment")
"""Tasks that multitask prompts are trained on before films."""
FILMS = "movie_sentiment"
FILM_METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning", "llama_adapter")
SCRATCH = "prompt_tuning"
"""Method that an adapted multitask prompt is compared with; it is trained only on the few examples."""
FEW = {16: 20, 64: 60}
"""For each number of films, the steps that adapt a multitask prompt to them."""
SHOTS = 8
CARTRIDGE_SHARES = {"quarter": 4, "sixteenth": 16}
"""Lengths of cartridges: the text has this many times as many tokens."""
MATCHED_SHARE = CARTRIDGE_SHARES["quarter"]
MATCHED = {"cartridge-matched": False, "cartridge-matched-scores": True}
"""Cartridges that start from attention matching and are not trained, and whether their tokens have scores."""
SMALLER = {"cartridge": {"steps": 64, "batch_size": 8}}
"""Changes to recipes whose three runs would take more than an hour on two cores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    data: str = "../shared/data"
    """Folder with the data sets."""
    model: str = "smollm2"
    encoder: str = "minilm"
    dtype: str = ""
    """Dtype of the language model; by default the one that trains fastest on this machine. Each result records it."""
    seeds: int = 3
    steps: int = 0
    """Optimizer steps of every run; 0 to use those of the method's recipe."""
    rows: int = 500
    """Maximum number of evaluation rows."""
    text_tokens: int = 2000
    """Length of the cartridge's text."""
    conversations: int = 256
    """Number of conversations in the cartridge's self-study."""
    questions: int = 32
    """Number of held-out questions about the cartridge's text."""
    threads: int = 2


class Bench:
    """The models, the data and the experiments."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dtype = settings.dtype or fast_dtype()

    def file(self, name: str, part: str) -> Path:
        """Return a data file.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        path = Path(self.settings.data) / name / f"{part}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; give the folder that holds the data sets as --data")
        return path

    def rows(self, name: str, part: str) -> list[Example]:
        """Read a data file; of a test file, only the requested number of rows."""
        rows = read_examples(self.file(name, part))
        return rows[: self.settings.rows] if part == "test" else rows

    def sums(self, *names: str) -> dict[str, str]:
        """Return the checksums of data sets."""
        return {f"{name}/{part}": checksum(self.file(name, part)) for name in names for part in ("train", "test")}

    def tokenizer(self) -> Any:
        """Load the language model's tokenizer."""
        return AutoTokenizer.from_pretrained(resolve_model(self.settings.model))

    def labels(self, tokenizer: Any) -> Labels:
        """Return the classification of reviews, which turns them into rows and measures models."""
        return Labels(tokenizer, TEMPLATE, WORDS)

    def recipe(self, method: str) -> Recipe:
        """Return a method's own recipe, reduced if it would take too long."""
        own = recipe_of(method, 0)
        smaller: dict[str, Any] = {
            name: min(getattr(own, name), most) for name, most in SMALLER.get(method, {}).items()
        }
        return self.shortened(dataclasses.replace(own, **smaller))

    def shortened(self, recipe: Recipe) -> Recipe:
        """Return a recipe, with the number of steps that the command sets, if any."""
        return dataclasses.replace(recipe, steps=self.settings.steps) if self.settings.steps else recipe

    def attach(self, method: str, seed: int, tokenizer: Any, **options: Any) -> Any:
        """Load the language model and put a new prompt on it."""
        model = load_language_model(self.settings.model, self.dtype)
        torch.manual_seed(seed)
        chosen = zoo.get_method(method).configure(**options)
        return chosen(model, **with_tokenizer(chosen, tokenizer))

    def options(self, *methods: str, data: Sequence[str] = (), **more: Any) -> Callable[[], dict[str, Any]]:
        """Return a function that builds the options of an experiment, recipes and checksums, when it is called."""

        def make() -> dict[str, Any]:
            recipes = {method: numbers(self.recipe(method)) for method in methods}
            return {"recipes": recipes, "data": self.sums(*data), **more}

        return make

    # Films: a prompt for a language model that names the sentiment

    def untrained_films(self, seed: int) -> Result:
        """Measure the language model without a prompt."""
        labels = self.labels(self.tokenizer())
        model = load_language_model(self.settings.model, self.dtype)
        return labels.measure(model, labels.rows(self.rows(FILMS, "test")))

    def films(self, method: str) -> Callable[[int], Result]:
        """Return a function that trains a method on films and measures it."""

        def measure(seed: int) -> Result:
            tokenizer = self.tokenizer()
            labels = self.labels(tokenizer)
            model = self.attach(method, seed, tokenizer)
            trainer = Trainer(model, self.recipe(method))
            collate = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)
            history = trainer.fit(labels.rows(self.rows(FILMS, "train")), collate, seed, method)
            measured = labels.measure(model, labels.rows(self.rows(FILMS, "test")))
            return {**measured, "trained": trainer.num_trained, **history}

        return measure

    # Films with an encoder

    def encoder_films(self, method: str) -> Callable[[int], Result]:
        """Return a function that trains a method on an encoder and, for comparison, the head alone."""

        def measure(seed: int) -> Result:
            tokenizer: Any = AutoTokenizer.from_pretrained(encoder_folder(self.settings.encoder))
            classified = Classified(tokenizer, list(WORDS))
            train, test = self.rows(FILMS, "train"), self.rows(FILMS, "test")
            recipe = self.recipe(method)
            found: Result = {}
            head = load_encoder(self.settings.encoder, seed)
            found |= _prefixed("untrained", classified.measure(head, test))
            head.requires_grad_(False)
            head.classifier.requires_grad_(True)
            Trainer(head, recipe).fit(train, classified.batch, seed, "head alone")
            found |= _prefixed("head", classified.measure(head, test))
            model = load_encoder(self.settings.encoder, seed)
            torch.manual_seed(seed)
            model = zoo.get_method(method)(model, train_head=True)
            if not has_head(model):
                raise MissingError("train_head trains no head in this version")
            trainer = Trainer(model, recipe)
            history = trainer.fit(train, classified.batch, seed, method)
            measured = {"dtype": "float32", **classified.measure(model, test)}
            return {**found, **measured, "trained": trainer.num_trained, **history}

        return measure

    # Few examples

    def context(self, seed: int) -> Result:
        """Train CPT on a few examples, which it also shows; before its first step, it is in-context learning."""
        tokenizer = self.tokenizer()
        labels = self.labels(tokenizer)
        examples = balanced(self.rows(FILMS, "train"), SHOTS, seed)
        model = self.context_model(seed, tokenizer, examples)
        test = context_rows(model, tokenizer, self.rows(FILMS, "test"))
        found = _prefixed("in_context", labels.measure(model, test))
        trainer = Trainer(model, self.recipe("cpt"))
        collate = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)
        history = trainer.fit(context_rows(model, tokenizer, examples), collate, seed, "cpt")
        return {**found, **labels.measure(model, test), "trained": trainer.num_trained, **history}

    def context_model(self, seed: int, tokenizer: Any, examples: Sequence[Example]) -> Any:
        """Load the language model and put a CPT prompt on it that shows the examples."""
        shown = tuple((example.input, str(example.target)) for example in examples)
        return self.attach("cpt", seed, tokenizer, examples=shown, template=CONTEXT_TEMPLATE)

    def source_model(self, seed: int, tokenizer: Any) -> Any:
        """Train a multitask prompt on its sources."""
        method, labels = "multitask_prompt_tuning", self.labels(tokenizer)
        collate = _with_tasks(Collator(tokenizer.pad_token_id, is_encoder_decoder=False))
        rows = [(row, task) for task, name in enumerate(SOURCES) for row in labels.rows(self.rows(name, "train"))]
        model = self.attach(method, seed, tokenizer, num_tasks=len(SOURCES))
        Trainer(model, self.recipe(method)).fit(rows, collate, seed, "sources")
        return model

    def adapted(self, source: Any, few: list[Row], recipe: Recipe | None, seed: int, tokenizer: Any) -> Any:
        """Start a multitask prompt with one task from the source model's prompt, and train it if there is a recipe."""
        model = self.attach("multitask_prompt_tuning", seed, tokenizer, num_tasks=1, init=source.prompts["default"])
        if recipe is not None:
            collate = _with_tasks(Collator(tokenizer.pad_token_id, is_encoder_decoder=False))
            Trainer(model, recipe).fit([(row, 0) for row in few], collate, seed, f"{len(few)} films, adapted")
        return model

    def scratch_recipe(self) -> Recipe:
        """Return prompt tuning's recipe with the steps of the sources: a few examples are soon memorized."""
        return dataclasses.replace(self.recipe(SCRATCH), steps=self.recipe("multitask_prompt_tuning").steps)

    def multitask(self, seed: int) -> Result:
        """Train a multitask prompt on two sources and adapt it to films; also train prompts from scratch."""
        tokenizer = self.tokenizer()
        labels = self.labels(tokenizer)
        collate = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)
        source = self.source_model(seed, tokenizer)
        test = labels.rows(self.rows(FILMS, "test"))
        no_task = torch.zeros(len(test), dtype=torch.long)
        found: Result = {}
        for count, steps in FEW.items():
            few = labels.rows(balanced(self.rows(FILMS, "train"), count, seed))
            recipe = self.shortened(dataclasses.replace(ADAPTATION_RECIPE, steps=steps))
            model = self.adapted(source, few, recipe, seed, tokenizer)
            found |= _prefixed(f"adapted_{count}", labels.measure(model, test, task_ids=no_task))
            model = self.attach(SCRATCH, seed, tokenizer)
            Trainer(model, self.scratch_recipe()).fit(few, collate, seed, f"{count} films, scratch")
            found |= _prefixed(f"scratch_{count}", labels.measure(model, test))
        return found

    # Cartridge

    def study(self, seed: int) -> Result:
        """Write the self-study, and measure the model with and without the text."""
        settings = self.settings
        model = load_language_model(settings.model, self.dtype)
        return make_study(model, self.tokenizer(), settings.text_tokens, settings.conversations, settings.questions)

    def cartridge(self, share: int, runner_of: Callable[[], Runner]) -> Callable[[int], Result]:
        """Return a function that trains a cartridge on the self-study, with a token for every `share` of the text's."""

        def measure(seed: int) -> Result:
            study = runner_of().result("cartridge-study")
            assert study is not None, "the runner sees to that"
            settings = self.settings
            model = load_language_model(settings.model, self.dtype)
            recipe = self.recipe("cartridge")
            return train_on_study(model, self.tokenizer(), study, settings.text_tokens, share, recipe, seed)

        return measure

    def matched(self, scores: bool, runner_of: Callable[[], Runner]) -> Callable[[int], Result]:
        """Return a function that starts a cartridge from attention matching and measures it without training."""

        def measure(seed: int) -> Result:
            study = runner_of().result("cartridge-study")
            assert study is not None, "the runner sees to that"
            model = load_language_model(self.settings.model, self.dtype)
            return match_study(model, self.tokenizer(), study, self.settings.text_tokens, MATCHED_SHARE, scores)

        return measure


def context_rows(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[Row]:
    """Tokenize examples like the context of the model's prompt."""
    encode = model.prompts["default"].config.encode
    texts = [encode(tokenizer, example.input)["input_ids"] for example in examples]
    labeled = [encode(tokenizer, example.input, example.target)["labels"] for example in examples]
    targets = [[label for label in labels if label != IGNORED] for labels in labeled]
    return [Row(text, target) for text, target in zip(texts, targets, strict=True)]


def _with_tasks(collate: Collator) -> Callable[[list[tuple[Row, int]]], dict[str, Tensor]]:
    def with_tasks(rows: list[tuple[Row, int]]) -> dict[str, Tensor]:
        return {**collate([row for row, _ in rows]), "task_ids": torch.tensor([task for _, task in rows])}

    return with_tasks


def _prefixed(name: str, measured: Result) -> Result:
    return {f"{name}_{key}": value for key, value in measured.items()}


# Experiments, and the lines of the table


def experiments(bench: Bench, runner_of: Callable[[], Runner]) -> list[Experiment]:
    """List the experiments, cheap ones first; each result notes its `dtype`."""
    return [noting(experiment, bench.dtype) for experiment in _experiments(bench, runner_of)]


def noting(experiment: Experiment, dtype: str) -> Experiment:
    """Record the model's dtype in the results: by default it depends on the machine."""
    measure = experiment.measure
    return dataclasses.replace(experiment, measure=lambda seed: {"dtype": dtype, **measure(seed)})


def _experiments(bench: Bench, runner_of: Callable[[], Runner]) -> list[Experiment]:
    settings, options = bench.settings, bench.options
    shared: dict[str, Any] = {"seeds": settings.seeds}
    study = {name: getattr(settings, name) for name in ("text_tokens", "conversations", "questions")} | STUDY

    return [
        Experiment(
            name="encoder-p_tuning_v2",
            methods=("p_tuning_v2",),
            measure=bench.encoder_films("p_tuning_v2"),
            options=options("p_tuning_v2", data=[FILMS]),
            **shared,
        ),
        Experiment(name="films-untrained", measure=bench.untrained_films, options=options(data=[FILMS])),
        *(
            Experiment(
                name=f"films-{method}",
                methods=(method,),
                measure=bench.films(method),
                options=options(method, data=[FILMS]),
                needs=("films-untrained",),
                **shared,
            )
            for method in FILM_METHODS
        ),
        Experiment(
            name="context-cpt",
            methods=("cpt",),
            measure=bench.context,
            options=options("cpt", data=[FILMS], shots=SHOTS),
            **shared,
        ),
        Experiment(
            name="multitask",
            methods=("multitask_prompt_tuning",),
            measure=bench.multitask,
            options=options(
                "multitask_prompt_tuning",
                data=[FILMS, *SOURCES],
                few=FEW,
                adaptation=numbers(ADAPTATION_RECIPE),
                scratch=numbers(bench.scratch_recipe()),
            ),
            **shared,
        ),
        Experiment(
            name="cartridge-study",
            methods=("cartridge",),
            measure=bench.study,
            options=lambda: {**study, "document": checksum(demo_data() / "train.jsonl")},
        ),
        *(
            Experiment(
                name=f"cartridge-{part}",
                methods=("cartridge",),
                measure=bench.cartridge(share, runner_of),
                options=options("cartridge"),
                needs=("cartridge-study",),
                **shared,
            )
            for part, share in CARTRIDGE_SHARES.items()
        ),
        *(
            Experiment(
                name=name,
                methods=("cartridge",),
                measure=bench.matched(scores, runner_of),
                options=lambda: {"share": MATCHED_SHARE},
                needs=("cartridge-study",),
            )
            for name, scores in MATCHED.items()
        ),
    ]


def comparisons() -> list[Comparison]:
    """List the lines of the table, in order."""
    found = []

    def add(section: str, title: str, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        for measure in ("accuracy", "loss"):
            columns = [Column(name, f"{key}{measure}") for name, key in (ours, theirs)]
            row = {"section": section, "title": title, "measure": measure}
            found.append(Comparison(**row, ours=columns[0], theirs=columns[1]))

    name = "encoder-p_tuning_v2"
    add("Films under MiniLM", "p_tuning_v2 against untrained", (name, ""), (name, "untrained_"))
    add("Films under MiniLM", "p_tuning_v2 against its head alone", (name, ""), (name, "head_"))
    for method in FILM_METHODS:
        add("Films with SmolLM2", f"{method} against untrained", (f"films-{method}", ""), ("films-untrained", ""))
    section = f"Films from {SHOTS} examples"
    add(section, "cpt against in-context learning", ("context-cpt", ""), ("context-cpt", "in_context_"))
    for count in FEW:
        add(
            f"Films from {count} examples, after tweets and products",
            "multitask_prompt_tuning against prompt_tuning from scratch",
            ("multitask", f"adapted_{count}_"),
            ("multitask", f"scratch_{count}_"),
        )
    for part in CARTRIDGE_SHARES:
        found.append(
            Comparison(
                section="A text in a cartridge",
                title=f"cartridge of a {part} of the text's tokens: share of the gap it closes",
                measure="loss of answers",
                ours=Column(f"cartridge-{part}", "loss"),
                theirs=Column("cartridge-study", "without_text_loss"),
                best=Column("cartridge-study", "with_text_loss"),
            )
        )
    for name, scores in MATCHED.items():
        with_scores = "with scores" if scores else "without scores"
        found.append(
            Comparison(
                section="A text in a cartridge",
                title=f"a quarter by attention matching {with_scores}, not trained: share of the gap it closes",
                measure="loss of answers",
                ours=Column(name, "loss"),
                theirs=Column("cartridge-study", "without_text_loss"),
                best=Column("cartridge-study", "with_text_loss"),
            )
        )
    return found


def table(runner: Runner, settings: Settings) -> str:
    """Return the tables of the available results, in Markdown."""
    parts = list[str]()
    lines: dict[str, list[tuple[str, ...]]] = {}
    for comparison in comparisons():
        lines.setdefault(comparison.section, []).append(line(runner, comparison))
    for section, found in lines.items():
        parts += [f"### {section}", "", markdown(HEADS, found), ""]
    steps = f"{settings.steps} steps" if settings.steps else f"each method's recipe, but for {_smaller()}"
    parts += [
        f"Training: {steps}. Measured on at most {settings.rows} test rows, the same for both sides. "
        "A gain is positive where the method is better; a share is of the loss between the model without and with the "
        "text. Its standard error is the larger of two: over the evaluation rows (paired differences, each a mean over "
        f"the seeds; of a share by the jackknife) and over the seeds. *Errors*: how many of them; {ENOUGH:g} count.",
        "",
    ]
    return "\n".join(parts)


def _smaller() -> str:
    """Return a note about methods that are trained with fewer steps or rows than in their recipe."""
    texts = []
    for method, changes in SMALLER.items():
        own = recipe_of(method, 0) if method in zoo.list_methods() else None
        parts = [f"{most} {name} (recipe: {getattr(own, name, '-')})" for name, most in changes.items()]
        texts.append(f"{method}: {', '.join(parts)}".replace("batch_size", "rows a step"))
    return "; ".join(texts)


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table."""
    torch.set_num_threads(settings.threads)
    bench = Bench(settings)
    for name in (FILMS, *SOURCES):
        bench.file(name, "train")
    shared = {
        **{name: getattr(settings, name) for name in ("model", "encoder", "rows")},
        "versions": versions("softprompt-zoo", "transformers", "torch"),
    }
    runners = list[Runner]()
    runners.append(Runner(folder, shared, experiments(bench, lambda: runners[0])))
    return runners[0], lambda: write(folder / "table.md", table(runners[0], settings))


main = command((__doc__ or "").splitlines()[0], Settings, "methods", make)

if __name__ == "__main__":
    main()
