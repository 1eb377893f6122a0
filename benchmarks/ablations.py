"""Repeat the papers' ablations in small runs, with a table and a picture.

Run from the repository root; run the command again to resume it::

    python benchmarks/ablations.py --data ../shared/data

The ablations vary where virtual tokens enter, how many there are, what they start from, and whether layers share
them. They also measure how much attention virtual tokens get, and how well they do in domains that they were not
trained on. See benchmarks/README.md.
"""

import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

import common
import shared_prefix
import softprompt_zoo as zoo
from common import (
    INSTRUCTION,
    Classified,
    Trainer,
    checksum,
    encoder_folder,
    estimate,
    has_head,
    load_encoder,
    load_language_model,
    loss_difference,
    markdown,
    target_losses,
    target_mean,
    versions,
    with_range,
    write,
)
from runner import Experiment, MissingError, Result, Runner, command, numbers, recipe_of
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.examples import Example, read_examples
from softprompt_zoo.files.writing import write_atomically
from softprompt_zoo.training.data import IGNORED, Row, Tokenized, pad

PICTURE = "ablations.png"
TEXTS = "e2e_nlg"
FILMS = "movie_sentiment"
DOMAINS = (FILMS, "tweet_sentiment", "product_sentiment")
"""Models are trained on the first domain and tested on all of them."""
LABELS = ("negative", "positive")
ENCODER_METHODS = ("prompt_tuning", "prefix_tuning", "p_tuning_v2")
FINE_TUNING = "full fine-tuning"
FINE_TUNING_RATE = 1e-4
ATTENTION_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Variant:
    """A prompt on the language model."""

    method: str
    tokens: int = 20
    start: str = ""
    """What the tokens start from; `""` for the method's own default."""
    place: str = "front"
    """Where the tokens go: `"front"`, before the input, or `"infix"`, between input and output."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        parts = (self.method, str(self.tokens), self.start, "" if self.place == "front" else self.place)
        return "-".join(part for part in parts if part)


PREFIX, PROMPT = Variant("prefix_tuning"), Variant("prompt_tuning")
GATED = Variant("llama_adapter", 10)
ABLATIONS: dict[str, dict[str, Variant]] = {
    "Where they enter": {
        "prefix: keys and values of every layer, in front": PREFIX,
        "infix: embeddings, between input and output": dataclasses.replace(PROMPT, place="infix"),
        "embedding only: embeddings, in front": PROMPT,
        "gated: a softmax of their own in every layer": GATED,
    },
    "Tokens of a prompt": {str(count): Variant("prompt_tuning", count) for count in (1, 5, 20, 100)},
    "Tokens of a prefix": {str(count): Variant("prefix_tuning", count) for count in (1, 5, 20, 100)},
    "Start of a prompt": {
        "sampled words": PROMPT,
        "text: the instruction": Variant("prompt_tuning", start="text"),
        "random numbers": Variant("prompt_tuning", start="random"),
    },
    "Start of a prefix": {
        "sampled words": PREFIX,
        "text: the instruction": Variant("prefix_tuning", start="text"),
        "chat: the instruction as a system message": Variant("prefix_tuning", start="chat"),
        "random numbers": Variant("prefix_tuning", start="random"),
    },
    "Shared or per layer": {"per layer": PREFIX, "shared": Variant(shared_prefix.NAME)},
}
"""The variants of each ablation by title; each variant is compared with the first."""
ATTENTION = {"prefix": PREFIX, "prompt": PROMPT, "shared prefix": Variant(shared_prefix.NAME), "LLaMA-Adapter": GATED}
"""Variants whose attention is shown layer by layer."""
UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    data: str = "../shared/data"
    """Folder with the data sets."""
    model: str = "smollm2"
    encoder: str = "minilm"
    dtype: str = "bfloat16"
    steps: int = 40
    encoder_steps: int = 150
    seeds: int = 1
    encoder_seeds: int = 3
    rows: int = 96
    """Evaluation rows of the language model, from the end of the training file."""
    encoder_rows: int = 500
    """Maximum number of evaluation rows per domain for the encoder."""
    threads: int = 2


class Bench:
    """The models, the data and the experiments."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        for name in (TEXTS, *DOMAINS):
            self.file(name, "train")

    def file(self, name: str, part: str) -> Path:
        """Return a data file.

        Raises:
            FileNotFoundError: If it does not exist.
        """
        path = Path(self.settings.data) / name / f"{part}.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; give the folder that holds the data sets as --data")
        return path

    # Language model

    def variant(self, variant: Variant) -> Callable[[int], Result]:
        """Return a function that trains a variant on E2E and measures it."""

        def measure(seed: int) -> Result:
            settings = self.settings
            tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(settings.model))
            count = variant.tokens if variant.place == "infix" else 0
            train, test = self._rows(tokenizer, count)
            model = load_language_model(settings.model, settings.dtype)
            torch.manual_seed(seed)
            chosen = zoo.get_method(variant.method).configure(num_virtual_tokens=variant.tokens)
            options = start_options(variant.start, tokenizer)
            model = chosen(model, **options)
            trainer = Trainer(model, recipe_of(variant.method, settings.steps))
            pad_id = tokenizer.pad_token_id
            inputs: common.Inputs = (lambda rows: slots(rows, count)) if count else common.no_inputs
            history = trainer.fit(train, lambda rows: _batch(rows, pad_id, inputs), seed, variant.name)
            losses = target_losses(model, test, pad_id, inputs=inputs)
            found = {**_measured(losses, test), "trained": trainer.num_trained, **history}
            if not count:
                found |= attention_split(model, test[:ATTENTION_ROWS], pad_id)
            return found

        return measure

    def untrained(self, seed: int) -> Result:
        """Measure the language model without a prompt."""
        tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(self.settings.model))
        _, test = self._rows(tokenizer, 0)
        model = load_language_model(self.settings.model, self.settings.dtype)
        return _measured(target_losses(model, test, tokenizer.pad_token_id), test)

    def _rows(self, tokenizer: Any, count: int) -> tuple[list[Row], list[Row]]:
        tokenized = Tokenized(tokenizer, is_encoder_decoder=False, template="{input}\n")
        rows = tokenized.rows(read_examples(self.file(TEXTS, "train")))
        # Each virtual token replaces an id, whose value does not matter.
        rows = [Row(row.text + [tokenizer.pad_token_id] * count, row.target) for row in rows]
        train, _, test = common.split(rows, 0, self.settings.rows)
        return train, test

    # Encoder

    def domains(self, method: str) -> Callable[[int], Result]:
        """Return a function that trains a method on films and measures it on all domains."""

        def measure(seed: int) -> Result:
            settings = self.settings
            tokenizer: Any = AutoTokenizer.from_pretrained(encoder_folder(settings.encoder))
            classified = Classified(tokenizer, LABELS)
            model = load_encoder(settings.encoder, seed)
            torch.manual_seed(seed)
            if method == FINE_TUNING:
                recipe = Recipe(learning_rate=FINE_TUNING_RATE, steps=settings.encoder_steps)
            else:
                recipe = recipe_of(method, settings.encoder_steps)
                model = zoo.get_method(method)(model, train_head=True)
                if not has_head(model):
                    raise MissingError("train_head trains no head in this version")
            trainer = Trainer(model, recipe)
            history = trainer.fit(read_examples(self.file(FILMS, "train")), classified.batch, seed, method)
            found: Result = {"trained": trainer.num_trained}
            for domain in DOMAINS:
                measured = classified.measure(model, self._test(domain))
                found |= {f"{domain}_{key}": value for key, value in measured.items()}
            return {**found, **history}

        return measure

    def _test(self, domain: str) -> list[Example]:
        return read_examples(self.file(domain, "test"))[: self.settings.encoder_rows]

    # Experiments

    def experiments(self) -> list[Experiment]:
        """List the experiments; those of the encoder come first because they take only seconds."""
        settings = self.settings
        found = [
            Experiment(
                name=domains_name(method),
                methods=() if method == FINE_TUNING else (method,),
                measure=self.domains(method),
                options=lambda method=method: self._domain_options(method),  # type: ignore[misc]
                seeds=settings.encoder_seeds,
            )
            for method in (FINE_TUNING, *ENCODER_METHODS)
        ]
        found.append(Experiment(name=UNTRAINED, measure=self.untrained, options=self._text_options))
        variants = dict.fromkeys(variant for ablation in ABLATIONS.values() for variant in ablation.values())
        found += [
            Experiment(
                name=variant.name,
                methods=(variant.method,),
                measure=self.variant(variant),
                options=lambda variant=variant: self._variant_options(variant),  # type: ignore[misc]
                seeds=settings.seeds,
            )
            for variant in variants
        ]
        return found

    def _text_options(self) -> dict[str, Any]:
        data = checksum(self.file(TEXTS, "train"))
        return {"model": self.settings.model, "dtype": self.settings.dtype, "data": data, "rows": self.settings.rows}

    def _variant_options(self, variant: Variant) -> dict[str, Any]:
        recipe = numbers(recipe_of(variant.method, self.settings.steps))
        return {**self._text_options(), **dataclasses.asdict(variant), "recipe": recipe}

    def _domain_options(self, method: str) -> dict[str, Any]:
        settings = self.settings
        recipe: Any = {"rate": FINE_TUNING_RATE, "steps": settings.encoder_steps}
        if method != FINE_TUNING:
            recipe = numbers(recipe_of(method, settings.encoder_steps))
        sums = {name: checksum(self.file(name, part)) for name in DOMAINS for part in ("train", "test")}
        return {"encoder": settings.encoder, "rows": settings.encoder_rows, "data": sums, "recipe": recipe}


def _measured(losses: list[float], rows: list[Row]) -> Result:
    return {"loss": target_mean(losses, rows), "losses": losses, "tokens": [len(row.target) for row in rows]}


def domains_name(method: str) -> str:
    """Return the name of a method's experiment on domains."""
    return f"domains-{method.replace(' ', '-')}"


def start_options(start: str, tokenizer: Any) -> dict[str, Any]:
    """Return the method options for what a prompt starts from."""
    if start not in ("text", "chat"):
        return {"init": start} if start else {}
    message = [{"role": "system", "content": INSTRUCTION}]
    text = INSTRUCTION if start == "text" else tokenizer.apply_chat_template(message, tokenize=False)
    return {"init": "text", "init_text": text, "tokenizer": tokenizer}


def slots(rows: Sequence[Row], count: int) -> dict[str, Tensor]:
    """Return `soft_slots` that put the virtual tokens in the last places of each row's text."""
    length = max(map(len, rows))
    index = torch.full((len(rows), length), -1)
    for row, places in zip(rows, index, strict=True):
        places[len(row.text) - count : len(row.text)] = torch.arange(count)
    return {"soft_slots": index}


def _batch(rows: list[Row], pad_id: int, inputs: common.Inputs) -> dict[str, Tensor]:
    labels = pad([[IGNORED] * len(row.text) + row.target for row in rows], IGNORED)["input_ids"]
    return {**pad([row.text + row.target for row in rows], pad_id), "labels": labels, **inputs(rows)}


def attention_split(model: Any, rows: Sequence[Row], pad_id: int) -> dict[str, list[float]]:
    """Return how each layer's attention is split between the text and the prompt.

    Gated tokens have their own softmax next to the text's, so the mean size of their gates is also returned.

    Args:
        model: The prompted model.
        rows: Some rows.
        pad_id: The id of the padding token.

    Returns:
        The `prompt_part` of each layer, a mean over heads and text positions; and, if there are gates, the `gate`.
    """
    inside = zoo.inspect(model, "default", inputs=pad([row.text + row.target for row in rows], pad_id))["default"]
    shares, gates = next(iter(inside.attention.shares.values()), None), next(iter(inside.gates.values()), None)
    parts = [0.0] * len(gates) if shares is None else shares.tolist()
    found = {"prompt_part": common.rounded(parts)}
    if gates is not None:
        found["gate"] = common.rounded(gates.tolist())
    return found


# Table

HEADS = ("ablation", "variant", "trained", "loss", "worse than the first ± standard error", "seeds")
ATTENTION_HEADS = ("prompt", "the prompt's part, from the first layer")
DOMAIN_HEADS = ("trained on films", "trained", *(domain.replace("_sentiment", "s") for domain in DOMAINS), "seeds")


def table(runner: Runner, settings: Settings) -> str:
    """Return the table of the available results, in Markdown."""
    lines = [("none", UNTRAINED, "0", *_loss(runner, UNTRAINED), "-", "-")]
    for title, variants in ABLATIONS.items():
        first = next(iter(variants.values()))
        lines += [_line(runner, title, label, variant, first) for label, variant in variants.items()]
    splits = [_attention_line(label, runner.results(variant.name)) for label, variant in ATTENTION.items()]
    domains = [_domain_line(runner, method) for method in (FINE_TUNING, *ENCODER_METHODS)]
    note = (
        f"E2E, {settings.steps} steps of 8, each method at its recipe's rate; loss per target token on {settings.rows} "
        "held-out rows, mean over the seeds (lowest to highest). Standard error: the larger of that over rows (paired "
        "differences) and that over seeds."
    )
    return "\n".join(
        [
            *("### Prompts on a language model", "", markdown(HEADS, lines), "", note, ""),
            *(
                "### Attention, layer by layer",
                "",
                markdown(("prompt", "the prompt's part, from the first layer"), splits),
            ),
            *(
                "",
                "The rest is the text's own. Gated prompts leave the text's attention whole; their gates are shown.",
                "",
            ),
            *("### A domain that was not trained on", "", markdown(DOMAIN_HEADS, domains), ""),
            f"Accuracy of the encoder ± the larger standard error, {settings.encoder_steps} steps of 8 on films.",
            "",
        ]
    )


def _loss(runner: Runner, name: str) -> tuple[str]:
    results = runner.results(name)
    return (with_range([result["loss"] for result in results]) if results else runner.missing(name) or "not run",)


def _line(runner: Runner, title: str, label: str, variant: Variant, first: Variant) -> tuple[str, ...]:
    results, reference = runner.results(variant.name), runner.results(first.name)
    if not results:
        return (title, label, "-", *_loss(runner, variant.name), "-", "-")
    shown = "-"
    if variant != first and reference:
        shown = str(loss_difference(results, reference))
    return (title, label, f"{results[0]['trained']:,}", *_loss(runner, variant.name), shown, str(len(results)))


def _attention_line(label: str, results: list[Result]) -> tuple[str, str]:
    if not results or "prompt_part" not in results[0]:
        return label, "not run"
    key = "gate" if "gate" in results[0] else "prompt_part"
    layers = [statistics.mean(values) for values in zip(*(result[key] for result in results), strict=True)]
    return label, ("gates: " if key == "gate" else "") + " ".join(f"{part:.2f}" for part in layers)


def _domain_line(runner: Runner, method: str) -> tuple[str, ...]:
    results = runner.results(domains_name(method))
    if not results:
        return (method, "-", runner.missing(domains_name(method)) or "not run", *["-"] * len(DOMAINS))
    shown = []
    for domain in DOMAINS:
        found = estimate([[result[f"{domain}_accuracy"]] for result in results], lambda mean: mean)
        shown.append(f"{found.value:.3f} ± {found.error:.3f}")
    return (method, f"{results[0]['trained']:,}", *shown, str(len(results)))


# Picture


def draw(runner: Runner, path: Path) -> None:
    """Draw the available results: a panel for each ablation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3).flatten()
    bars = {"Where they enter": panels[0], "Start of a prefix": panels[2], "Start of a prompt": panels[3]}
    for title, axes in bars.items():
        variants = (
            ABLATIONS[title] if title != "Where they enter" else ABLATIONS[title] | ABLATIONS["Shared or per layer"]
        )
        found = {label.split(":")[0]: _mean_loss(runner, variant) for label, variant in variants.items()}
        found = {label: loss for label, loss in found.items() if loss is not None and label != "per layer"}
        axes.barh(list(found), list(found.values()), color="tab:blue")
        axes.invert_yaxis()
        axes.set(title=title, xlabel="loss per target token (nats)")
    for kind in ("prompt", "prefix"):
        points = [
            (variant.tokens, loss)
            for variant in ABLATIONS[f"Tokens of a {kind}"].values()
            if (loss := _mean_loss(runner, variant)) is not None
        ]
        if points:
            panels[1].plot(*zip(*points, strict=True), marker="o", label=kind)
    panels[1].set(title="Length", xlabel="virtual tokens", ylabel="loss per target token (nats)", xscale="log")
    for label, variant in ATTENTION.items():
        results = runner.results(variant.name)
        if results and "prompt_part" in results[0]:
            key = "gate" if "gate" in results[0] else "prompt_part"
            panels[4].plot(results[0][key], label=f"{label}'s gate" if key == "gate" else label)
    panels[4].set(title="Attention to the prompt", xlabel="layer", ylabel="part", ylim=(0, 1.1))  # room for the legend
    _draw_domains(runner, panels[5])
    for axes in (panels[1], panels[4], panels[5]):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    for axes in panels:
        axes.grid(alpha=0.3)
    content = io.BytesIO()
    # Without matplotlib's version in the file, the same results always make the same picture.
    figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def _draw_domains(runner: Runner, axes: Any) -> None:
    methods = [method for method in (FINE_TUNING, *ENCODER_METHODS) if runner.results(domains_name(method))]
    width = 0.8 / max(1, len(methods))
    for place, method in enumerate(methods):
        results = runner.results(domains_name(method))
        heights = [
            statistics.mean(statistics.mean(result[f"{domain}_accuracy"]) for result in results) for domain in DOMAINS
        ]
        axes.bar([domain + place * width for domain in range(len(DOMAINS))], heights, width, label=method)
    axes.set_xticks([domain + 0.4 - width / 2 for domain in range(len(DOMAINS))], [d.split("_")[0] for d in DOMAINS])
    axes.set(title="Trained on films, tested elsewhere", ylabel="accuracy", ylim=(0.4, 1.0))


def _mean_loss(runner: Runner, variant: Variant) -> float | None:
    results = runner.results(variant.name)
    return statistics.mean(result["loss"] for result in results) if results else None


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table and the picture."""
    torch.set_num_threads(settings.threads)
    if shared_prefix.NAME not in zoo.list_methods():
        zoo.register(shared_prefix)
    shared = {"versions": versions("softprompt-zoo", "transformers", "torch")}
    runner = Runner(folder, shared, Bench(settings).experiments())

    def write_all() -> None:
        write(folder / "table.md", table(runner, settings))
        draw(runner, folder / PICTURE)

    return runner, write_all


main = command((__doc__ or "").splitlines()[0], Settings, "ablations", make)

if __name__ == "__main__":
    main()
