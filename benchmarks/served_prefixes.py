"""Serve a prompt for every request from vLLM, and compare what it writes, and how fast, with `generate` and without.

Run from the repository root, in an environment with vLLM and the package softprompt-zoo-vllm; a command that was
stopped goes on where it was::

    python benchmarks/served_prefixes.py

A bank of very many prompts is made in `--work`, `--users` of them of all methods. benchmarks/README.md says more.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import softprompt_zoo as zoo
from common import load_language_model, markdown, versions, write
from prefix_bank import make_bank
from prompt_server import complete_all, server
from runner import Experiment, MissingError, Result, Runner, command
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.examples import demo_data, read_examples

ENGINE: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "block_size": 32}
MODES: dict[str, dict[str, Any]] = {
    "one-batch": {},
    "preempted": {"num_gpu_blocks_override": 40, "max_num_batched_tokens": 64, "max_num_seqs": 16},
    "no-prefix-cache": {"enable_prefix_caching": False},
    "three-workers": {"tensor_parallel_size": 3},
}
"""What is asked of the engine; each starts a new one, and asks it twice: the second time with blocks of the first."""
TEXT = 40
"""Tokens of a text."""
OPTIONS = ("--max-model-len", "512", "--block-size", "32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command can be told."""

    model: str = "smollm2"
    work: str = str(Path(tempfile.gettempdir()) / "softprompt-zoo-served-prefixes")
    """Folder for the bank: 35 kB for each prompt that only fills it, 1 MB for each user."""
    users: int = 32
    prompts: int = 100_000
    """Prompts in the bank."""
    new_tokens: int = 64
    requests: int = 200
    """Requests at once, each with another prompt, whose throughput is measured."""
    cycled: int = 10_000
    """Prompts that are asked for, one after the other."""
    repeats: int = 3
    threads: int = 2


class Bench:
    """The bank, its users' texts, and the engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = Path(settings.work) / f"{settings.model.replace('/', '-')}-{settings.prompts}"
        self.users = max(settings.users, settings.requests)

    def options(self) -> dict[str, Any]:
        """Return what every result depends on."""
        own = dataclasses.asdict(self.settings)
        return {name: own[name] for name in ("users", "prompts", "new_tokens")}

    def served(self, *names: str) -> Callable[[], dict[str, Any]]:
        """Return what makes the options of an experiment that needs vLLM."""

        def options() -> dict[str, Any]:
            for package in ("vllm", "softprompt_zoo_vllm"):
                if importlib.util.find_spec(package) is None:
                    raise MissingError(f"{package} is not installed")
            own = dataclasses.asdict(self.settings)
            return {**self.options(), **{name: own[name] for name in names}, **versions("vllm")}

        return options

    # The bank and what its prompts make the model write

    @property
    def checkpoint(self) -> str:
        """The model's folder."""
        return resolve_model(self.settings.model)

    @property
    def bank(self) -> Path:
        """The bank, made if it is not there."""
        place, part = self.folder / "bank", self.folder / "part"
        if not place.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            make_bank(part, load_language_model(self.settings.model).eval(), self.users, self.settings.prompts)
            os.replace(part, place)
        return place

    def names(self, count: int) -> list[str]:
        """Return names of users."""
        return [f"user-{index}" for index in range(count)]

    def texts(self, count: int) -> list[list[int]]:
        """Return ids of texts."""
        words = AutoTokenizer.from_pretrained(self.checkpoint)
        rows = read_examples(demo_data() / "train.jsonl")
        together = itertools.chain.from_iterable(words(f"{row.input}\n{row.target}\n").input_ids for row in rows)
        endless = itertools.cycle(list(together))
        return [list(itertools.islice(endless, TEXT)) for _ in range(count)]

    def reference(self, _seed: int) -> Result:
        """Let `generate` write for every user."""
        return {"answers": self.generated(self.requests())}

    @torch.no_grad()
    def generated(self, rows: Sequence[tuple[str, list[int]]]) -> list[list[int]]:
        """Return what `generate` writes for requests."""
        model = zoo.get_method("prefix_tuning")(load_language_model(self.settings.model).eval(), num_virtual_tokens=2)
        model.prompts.bank = zoo.PromptBank(self.bank, model)
        answers = []
        for name, ids in rows:
            batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            length = {"max_new_tokens": self.settings.new_tokens, "min_new_tokens": self.settings.new_tokens}
            answers.append(model.generate(**batch, prompts=[name], do_sample=False, **length)[0, len(ids) :].tolist())
        return answers

    def requests(self) -> list[tuple[str, list[int]]]:
        """Return a request of each user."""
        return list(zip(self.names(self.settings.users), self.texts(self.settings.users), strict=True))

    # vLLM in this process

    @contextlib.contextmanager
    def engine(self, **options: Any) -> Iterator[Any]:
        """Start vLLM."""
        import vllm
        from softprompt_zoo_vllm.serving import engine_arguments

        cache = {"cache_bytes": 64 * 2**20}
        own = vllm.LLM(self.checkpoint, **ENGINE | options, **engine_arguments(str(self.bank), **cache))
        try:
            yield own
        finally:
            own.llm_engine.engine_core.shutdown()

    def write(self, engine: Any, rows: Sequence[tuple[str | None, list[int]]], length: int) -> list[Any]:
        """Let vLLM answer requests that come at once."""
        import vllm
        from softprompt_zoo_vllm.serving import request_arguments

        fixed = {"temperature": 0, "max_tokens": length, "min_tokens": length, "ignore_eos": True}
        sampling = [vllm.SamplingParams(**fixed, **request_arguments(name)) for name, _ in rows]
        return list(engine.generate([{"prompt_token_ids": ids} for _, ids in rows], sampling, use_tqdm=False))

    def compared(self, mode: str, expected: Callable[[], Any]) -> Callable[[int], Result]:
        """Return what counts the users whose answers differ from `generate`'s."""

        def measure(_seed: int) -> Result:
            different = []
            with self.engine(**MODES[mode]) as engine:
                for _ in range(2):
                    outputs = self.write(engine, self.requests(), self.settings.new_tokens)
                    different.append(differences([list(one.outputs[0].token_ids) for one in outputs], expected()))
            return {"requests": 2 * self.settings.users, "different": sum(different)}

        return measure

    # vLLM as a server

    def over_http(self, replicas: int, expected: Callable[[], Any]) -> Callable[[int], Result]:
        """Return what counts differences of answers that servers over one bank give in turn."""

        def measure(_seed: int) -> Result:
            different = 0
            with contextlib.ExitStack() as stack:
                logs = [self.folder / f"server-{index}.log" for index in range(replicas)]
                bank = self.bank
                addresses = [stack.enter_context(server(self.checkpoint, bank, log, *OPTIONS)) for log in logs]
                for _ in range(2):
                    answers = complete_all(addresses, self.requests(), self.settings.new_tokens)
                    different += differences(answers, expected())
            return {"requests": 2 * self.settings.users, "different": different}

        return measure

    def replaced(self, expected: Callable[[], Any]) -> Callable[[int], Result]:
        """Return what counts differences while one prompt is one user's or another's, in turns, under load."""

        def measure(_seed: int) -> Result:
            names, text = ["user-0", "user-1"], self.texts(1)[0]
            versions = self.generated([(name, text) for name in names])
            bank = zoo.PromptBank(self.bank, load_language_model(self.settings.model))
            rows = [*self.requests(), *[("changing", text)] * self.settings.users]
            different, served = 0, server(self.checkpoint, self.bank, self.folder / "server-0.log", *OPTIONS)
            with served as address, replacing(bank, "changing", [bank.get(name) for name in names]) as times:
                for _ in range(2):
                    answers = complete_all([address], rows, self.settings.new_tokens)
                    own, changing = answers[: self.settings.users], answers[self.settings.users :]
                    different += differences(own, expected()) + sum(one not in versions for one in changing)
            return {"requests": 2 * len(rows), "different": different, "replaced": len(times)}

        return measure

    # Speed and memory

    def throughput(self, _seed: int) -> Result:
        """Time requests at once with a prompt each, without, and with as many tokens of text."""
        count, length = self.settings.requests, 32
        texts = self.texts(2 * count)
        named = list(zip(self.names(count), texts, strict=False))
        bare = [(None, ids) for ids in texts[:count]]
        longer = [(None, [*ids, *more[:20]]) for ids, more in zip(texts, texts[count:], strict=False)]
        seconds: dict[str, list[float]] = {"a prompt each": [], "no prompt": [], "20 tokens more of text": []}
        with self.engine(enable_prefix_caching=False) as engine:
            self.write(engine, named[:8], length)
            for _ in range(self.settings.repeats):
                for what, rows in zip(seconds, (named, bare, longer), strict=True):
                    seconds[what].append(timed(lambda rows=rows: self.write(engine, rows, length)))
        return {"requests": count, "seconds": seconds}

    def first_token(self, _seed: int) -> Result:
        """Time one token for one request after the other, with a prompt and without."""
        texts = self.texts(64)
        names = self.names(self.settings.users)
        milliseconds: dict[str, list[float]] = {"a prompt": [], "no prompt": []}
        with self.engine(enable_prefix_caching=False) as engine:
            for index, ids in enumerate(texts):
                named = (names[index % len(names)], ids)
                for what, row in zip(milliseconds, (named, (None, ids)), strict=True):
                    milliseconds[what].append(1000 * timed(lambda row=row: self.write(engine, [row], 1)))
        return {"milliseconds": {what: values[16:] for what, values in milliseconds.items()}}

    def cycled(self, _seed: int) -> Result:
        """Ask for very many prompts, and see whether the processes grow."""
        names = [f"other-{self.users + index}" for index in range(self.settings.cycled)]
        ids, at_once, megabytes = self.texts(1)[0], 100, []
        with self.engine() as engine:
            for begin in range(0, len(names), at_once):
                self.write(engine, [(name, ids[:8]) for name in names[begin : begin + at_once]], 1)
                megabytes.append(memory_of_children() / 2**20)
        tenth = len(megabytes) // 10
        return {"prompts": len(names), "megabytes": [megabytes[tenth], megabytes[len(megabytes) // 2], megabytes[-1]]}


@contextlib.contextmanager
def replacing(bank: Any, name: str, prompts: Sequence[Any]) -> Iterator[list[float]]:
    """Replace a prompt by one and the other until the end of the block, and delete it then; yield the times."""
    over, times = threading.Event(), list[float]()
    bank.add(name, prompts[0], overwrite=True)

    def replace() -> None:
        while not over.wait(5):
            bank.add(name, prompts[len(times) % len(prompts)], overwrite=True)
            times.append(time.monotonic())

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield times
    finally:
        over.set()
        thread.join()
        bank.delete(name)


def differences(answers: Sequence[Any], expected: Sequence[Any]) -> int:
    """Count the answers that are not the expected ones."""
    return sum(one != other for one, other in zip(answers, expected, strict=True))


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def memory_of_children() -> int:
    """Return the bytes that all processes below this one have for themselves."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return sum(child.memory_full_info().uss for child in children)


def experiments(bench: Bench, kept: Callable[[], Any]) -> list[Experiment]:
    """Return what is measured."""
    reference = ("reference",)
    found = [Experiment(name="reference", measure=bench.reference, options=bench.options)]
    for mode in MODES:
        found.append(Experiment(name=mode, measure=bench.compared(mode, kept), options=bench.served(), needs=reference))
    servers = {"server": bench.over_http(1, kept), "two-servers": bench.over_http(2, kept)}
    for name, measure in {**servers, "replaced": bench.replaced(kept)}.items():
        found.append(Experiment(name=name, measure=measure, options=bench.served(), needs=reference))
    found += [
        Experiment(name="throughput", measure=bench.throughput, options=bench.served("requests", "repeats", "threads")),
        Experiment(name="first-token", measure=bench.first_token, options=bench.served("threads")),
        Experiment(name="cycled", measure=bench.cycled, options=bench.served("cycled")),
    ]
    return found


def table(runner: Runner) -> str:
    """Print what is there."""
    lines = []
    for name in runner.experiments:
        result = runner.result(name)
        if result is not None and "different" in result:
            what = name.replace("-", " ") + (f" {result['replaced']} times" if "replaced" in result else "")
            lines.append([what, str(result["requests"]), str(result["different"])])
    text = markdown(["SmolLM2 in float32, greedy", "requests", "other than generate"], lines)
    if (speed := runner.result("throughput")) is not None:
        lines = compared(speed["seconds"], "no prompt", "{:.1f} s")
        text += "\n\n" + markdown([f"{speed['requests']} requests at once", "median", "ratio", "spread"], lines)
    if (first := runner.result("first-token")) is not None:
        lines = compared(first["milliseconds"], "no prompt", "{:.1f} ms")
        text += "\n\n" + markdown(["one request, first token", "median", "ratio", "spread"], lines)
    if (cycled := runner.result("cycled")) is not None:
        tenth, half, end = cycled["megabytes"]
        text += f"\n\nMemory of the engine's processes after a tenth, a half and all of {cycled['prompts']} prompts: "
        text += f"{tenth:.0f}, {half:.0f} and {end:.0f} MB."
    return text + "\n"


def compared(measured: dict[str, list[float]], base: str, form: str) -> list[list[str]]:
    """Return rows of medians, and of ratios to a base that was measured in turns with them."""
    rows = []
    for what, values in measured.items():
        ratios = [value / other for value, other in zip(values, measured[base], strict=True)]
        low, high = min(ratios), max(ratios)
        rows.append([what, form.format(statistics.median(values)), f"{statistics.median(ratios):.2f}"])
        rows[-1].append("" if what == base else f"{low:.2f} to {high:.2f}")
    return rows


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner and what writes the table."""
    torch.set_num_threads(settings.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    bench = Bench(settings)
    shared = {"model": settings.model, "versions": versions("softprompt-zoo", "transformers", "torch")}
    runner = Runner(folder, shared, experiments(bench, lambda: (runner.result("reference") or {})["answers"]))
    return runner, lambda: write(folder / "table.md", table(runner))


main = command((__doc__ or "").splitlines()[0], Settings, "served_prefixes", make)

if __name__ == "__main__":
    main()
