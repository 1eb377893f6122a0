"""Train prompts and PEFT's LoRA on E2E with the same number of trained parameters, and compare the loss.

Run from the repository root; run the command again to resume it::

    python benchmarks/e2e.py --data ../shared/data/e2e_nlg

Rows, batches, optimizer and schedule are those of compare_with_peft.py and the same for both. The rates of LoRA and
of our first candidate are searched in short runs; our other candidates are tried at the first one's best rate, and
the best of all is trained on every seed. See benchmarks/README.md.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

import softprompt_zoo as zoo
from common import (
    INSTRUCTION,
    Trainer,
    checksum,
    load_language_model,
    loss_difference,
    markdown,
    split,
    target_losses,
    target_mean,
    versions,
    with_range,
    write,
)
from runner import Experiment, MissingError, Result, Runner, command
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.examples import read_examples
from softprompt_zoo.training.base import with_tokenizer
from softprompt_zoo.training.data import Collator, Row, Tokenized

LORA = "lora"
LORA_OPTIONS: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
CLOSE = 0.03
"""How far our loss may be above LoRA's."""
RATES = {LORA: (1e-3, 3e-3, 1e-2, 3e-2), "prompts": (2e-2, 4e-2, 8e-2, 16e-2)}
Parts = tuple[tuple[str, dict[str, Any]], ...]
CANDIDATES: dict[str, Parts] = {
    "prefix-40": (("prefix_tuning", {"num_virtual_tokens": 40, "init": "chat"}),),
    "prefix-20": (("prefix_tuning", {"num_virtual_tokens": 20, "init": "chat"}),),
    "prefix-40-example": (("prefix_tuning", {"num_virtual_tokens": 40, "init": "example"}),),
    "prefix-38-prompt-40": (
        ("prefix_tuning", {"num_virtual_tokens": 38, "init": "chat"}),
        ("prompt_tuning", {"num_virtual_tokens": 40, "init": "sampled"}),
    ),
    "prefix-24-adapter-10": (
        ("prefix_tuning", {"num_virtual_tokens": 24, "init": "chat"}),
        ("llama_adapter", {"num_virtual_tokens": 10}),
    ),
}
"""Methods that each candidate combines, with their options; the rate is searched for the first candidate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    data: str = "../shared/data/e2e_nlg"
    """Folder with `train.jsonl`."""
    model: str = "smollm2"
    dtype: str = "bfloat16"
    batch_size: int = 8
    warmup_steps: int = 5
    final_steps: int = 120
    search_steps: int = 30
    seeds: int = 2
    final_rows: int = 96
    search_rows: int = 48
    threads: int = 2


class Bench:
    """The model, the data and the experiments."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.file = Path(settings.data) / "train.jsonl"
        if not self.file.is_file():
            raise FileNotFoundError(f"there is no {self.file}; give the folder that holds train.jsonl as --data")
        self.runner: Runner | None = None

    def starts(self, tokenizer: Any) -> dict[str, str]:
        """Return the texts that a prefix may start from: the instruction as a chat, and with an example."""
        example = read_examples(self.file)[0]
        message = [{"role": "system", "content": INSTRUCTION}]
        chat = tokenizer.apply_chat_template(message, tokenize=False)
        return {"chat": chat, "example": f"{INSTRUCTION}{example.input}\n{example.target}\n"}

    def attach(self, name: str, seed: int, tokenizer: Any) -> Any:
        """Load the model and put a candidate or LoRA on it."""
        model = load_language_model(self.settings.model, self.settings.dtype)
        torch.manual_seed(seed)
        if name == LORA:
            return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA_OPTIONS))
        starts = self.starts(tokenizer)
        parts = []
        for method, options in CANDIDATES[name]:
            if options.get("init") in starts:
                options = {**options, "init": "text", "init_text": starts[options["init"]]}
            chosen = zoo.get_method(method)
            more = with_tokenizer(chosen, tokenizer) if options.get("init") == "text" else {}
            parts.append(chosen.configure(**options, **more))
        return zoo.combine(*parts)(model)

    def measure(self, name: str, rate: float | None, steps: int, is_final: bool) -> Callable[[int], Result]:
        """Return a function that trains and measures a candidate; without a rate, at the best one of its search."""

        def measure(seed: int) -> Result:
            settings = self.settings
            tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(settings.model))
            train, search, final = split(self.rows(tokenizer), settings.search_rows, settings.final_rows)
            chosen = self.best_rate(name) if rate is None else rate
            recipe = Recipe(
                learning_rate=chosen,
                steps=steps,
                batch_size=settings.batch_size,
                warmup_steps=settings.warmup_steps,
            )
            trainer = Trainer(self.attach(name, seed, tokenizer), recipe)
            collate = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)
            history = trainer.fit(train, collate, seed, f"{name}, rate {chosen:g},")
            rows = final if is_final else search
            losses = target_losses(trainer.model, rows, tokenizer.pad_token_id)
            tokens = [len(row.target) for row in rows]
            return {
                "loss": target_mean(losses, rows),
                "losses": losses,
                "tokens": tokens,
                "rate": chosen,
                "trained": trainer.num_trained,
                **history,
            }

        return measure

    def rows(self, tokenizer: Any) -> list[Row]:
        """Tokenize the data."""
        return Tokenized(tokenizer, is_encoder_decoder=False, template="{input}\n").rows(read_examples(self.file))

    # Results of the search

    def search_loss(self, experiment: str) -> float:
        """Return the loss of a run of the search.

        Raises:
            MissingError: If the run has no result.
        """
        assert self.runner is not None
        result = self.runner.result(experiment)
        if result is None:
            raise MissingError(f"{experiment} of the search was not run")
        return float(result["loss"])

    def best_rate(self, name: str) -> float:
        """Return the best rate of the search: LoRA's own, or for prompts that of the first candidate."""
        group = LORA if name == LORA else "prompts"
        searched = LORA if name == LORA else next(iter(CANDIDATES))
        return min(RATES[group], key=lambda rate: self.search_loss(_search(searched, rate)))

    def best_candidate(self) -> str:
        """Return the candidate with the lowest loss in the search; those that cannot run are left out."""
        assert self.runner is not None
        first, *others = CANDIDATES
        losses = {first: min(self.search_loss(_search(first, rate)) for rate in RATES["prompts"])}
        for name in others:
            if self.runner.missing(_search(name)) is None:
                losses[name] = self.search_loss(_search(name))
        return min(losses, key=lambda name: losses[name])

    def experiments(self) -> list[Experiment]:
        """List the experiments in order; the later ones depend on the results of the search."""
        settings, first = self.settings, next(iter(CANDIDATES))
        listed = list[Experiment]()

        def add(name: str, of: Callable[[], str], rate: float | None, needs: tuple[str, ...], **more: Any) -> None:
            is_final = name.startswith("final")
            steps = settings.final_steps if is_final else settings.search_steps

            def options() -> dict[str, Any]:
                chosen = of()
                parts: Any = LORA_OPTIONS if chosen == LORA else CANDIDATES[chosen]
                found = self.best_rate(chosen) if rate is None else rate
                return {"what": chosen, "parts": parts, "rate": found, "steps": steps}

            measure: Callable[[int], Result] = lambda seed: self.measure(of(), rate, steps, is_final)(seed)  # noqa: E731
            listed.append(Experiment(name=name, measure=measure, options=options, needs=needs, **more))

        for rate in RATES[LORA]:
            add(_search(LORA, rate), lambda: LORA, rate, ())
        for rate in RATES["prompts"]:
            add(_search(first, rate), lambda: first, rate, ())
        rates = tuple(_search(first, rate) for rate in RATES["prompts"])
        for name, parts in list(CANDIDATES.items())[1:]:
            methods = tuple(method for method, _ in parts)
            add(_search(name), lambda name=name: name, None, rates, methods=methods)  # type: ignore[misc]
        searched = tuple(_search(LORA, rate) for rate in RATES[LORA])
        add(f"final-{LORA}", lambda: LORA, None, searched, seeds=settings.seeds)
        add("final-prompts", self.best_candidate, None, rates, seeds=settings.seeds)
        return listed


def _search(name: str, rate: float | None = None) -> str:
    return f"search-{name}" if rate is None else f"search-{name}-{rate:g}"


SEARCH_HEADS = ("search", "trained", "rate", "loss")
HEADS = ("final", "trained", "rate", "loss", "above LoRA ± standard error", f"within {CLOSE:g}", "seeds")


def table(bench: Bench) -> str:
    """Return the tables of the available results, in Markdown."""
    runner, settings = bench.runner, bench.settings
    assert runner is not None
    searched, finals = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for name in runner.experiments:
        if not name.startswith("search"):
            continue
        result, shown = runner.result(name), name.removeprefix("search-")
        problem = runner.missing(name) or "not run"
        line = ("-", "-", problem) if result is None else _numbers(result, f"{result['loss']:.3f}")
        searched.append((shown, *line))
    theirs = runner.results(f"final-{LORA}")
    for name in (f"final-{LORA}", "final-prompts"):
        results = runner.results(name)
        if not results:
            finals.append((name.removeprefix("final-"), "-", "-", runner.missing(name) or "not run", "-", "-", "-"))
            continue
        shown = LORA if name.endswith(LORA) else bench.best_candidate()
        line = _numbers(results[0], with_range([result["loss"] for result in results]))
        finals.append((shown, *line, *_against(results, theirs, shown), str(len(results))))
    note = (
        f"Loss per target token: of the search after {settings.search_steps} steps of {settings.batch_size} on "
        f"{settings.search_rows} rows; in the end after {settings.final_steps} steps on {settings.final_rows} other "
        "rows, mean over the seeds (lowest to highest). Standard error: the larger of that over rows (jackknife of "
        "paired rows) and that over seeds."
    )
    return "\n".join([markdown(HEADS, finals), "", markdown(SEARCH_HEADS, searched), "", note, ""])


def _numbers(result: Result, loss: str) -> tuple[str, str, str]:
    return f"{result['trained']:,}", f"{result['rate']:g}", loss


def _against(ours: list[Result], theirs: list[Result], shown: str) -> tuple[str, str]:
    if shown == LORA or not theirs:
        return "-", "-"
    found = loss_difference(ours, theirs)
    return str(found), "yes" if found.value <= CLOSE else "no"


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table."""
    torch.set_num_threads(settings.threads)
    bench = Bench(settings)
    names = ("model", "dtype", "batch_size", "warmup_steps", "final_rows", "search_rows")
    shared = {
        **{name: getattr(settings, name) for name in names},
        "data": checksum(bench.file),
        "versions": versions("softprompt-zoo", "peft", "transformers", "torch"),
    }
    bench.runner = Runner(folder, shared, bench.experiments())
    return bench.runner, lambda: write(folder / "table.md", table(bench))


main = command((__doc__ or "").splitlines()[0], Settings, "e2e", make)

if __name__ == "__main__":
    main()
