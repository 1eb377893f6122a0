"""Measure banks of prompts: the time and memory that a batch takes, lookups by an engine, and reads during writes.

Run from the repository root; run the command again to resume it::

    python benchmarks/bank.py

The banks are random, in SmolLM2's shapes (30 layers, 3 key-value heads of width 64, hidden size 576) and in half
precision: 2.3 GB of prompts, 4.6 GB of prefixes, and 2.4 GB of one-token prefixes for the lookups by an engine.
``--prompts 1000 --prefixes 100 --served 1000`` creates small ones.
See benchmarks/README.md.
"""

import dataclasses
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import softprompt_zoo as zoo
from common import markdown, versions, write
from runner import Experiment, Result, Runner, command
from softprompt_zoo.prompt.prompt import Prompt

SHAPES = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
OTHERS = {"intermediate_size": 64, "vocab_size": 64}
"""Sizes that prompts do not depend on, so they are small."""
TOKENS = 20
BATCH = 32
AT_ONCE = 500
"""Number of prompts that are written in one transaction."""
SMALL = 10
"""How many times smaller the small bank is, with which the memory for reads is compared; it holds at least one batch.
With the default sizes, it is also larger than the cache of ready prompts."""
CACHE_BYTES = 64 * 2**20
KINDS = {"prompts": ("prompt_tuning", 10.0), "prefixes": ("prefix_tuning", 50.0)}
"""For each kind, the method and the milliseconds in which a batch must be ready."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    prompts: int = 100_000
    prefixes: int = 10_000
    served: int = 100_000
    """One-token prefixes in the bank that an engine reads."""
    batches: int = 100
    """Number of timed batches of 32 random entries."""
    readers: int = 8
    seconds: int = 30
    """How long the readers read while one prompt is replaced."""
    banks: str = ""
    """Folder for the banks; if empty, a folder in the system's temporary folder."""
    keep: int = 1
    """0 to delete the banks at the end."""
    threads: int = 1


def base() -> Any:
    """Return a model with these shapes and random weights, in half precision like the banks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPES, **OTHERS)).to(torch.float16).eval()


class RandomPrompts(Mapping[str, Prompt]):
    """Random prompts by name: a single object, whose values are redrawn for each name."""

    def __init__(self, prompt: Prompt, first: int, last: int) -> None:
        self._prompt, self._numbers = prompt, range(first, last)

    def __getitem__(self, name: str) -> Prompt:
        generator = torch.Generator().manual_seed(int(name[1:]))
        for parameter in self._prompt.parameters():
            parameter.data.normal_(generator=generator)
        return self._prompt

    def __iter__(self) -> Iterator[str]:
        return (f"u{number}" for number in self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class Bench:
    """The banks and their measurements."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = Path(settings.banks or Path(tempfile.gettempdir()) / "softprompt-zoo-banks")

    def fill(self, kind: str, count: int, tokens: int = TOKENS) -> tuple[Path, Any]:
        """Create a bank, or continue filling it; return its folder and a model for it."""
        method = KINDS[kind][0] if kind in KINDS else "prefix_tuning"
        model = zoo.get_method(method)(base(), "u", num_virtual_tokens=tokens, init="random")
        path = self.folder / f"{kind}-{count}"
        bank = zoo.PromptBank(path, model, dtype=torch.float16)
        began = time.perf_counter()
        while (done := len(bank)) < count:
            bank.add_many(RandomPrompts(model.prompts["u"], done, min(count, done + AT_ONCE)))
            if len(bank) % 5000 == 0 or len(bank) == count:
                print(f"  {kind}: {len(bank)} of {count}, {time.perf_counter() - began:.0f} s", flush=True)
        return path, model

    def ready(self, kind: str) -> Callable[[int], Result]:
        """Return a function that times batches of random entries from a warm file cache to the model's device."""

        def measure(seed: int) -> Result:
            torch.set_num_threads(self.settings.threads)
            count = getattr(self.settings, kind)
            path, model = self.fill(kind, count)
            bank = zoo.PromptBank(path, model, cache_bytes=1)  # too small for any prompt: every batch is read
            draw = random.Random(seed)
            batches = [[f"u{draw.randrange(count)}" for _ in range(BATCH)] for _ in range(self.settings.batches)]
            for batch in batches:
                bank.prepare(batch)
            seconds, own = [], []
            for batch in batches:
                began, began_own = time.perf_counter(), time.process_time()
                bank.prepare(batch)
                seconds.append(time.perf_counter() - began)
                own.append(time.process_time() - began_own)
            small, _ = self.fill(kind, max(BATCH, count // SMALL))
            return {
                "milliseconds": [round(1000 * value, 3) for value in seconds],
                "processor_milliseconds": [round(1000 * value, 3) for value in own],
                "bytes": (path / "data.mdb").stat().st_size,
                "memory_small": self.memory(kind, small, max(BATCH, count // SMALL)),
                "memory_full": self.memory(kind, path, count),
            }

        return measure

    def find(self, seed: int) -> Result:
        """Time how long an engine takes to open a bank, to find random prefixes, and to read them."""
        torch.set_num_threads(self.settings.threads)
        count = self.settings.served
        path, _ = self.fill("served", count, tokens=1)
        draw = random.Random(seed)
        names = [f"u{draw.randrange(count)}" for _ in range(BATCH * self.settings.batches)]
        found = in_children([partial(find_names, path, names)], method="spawn")[0]
        return {**found, "bytes": (path / "data.mdb").stat().st_size}

    def memory(self, kind: str, path: Path, count: int) -> int:
        """Return by how many bytes the private memory of a new process grows when it reads batches of a bank."""
        return int(in_children([partial(read_batches, kind, path, count, self.settings.batches)], method="spawn")[0])

    def replace(self, seed: int) -> Result:
        """Let processes read one prefix while it is replaced; all values of a version are the same number."""
        torch.set_num_threads(self.settings.threads)
        model = zoo.get_method("prefix_tuning")(base(), "u", num_virtual_tokens=TOKENS, init="random")
        path = self.folder / "replaced"
        shutil.rmtree(path, ignore_errors=True)
        bank = zoo.PromptBank(path, model, dtype=torch.float16)

        def put(value: int) -> None:
            for parameter in model.prompts["u"].parameters():
                parameter.data.fill_(value % 1024)  # half precision holds these numbers exactly
            bank.add("x", model.prompts["u"], overwrite=True)

        def read(pipe: Any) -> None:
            own = zoo.PromptBank(path, model)
            seen, reads, halves = set(), 0, 0
            end = time.monotonic() + self.settings.seconds
            while time.monotonic() < end:
                tokens = own.prepare(["x"])[0].tokens.sites["decoder"]
                values = {value for layer in (*tokens.keys, *tokens.values) for value in layer.unique().tolist()}
                halves += len(values) != 1
                seen |= values
                reads += 1
            pipe.send((reads, len(seen), halves))

        put(0)
        written = 0

        def replace() -> None:
            nonlocal written
            end = time.monotonic() + self.settings.seconds
            while time.monotonic() < end:
                written += 1
                put(written)

        found = in_children([read] * self.settings.readers, replace)
        reads, seen, halves = (list(column) for column in zip(*found, strict=True))
        return {"written": written, "reads": reads, "seen": seen, "halves": sum(halves)}

    def peft(self, seed: int) -> Result:
        """Time how long PEFT takes to load a prefix adapter into a model that already has one."""
        from peft import PeftModel

        torch.set_num_threads(self.settings.threads)
        with tempfile.TemporaryDirectory() as folder:
            zoo.export(zoo.get_method("prefix_tuning")(base(), num_virtual_tokens=TOKENS, init="random"), folder)
            model = PeftModel.from_pretrained(base(), folder)
            seconds = []
            for number in range(self.settings.batches + 3):
                began = time.perf_counter()
                model.load_adapter(folder, adapter_name=f"a{number}")
                seconds.append(time.perf_counter() - began)
                model.delete_adapter(f"a{number}")
        return {"milliseconds": [round(1000 * value, 3) for value in seconds[3:]]}


def find_names(path: Path, names: list[str], pipe: Any) -> None:
    """Open a bank in this process, and send the times of opening it, of each lookup and of each read."""
    torch.set_num_threads(1)
    reader_class = zoo.PrefixReader  # importing it is not part of opening a bank
    began = time.perf_counter()
    reader = reader_class(path)
    opened = time.perf_counter() - began
    seconds: dict[str, list[float]] = {"found": [], "read": []}
    for kind, ask in (("found", reader.find), ("read", reader.read)):
        for name in names:
            began = time.perf_counter()
            ask(name)
            seconds[kind].append(time.perf_counter() - began)
    milliseconds = {kind: [round(1000 * value, 4) for value in own] for kind, own in seconds.items()}
    pipe.send({"opened": round(1000 * opened, 3), **milliseconds})


def read_batches(kind: str, path: Path, count: int, batches: int, pipe: Any) -> None:
    """Read batches, and send by how many bytes the private memory of this process grew."""
    torch.set_num_threads(1)
    model = zoo.get_method(KINDS[kind][0])(base(), "u", num_virtual_tokens=TOKENS, init="random")
    before = own_memory()
    bank = zoo.PromptBank(path, model, cache_bytes=CACHE_BYTES)
    draw = random.Random(1)
    for _ in range(batches):
        bank.prepare([f"u{draw.randrange(count)}" for _ in range(BATCH)])
    pipe.send(own_memory() - before)


def in_children(
    functions: list[Callable[[Any], None]], meanwhile: Callable[[], None] = lambda: None, method: str = "fork"
) -> list[Any]:
    """Run functions in other processes, and `meanwhile` in this one; return what the functions send."""
    context: Any = multiprocessing.get_context(method)
    pipes, children = [], []
    for function in functions:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=function, args=(theirs,))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    meanwhile()
    found = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
    return found


def own_memory() -> int:
    """Return the private memory of this process: its resident bytes that are not backed by a file."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def table(runner: Runner, settings: Settings) -> str:
    """Format the available results."""
    lines = []
    for kind, (_, limit) in KINDS.items():
        if result := runner.result(kind):
            size = f"{getattr(settings, kind):,} {kind}, {result['bytes'] / 1e9:.2f} GB"
            lines.append([f"32 random ones ready, of {size}", spread(result["milliseconds"]), f"at most {limit:g} ms"])
            lines.append(["the same in processor time", spread(result["processor_milliseconds"]), ""])
            memory = [f"{result[f'memory_{name}'] / 2**20:.0f} MB" for name in ("small", "full")]
            few = max(BATCH, getattr(settings, kind) // SMALL)
            lines.append(
                [f"own memory for these reads, of {few:,} {kind} and of all", " and ".join(memory), "the same"]
            )
    if result := runner.result("served"):
        size = f"{settings.served:,} prefixes of one token, {result['bytes'] / 1e9:.2f} GB"
        lines.append([f"an engine opens the bank of {size}", f"{result['opened']:.1f} ms", ""])
        lines.append(["it finds a random one", spread(result["found"], 3), "at most 1 ms"])
        lines.append(["it reads a random one", spread(result["read"], 3), ""])
    if result := runner.result("peft"):
        lines.append(["PEFT: one prefix adapter loaded", spread(result["milliseconds"]), ""])
    if result := runner.result("replace"):
        read = f"{sum(result['reads']):,} reads, at least {min(result['seen'])} versions each"
        lines.append(
            [f"one prefix replaced {result['written']:,} times beside {len(result['reads'])} readers", read, ""]
        )
        lines.append(["reads of half an entry", str(result["halves"]), "0"])
    text = markdown(["what", "median (quartiles)", "goal"], lines)
    return f"{text}\n\nOf the memory, up to {CACHE_BYTES // 2**20} MB is the cache of ready prompts.\n"


def spread(milliseconds: list[float], digits: int = 1) -> str:
    """Format the median and the quartiles."""
    first, middle, third = (f"{value:.{digits}f}" for value in statistics.quantiles(milliseconds, n=4))
    return f"{middle} ms ({first} to {third})"


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table."""
    bench = Bench(settings)
    shared = {"versions": versions("softprompt-zoo", "torch", "lmdb"), "batches": settings.batches}
    experiments = [
        *(
            Experiment(
                name=kind,
                measure=bench.ready(kind),
                options=lambda kind=kind: {"count": getattr(settings, kind), "small": SMALL},
            )
            for kind in KINDS
        ),
        Experiment(name="served", measure=bench.find, options=lambda: {"count": settings.served}),
        Experiment(name="peft", measure=bench.peft, options=lambda: versions("peft")),
        Experiment(
            name="replace",
            measure=bench.replace,
            options=lambda: {"readers": settings.readers, "seconds": settings.seconds},
        ),
    ]
    runner = Runner(folder, shared, experiments)

    def finish() -> None:
        write(folder / "table.md", table(runner, settings))
        if not settings.keep:
            shutil.rmtree(bench.folder, ignore_errors=True)

    return runner, finish


main = command(__doc__.splitlines()[0], Settings, "bank", make)

if __name__ == "__main__":
    main()
