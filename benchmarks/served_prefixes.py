"""Serve a prompt for every request from vLLM; compare its output with `generate` and its speed with plain requests.

Run from the repository root, in an environment with vLLM and the package softprompt-zoo-vllm; run the command again to
resume it::

    python benchmarks/served_prefixes.py

A bank of many prompts is created in `--work`; those of its users are of six methods. See benchmarks/README.md.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import prefix_speed
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
"""Options of the engine. Each mode starts a new engine and asks it twice, the second time with blocks of the first."""
REPLACED_EVERY = 0.1
"""Seconds between replacements of one prompt under load."""
TEXT = 40
"""Tokens of a text."""
OPTIONS = ("--max-model-len", "512", "--block-size", "32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    model: str = "smollm2"
    work: str = str(Path(tempfile.gettempdir()) / "softprompt-zoo-served-prefixes")
    """Folder for the bank: 35 kB for each prompt that only fills the bank, 1 MB for each user."""
    users: int = 32
    prompts: int = 100_000
    """Prompts in the bank."""
    new_tokens: int = 64
    requests: int = 200
    """Number of simultaneous requests, each with a different prompt, whose throughput is measured."""
    cycled: int = 10_000
    """Number of prompts that are requested one after another to watch the memory."""
    repeats: int = 3
    threads: int = 1


class Bench:
    """The bank, its users' texts, and the engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = Path(settings.work) / f"{settings.model.replace('/', '-')}-{settings.prompts}"
        self.users = max(settings.users, settings.requests)

    def options(self) -> dict[str, Any]:
        """Return everything that all results depend on."""
        own = dataclasses.asdict(self.settings)
        return {name: own[name] for name in ("users", "prompts", "new_tokens")}

    def served(self, *names: str) -> Callable[[], dict[str, Any]]:
        """Return a function that builds the options of an experiment that needs vLLM."""

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
        """The bank's folder, which is created if missing."""
        place, part = self.folder / "bank", self.folder / "part"
        if not place.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            make_bank(part, load_language_model(self.settings.model).eval(), self.users, self.settings.prompts)
            os.replace(part, place)
        return place

    def names(self, count: int) -> list[str]:
        """Return the names of users' prompts."""
        return [f"user-{index}" for index in range(count)]

    def texts(self, count: int) -> list[list[int]]:
        """Return the token ids of texts."""
        words = AutoTokenizer.from_pretrained(self.checkpoint)
        rows = read_examples(demo_data() / "train.jsonl")
        together = itertools.chain.from_iterable(words(f"{row.input}\n{row.target}\n").input_ids for row in rows)
        endless = itertools.cycle(list(together))
        return [list(itertools.islice(endless, TEXT)) for _ in range(count)]

    def reference(self, _seed: int) -> Result:
        """Let `generate` answer every user's request."""
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
        """Return one request of each user."""
        return list(zip(self.names(self.settings.users), self.texts(self.settings.users), strict=True))

    # vLLM in this process

    @contextlib.contextmanager
    def engine(self, processes: int = 1, **options: Any) -> Iterator[Any]:
        """Start vLLM in separate processes, or in this one if `processes` is 0."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(processes)
        import vllm
        from softprompt_zoo_vllm.serving import engine_arguments

        cache = {"cache_bytes": 64 * 2**20}
        own = vllm.LLM(self.checkpoint, **ENGINE | options, **engine_arguments(str(self.bank), **cache))
        try:
            yield own
        finally:
            own.llm_engine.engine_core.shutdown()

    def write(self, engine: Any, rows: Sequence[tuple[str | None, list[int]]], length: int) -> list[Any]:
        """Let vLLM answer requests that arrive at once."""
        import vllm
        from softprompt_zoo_vllm.serving import request_arguments

        fixed = {"temperature": 0, "max_tokens": length, "min_tokens": length, "ignore_eos": True}
        sampling = [vllm.SamplingParams(**fixed, **request_arguments(name)) for name, _ in rows]
        return list(engine.generate([{"prompt_token_ids": ids} for _, ids in rows], sampling, use_tqdm=False))

    def compared(self, mode: str, expected: Callable[[], Any]) -> Callable[[int], Result]:
        """Return a function that counts vLLM's answers that differ from `generate`'s."""

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
        """Return a function that counts differing answers of servers that share one bank and are asked in turn."""

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
        """Return a function that counts differing answers while one prompt alternates between two users' under load."""

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
        """Time simultaneous requests with a prompt each, without prompts, and with as many additional text tokens."""
        count, kinds = self.settings.requests, self.kinds(self.settings.requests)
        fitting = count * -(-(TEXT + max(kinds.lengths) + prefix_speed.LENGTH) // ENGINE["block_size"])
        with self.engine(enable_prefix_caching=False, num_gpu_blocks_override=fitting + 8) as engine:
            self.write(engine, kinds.rows["a prompt each"][:8], prefix_speed.LENGTH)
            write = functools.partial(self.write, engine)
            return {"requests": count, **kinds.throughput(write, self.settings.repeats)}

    def first_token(self, _seed: int) -> Result:
        """Time the first token of one request after another, with a prompt, without one, and with more text."""
        kinds = self.kinds(2 * self.settings.users)
        # In this process, because separate processes use processor time while they wait for each other.
        with self.engine(processes=0, enable_prefix_caching=False) as engine:
            write = functools.partial(self.write, engine)
            for row in kinds.rows["a prompt each"][:16]:
                write([row], 1)
            return kinds.first_token(write)

    def kinds(self, count: int) -> prefix_speed.Kinds:
        """Return requests with users' prompts and the requests that they are compared with."""
        names, reader = self.names(count), zoo.PrefixReader(self.bank)
        entries = [reader.find(name) for name in names]
        reader.close()
        lengths = [entry.num_tokens for entry in entries if entry is not None]
        return prefix_speed.Kinds.of(names, lengths, self.texts(2 * count))

    def cycled(self, _seed: int) -> Result:
        """Request many prompts, and measure whether the memory of the processes grows."""
        names = [f"other-{self.users + index}" for index in range(self.settings.cycled)]
        ids, at_once, megabytes = self.texts(1)[0], 100, []
        with self.engine() as engine:
            for begin in range(0, len(names), at_once):
                self.write(engine, [(name, ids[:8]) for name in names[begin : begin + at_once]], 1)
                megabytes.append(prefix_speed.memory_of_children() / 2**20)
        tenth = len(megabytes) // 10
        return {"prompts": len(names), "megabytes": [megabytes[tenth], megabytes[len(megabytes) // 2], megabytes[-1]]}


@contextlib.contextmanager
def replacing(bank: Any, name: str, prompts: Sequence[Any]) -> Iterator[list[float]]:
    """Replace a prompt with each of `prompts` in turn until the end of the block, then delete it; yield the times."""
    over, times = threading.Event(), list[float]()
    bank.add(name, prompts[0], overwrite=True)

    def replace() -> None:
        while not over.wait(REPLACED_EVERY):
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


def experiments(bench: Bench, kept: Callable[[], Any]) -> list[Experiment]:
    """Return the experiments."""
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
    """Return the tables of the available results, in Markdown."""
    lines = []
    for name in runner.experiments:
        result = runner.result(name)
        if result is not None and "different" in result:
            what = name.replace("-", " ") + (f" {result['replaced']} times" if "replaced" in result else "")
            lines.append([what, str(result["requests"]), str(result["different"])])
    text = markdown(["SmolLM2 in float32, greedy", "requests", "other than generate"], lines)
    for name, what in {"throughput": "{} requests at once", "first-token": "one request, first token"}.items():
        if (speed := runner.result(name)) is not None:
            text += "\n\n" + speed_table(speed, what.format(speed.get("requests")))
    if (cycled := runner.result("cycled")) is not None:
        tenth, half, end = cycled["megabytes"]
        text += f"\n\nMemory of the engine's processes after a tenth, a half and all of {cycled['prompts']} prompts: "
        text += f"{tenth:.0f}, {half:.0f} and {end:.0f} MB."
    return text + "\n"


def speed_table(speed: Result, what: str) -> str:
    """Return the table of what requests cost, with a line on how long the prompts were."""
    passed, form = (speed["seconds"], "{:.1f} s") if "seconds" in speed else (speed["milliseconds"], "{:.0f} ms")
    columns = [prefix_speed.compared(values, "no prompt", form) for values in (passed, speed["processor"])]
    heads = [what, "median", "ratio", "spread", "of processors", "ratio", "spread"]
    table = markdown(heads, prefix_speed.side_by_side(*columns))
    return f"{table}\n\nA prompt has {speed['tokens']:.0f} tokens in the mean, and a text {TEXT}."


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table."""
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
