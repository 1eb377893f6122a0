"""Train prompt tuning and prefix tuning with softprompt_zoo and with PEFT, and compare loss and time.

Run from the repository root; run the command again to resume it::

    python benchmarks/compare_with_peft.py --data ../shared/data/e2e_nlg

Both libraries get the same model, rows, batches, optimizer and schedule. For each, the learning rate is
searched in short runs from its first start tokens, then its other start tokens are tried at the best rate,
and the best of all is trained on every seed. Step times come from separate runs, in which the two libraries
take turns in one process. Every run is kept as a JSON file named after a hash of its settings; `--table`
prints the table of the available results. See benchmarks/README.md.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model, initialize_kv_prefix_from_text
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import common
import softprompt_zoo as zoo
from common import (
    INSTRUCTION,
    Trainer,
    checksum,
    load_language_model,
    markdown,
    split,
    step_rows,
    versions,
    with_range,
    write,
)
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.examples import read_examples
from softprompt_zoo.training.data import Collator, Tokenized
from softprompt_zoo.training.evaluation import target_loss

LIBRARIES = ("zoo", "peft")
RATES = {"prefix_tuning": (5e-3, 1e-2, 2e-2), "prompt_tuning": (3e-3, 1e-2, 3e-2)}
STARTS = {"prefix_tuning": ("text", "chat"), "prompt_tuning": ("sampled", "text")}
"""Start tokens to try: words of the vocabulary, the instruction, or the instruction as a chat's system message."""
TIMES = ("seconds", "cpu_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings shared by all runs."""

    data: str
    """Folder with `train.jsonl`."""
    model: str = "smollm2"
    tokens: int = 20
    batch_size: int = 8
    warmup_steps: int = 5
    final_steps: int = 60
    search_steps: int = 30
    seeds: int = 2
    timed_pairs: int = 16
    untimed_pairs: int = 2
    final_rows: int = 96
    """Number of rows at the end of the file on which the final runs are evaluated."""
    search_rows: int = 48
    """Number of rows before the final ones on which the search is evaluated. All other rows are used for training."""
    threads: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The task of one run."""

    phase: str
    """`"rate"` and `"start"` make up the search; `"final"` and `"time"` fill the table."""
    method: str
    package: str
    """`"zoo"` or `"peft"`; `"both"` if the libraries take turns."""
    start: str
    rate: float
    steps: int
    seed: int = 0


class Store(common.Store):
    """The results, one file per run."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        shared = {
            **dataclasses.asdict(settings),
            "data": checksum(_data_file(settings)),
            "versions": versions("softprompt-zoo", "peft", "transformers", "torch"),
        }
        for name in ("seeds", "final_steps", "search_steps"):  # these decide which runs there are, not what a run does
            del shared[name]
        super().__init__(folder, shared)
        self.settings = settings

    def get(self, run: Run) -> dict[str, Any] | None:
        """Return the result of a run; `None` if there is none."""
        return self.load(_name(run), dataclasses.asdict(run))

    def put(self, run: Run, result: dict[str, Any]) -> None:
        """Store the result of a run."""
        self.save(_name(run), dataclasses.asdict(run), result)


def _name(run: Run) -> str:
    return f"{run.phase}-{run.method}-{run.package}"


def _data_file(settings: Settings) -> Path:
    return Path(settings.data) / "train.jsonl"


# List of runs


def time_run(settings: Settings, method: str) -> Run:
    """Return the run that times both libraries."""
    steps = settings.untimed_pairs + settings.timed_pairs
    return Run(phase="time", method=method, package="both", start=STARTS[method][0], rate=RATES[method][1], steps=steps)


def rate_runs(settings: Settings, method: str, library: str) -> list[Run]:
    """Return the runs that search the learning rate."""
    shared: dict[str, Any] = {"method": method, "package": library, "steps": settings.search_steps}
    return [Run(phase="rate", start=STARTS[method][0], rate=rate, **shared) for rate in RATES[method]]


def start_runs(store: Store, method: str, library: str) -> list[Run]:
    """Return the runs that try other start tokens, once the rate is known."""
    best = _best(store, rate_runs(store.settings, method, library))
    return [dataclasses.replace(best, phase="start", start=start) for start in STARTS[method][1:]] if best else []


def final_runs(store: Store, method: str, library: str) -> list[Run]:
    """Return the runs over the seeds, once rate and start tokens are known."""
    settings = store.settings
    others = start_runs(store, method, library)
    best = _best(store, rate_runs(settings, method, library) + others) if others else None
    if best is None:
        return []
    final = dataclasses.replace(best, phase="final", steps=settings.final_steps)
    return [dataclasses.replace(final, seed=seed) for seed in range(settings.seeds)]


def all_runs(store: Store) -> Iterator[Run]:
    """Yield all runs in order; later runs depend on the stored results of earlier ones."""
    settings = store.settings
    for method in STARTS:
        for same_rate in zip(*(rate_runs(settings, method, library) for library in LIBRARIES), strict=True):
            yield from same_rate
        for library in LIBRARIES:
            yield from start_runs(store, method, library)
        for seed in range(settings.seeds):
            for library in LIBRARIES:
                yield final_runs(store, method, library)[seed]
        yield time_run(settings, method)


def _best(store: Store, runs: list[Run]) -> Run | None:
    losses = _losses(store, runs)
    return runs[losses.index(min(losses))] if len(losses) == len(runs) else None


# Models


def attach(run: Run, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Load the model and put the prompt of one library on it."""
    folder = resolve_model(settings.model)
    model = load_language_model(folder)
    torch.manual_seed(run.seed)
    attach_with = {"zoo": attach_zoo, "peft": attach_peft}[run.package]
    return attach_with(model, run, settings.tokens, tokenizer, folder)


def attach_zoo(model: Any, run: Run, tokens: int, tokenizer: PreTrainedTokenizerBase, folder: str) -> Any:
    """Attach a prompt of softprompt_zoo."""
    options: dict[str, Any] = {"init": "sampled"}
    if run.start != "sampled":
        message = [{"role": "system", "content": INSTRUCTION}]
        text = tokenizer.apply_chat_template(message, tokenize=False) if run.start == "chat" else INSTRUCTION
        options = {"init": "text", "init_text": text, "tokenizer": tokenizer}
    return zoo.get_method(run.method)(model, num_virtual_tokens=tokens, **options)


def attach_peft(model: Any, run: Run, tokens: int, tokenizer: PreTrainedTokenizerBase, folder: str) -> Any:
    """Attach a prompt of PEFT, with its best initializations."""
    if run.method == "prefix_tuning":
        model = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens))
        initialize_kv_prefix_from_text(model, tokenizer, text=INSTRUCTION, use_chat_template=run.start == "chat")
        return model
    options: dict[str, Any] = {"prompt_tuning_init": "SAMPLE_VOCAB"}
    if run.start == "text":
        options = {
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": INSTRUCTION,
            "tokenizer_name_or_path": folder,
        }
    return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, **options))


# Runs


def execute(run: Run, settings: Settings) -> dict[str, Any]:
    """Execute one run and return its result."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(settings.model))
    tokenized = Tokenized(tokenizer, is_encoder_decoder=False, template="{input}\n")
    rows = tokenized.rows(read_examples(_data_file(settings)))
    train, search, final = split(rows, settings.search_rows, settings.final_rows)
    collate = Collator(tokenizer.pad_token_id, is_encoder_decoder=False)
    batches = [collate(rows) for rows in step_rows(train, run.steps, settings.batch_size, run.seed)]
    recipe = Recipe(learning_rate=run.rate, steps=run.steps, warmup_steps=settings.warmup_steps)
    libraries = LIBRARIES if run.phase == "time" else (run.package,)
    trainers = {}
    for library in libraries:
        model = attach(dataclasses.replace(run, package=library), settings, tokenizer)
        trainers[library] = Trainer(model, recipe)
    steps = []
    for index, batch in enumerate(batches):
        # The first library to meet a new batch shape pays for its memory and kernels, so they alternate in starting.
        order = libraries if index % 2 == 0 else reversed(libraries)
        steps.append({library: trainers[library].step(batch) for library in order})
    if run.phase == "time":
        timed = steps[settings.untimed_pairs :]
        return {unit: {library: [step[library][unit] for step in timed] for library in libraries} for unit in TIMES}
    return {
        "loss": target_loss(trainers[run.package].model, final if run.phase == "final" else search, collate),
        "training_losses": [step[run.package]["loss"] for step in steps],
        "seconds": [step[run.package]["seconds"] for step in steps],
    }


# Table

HEADS = (
    *("method", "zoo starts from, rate", "PEFT starts from, rate", "zoo loss", "PEFT loss", "loss, zoo - PEFT"),
    *("zoo seconds per step", "PEFT seconds per step", "time, zoo / PEFT", "CPU time, zoo / PEFT"),
)


def table(store: Store) -> str:
    """Return the table of the available results, in Markdown."""
    lines = list[tuple[str, ...]]()
    for method in STARTS:
        finals = [final_runs(store, method, library) for library in LIBRARIES]
        losses = [_losses(store, runs) for runs in finals]
        starts = [f"{runs[0].start}, {runs[0].rate:g}" if runs else "-" for runs in finals]
        differences = [ours - theirs for ours, theirs in zip(*losses, strict=False)]
        lines.append((method, *starts, *map(with_range, losses), with_range(differences), *_times(store, method)))
    settings = store.settings
    note = (
        f"Evaluation loss after {settings.final_steps} steps of {settings.batch_size}: mean over the seeds (lowest to "
        f"highest). Times: median of {settings.timed_pairs} steps, each library first in half of them (quartiles)."
    )
    return "\n".join([markdown(HEADS, lines), "", note, ""])


def _losses(store: Store, runs: list[Run]) -> list[float]:
    results = [store.get(run) for run in runs]
    return [result["loss"] for result in results if result is not None]


def _times(store: Store, method: str) -> list[str]:
    times = store.get(time_run(store.settings, method))
    if times is None:
        return ["-"] * (len(LIBRARIES) + len(TIMES))
    ratios = [
        [ours / theirs for ours, theirs in zip(times[unit]["zoo"], times[unit]["peft"], strict=True)] for unit in TIMES
    ]
    return [_median(values) for values in (times["seconds"]["zoo"], times["seconds"]["peft"], *ratios)]


def _median(values: list[float]) -> str:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def main(arguments: list[str] | None = None) -> None:
    """Execute the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "compare_with_peft")
    parser.add_argument("--table", action="store_true", help="print the table of the available results; run nothing")
    for field in dataclasses.fields(Settings):
        default = "../shared/data/e2e_nlg" if field.name == "data" else field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args(arguments))
    folder, only_table = options.pop("results"), options.pop("table")
    settings = Settings(**options)
    if not _data_file(settings).is_file():
        parser.error(f"there is no {_data_file(settings)}; give the folder that holds train.jsonl as --data")
    torch.set_num_threads(settings.threads)
    store = Store(folder, settings)
    for run in () if only_table else all_runs(store):
        is_new = store.get(run) is None
        if is_new:
            store.put(run, execute(run, settings))
        name = f"{run.phase} {run.method} {run.package}, from {run.start}, rate {run.rate:g}, seed {run.seed}"
        print(f"{'done' if is_new else 'kept'}: {name}, loss {store.get(run).get('loss', '-')}", flush=True)
    write(folder / "table.md", table(store))
    print(table(store))


if __name__ == "__main__":
    main()
