"""Serve a trained prompt from other engines, and compare what they write with what the prompted model writes.

Run from the repository root; run the command again to resume it::

    python benchmarks/serve.py --converter llama.cpp/convert_hf_to_gguf.py

A prompt is trained on the museum data and exported with `to="vocabulary"` into `--work`. Without a converter, or
without the package llama-cpp-python, the experiment with llama.cpp is skipped and named. See benchmarks/README.md.
"""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

import softprompt_zoo as zoo
from common import load_language_model, markdown, versions, write
from runner import Experiment, MissingError, Result, Runner, command
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.examples import demo_data, read_examples

TEMPLATE = "{input}\n"
FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, tokens, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
model, words = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
index = json.load(open(folder + "/soft_tokens.json"))
answers = []
for text in json.load(sys.stdin):
    batch = words(index["in_front"] + text, return_tensors="pt", add_special_tokens=index["add_special_tokens"])
    new = model.generate(**batch, max_new_tokens=tokens, do_sample=False)[0, batch["input_ids"].shape[1]:]
    answers.append(words.decode(new, skip_special_tokens=True))
assert "softprompt_zoo" not in sys.modules
print(json.dumps(answers))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the command."""

    model: str = "smollm2"
    work: str = str(Path(tempfile.gettempdir()) / "softprompt-zoo-serve")
    """Folder for the checkpoint and its conversion, about 2 GB."""
    converter: str = ""
    """llama.cpp's `convert_hf_to_gguf.py`."""
    num_virtual_tokens: int = 20
    steps: int = 20
    inputs: int = 50
    new_tokens: int = 20
    sampled: int = 10_000
    threads: int = 2


class Bench:
    """The prompt and its experiments."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def inputs(self) -> list[str]:
        """Return texts that the prompt was not trained on."""
        rows = read_examples(demo_data() / "test.jsonl")[: self.settings.inputs]
        return [TEMPLATE.format(input=row.input) for row in rows]

    def options(self) -> dict[str, Any]:
        """Return everything that all results depend on."""
        own = dataclasses.asdict(self.settings)
        return {name: own[name] for name in ("num_virtual_tokens", "steps", "inputs", "new_tokens")}

    def prepare(self) -> tuple[Path, Path]:
        """Return the folders of the prompt and of its checkpoint, which are created if missing."""
        place = Path(self.settings.work) / "-".join(str(value) for value in self.options().values())
        prompt, checkpoint = place / "prompt", place / "checkpoint"
        if not (prompt / "softprompt_zoo.json").is_file():
            self._train().save_pretrained(prompt)
        if not checkpoint.is_dir():
            zoo.export(self._prompted(prompt), checkpoint, to="vocabulary", tokenizer=self._tokenizer())
        return prompt, checkpoint

    def reference(self, _seed: int) -> Result:
        """Let the model write with the prompt and without it."""
        prompt, _ = self.prepare()
        model, words = self._prompted(prompt), self._tokenizer()
        with_prompt, without = [], []
        for text in self.inputs():
            batch = words(text, return_tensors="pt")
            with_prompt.append(self._write(model, words, batch))
            with model.prompts.disabled():
                without.append(self._write(model, words, batch))
        return {"answers": with_prompt, "bare": without}

    def fresh(self, _seed: int) -> Result:
        """Let transformers write in a process that does not import this package."""
        _, checkpoint = self.prepare()
        arguments = [str(checkpoint), str(self.settings.new_tokens), str(self.settings.threads)]
        code = [sys.executable, "-c", FRESH, *arguments]
        done = subprocess.run(code, input=json.dumps(self.inputs()), capture_output=True, text=True, cwd=checkpoint)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return {"answers": json.loads(done.stdout)}

    def llama_cpp(self, _seed: int) -> Result:
        """Convert the checkpoint with llama.cpp's own script, in float32, and let llama.cpp write."""
        import llama_cpp

        _, checkpoint = self.prepare()
        gguf = checkpoint.with_suffix(".gguf")
        if not gguf.is_file():
            half = gguf.with_suffix(".part.gguf")
            script = [
                sys.executable,
                self.settings.converter,
                str(checkpoint),
                "--outfile",
                str(half),
                "--outtype",
                "f32",
            ]
            done = subprocess.run(script, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the converter failed: {done.stderr.strip().splitlines()[-1]}")
            shutil.move(half, gguf)
        index = json.loads((checkpoint / "soft_tokens.json").read_text("utf-8"))
        words = AutoTokenizer.from_pretrained(checkpoint)
        engine = llama_cpp.Llama(str(gguf), n_ctx=512, n_threads=self.settings.threads, verbose=False)
        answers, same_ids = [], 0
        for text in self.inputs():
            ids = engine.tokenize((index["in_front"] + text).encode(), add_bos=False, special=True)
            same_ids += ids == words(index["in_front"] + text, add_special_tokens=False).input_ids
            engine.reset()
            new = list[int]()
            for token in engine.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
                if token == engine.token_eos() or len(new) == self.settings.new_tokens:
                    break
                new.append(token)
            answers.append(words.decode(new, skip_special_tokens=True))
        return {"answers": answers, "same_ids": same_ids}

    def sampled(self, _seed: int) -> Result:
        """Sample from the checkpoint when only its rows, and no `suppress_tokens`, prevent soft tokens."""
        _, checkpoint = self.prepare()
        index = json.loads((checkpoint / "soft_tokens.json").read_text("utf-8"))
        soft = [token for prompt in index["prompts"].values() for token in prompt["ids"]]
        model, words = (
            AutoModelForCausalLM.from_pretrained(checkpoint).eval(),
            AutoTokenizer.from_pretrained(checkpoint),
        )
        model.generation_config.suppress_tokens = None
        watch = _Watch(soft)
        rows, length = 50, self.settings.sampled // 50
        batch = words([index["in_front"] + self.inputs()[0]] * rows, return_tensors="pt")
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "eos_token_id": None}
        torch.manual_seed(0)
        new = model.generate(**batch, max_new_tokens=length, logits_processor=[watch], **options)
        new = new[:, batch["input_ids"].shape[1] :]
        return {"tokens": new.numel(), "soft": int(torch.isin(new, torch.tensor(soft)).sum()), "chance": watch.largest}

    def check_llama_cpp(self) -> dict[str, Any]:
        """Return the options of the experiment with llama.cpp; raise `MissingError` if something is missing."""
        if importlib.util.find_spec("llama_cpp") is None:
            raise MissingError("llama-cpp-python is not installed")
        if not Path(self.settings.converter).is_file():
            raise MissingError("give llama.cpp's convert_hf_to_gguf.py with --converter")
        return {**self.options(), **versions("llama-cpp-python")}

    def _train(self) -> Any:
        torch.manual_seed(0)
        words = self._tokenizer()
        method = zoo.get_method("prompt_tuning")
        start = {"init": "text", "init_text": "Write one sentence about the museum.", "tokenizer": words}
        model = method(
            load_language_model(self.settings.model), **start, num_virtual_tokens=self.options()["num_virtual_tokens"]
        )
        rows = read_examples(demo_data() / "train.jsonl")
        optimizer = torch.optim.AdamW(model.prompts.parameters(), lr=1e-2, weight_decay=0.0)
        for step in range(self.settings.steps):
            texts = [TEMPLATE.format(input=row.input) + str(row.target) for row in rows[4 * step : 4 * step + 4]]
            batch = words([text + words.eos_token for text in texts], return_tensors="pt", padding=True)
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            loss = model(**batch, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"  step {step + 1}: {loss.item():.3f}", flush=True)
        return model.eval()

    def _prompted(self, prompt: Path) -> Any:
        return zoo.load(load_language_model(self.settings.model).eval(), prompt)

    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(resolve_model(self.settings.model))

    def _write(self, model: Any, words: Any, batch: Any) -> str:
        new = model.generate(**batch, max_new_tokens=self.settings.new_tokens, do_sample=False)
        text: str = words.decode(new[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return text


class _Watch(LogitsProcessor):
    """A logits processor that remembers the largest probability of all soft tokens together."""

    def __init__(self, soft: list[int]) -> None:
        self.soft, self.largest = soft, 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chance = torch.softmax(scores.double(), dim=-1)[:, self.soft].sum(-1)
        self.largest = max(self.largest, float(chance.max()))
        return scores


def experiments(bench: Bench) -> list[Experiment]:
    """Return the experiments."""
    sampled = lambda: {**bench.options(), "sampled": bench.settings.sampled}  # noqa: E731
    return [
        Experiment(name="reference", measure=bench.reference, options=bench.options),
        Experiment(name="transformers", measure=bench.fresh, options=bench.options, needs=("reference",)),
        Experiment(name="llama_cpp", measure=bench.llama_cpp, options=bench.check_llama_cpp, needs=("reference",)),
        Experiment(name="sampled", measure=bench.sampled, options=sampled),
    ]


def table(runner: Runner) -> str:
    """Compare the available results."""
    reference, lines = runner.result("reference"), []
    if reference is not None:
        answers = reference["answers"]
        others = {name: (runner.result(name) or {}).get("answers") for name in ("transformers", "llama_cpp")}
        others["no prompt"] = reference["bare"]
        for name, found in others.items():
            if found is not None:
                same = sum(a == b for a, b in zip(answers, found, strict=True))
                lines.append([name, f"{same} of {len(answers)}"])
    text = markdown(["engine", "inputs with the same greedy text"], lines)
    if (sampled := runner.result("sampled")) is not None:
        text += (
            f"\n\nOf {sampled['tokens']} sampled tokens (temperature 1, the rows alone, no `suppress_tokens`) "
            f"{sampled['soft']} were soft tokens. Together these never had a chance above {sampled['chance']:.0e}."
        )
    return text + "\n"


def make(settings: Settings, folder: Path) -> tuple[Runner, Callable[[], None]]:
    """Return the runner, and a function that writes the table."""
    torch.set_num_threads(settings.threads)
    shared = {"model": settings.model, "versions": versions("softprompt-zoo", "transformers", "torch")}
    runner = Runner(folder, shared, experiments(Bench(settings)))
    return runner, lambda: write(folder / "table.md", table(runner))


main = command((__doc__ or "").splitlines()[0], Settings, "serve", make)

if __name__ == "__main__":
    main()
