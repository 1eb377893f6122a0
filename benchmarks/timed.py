"""One side of ratios.py: reads the names of measures, one per line, and answers with the seconds that each took.

It runs in a separate process, with whichever softprompt_zoo is first on its path, so it uses only what both sides have:
the public interface.
"""

import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "default": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    | {"num_attention_heads": 9, "num_key_value_heads": 3},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
}
"""Sizes of SmolLM2-135M, and small ones, with which mainly this library's own work remains."""
TOKENS = 20
LENGTH = 16
ROWS = 16


class Side:
    """One softprompt_zoo, a model, and the measures of both."""

    def __init__(self, size: str) -> None:
        torch.manual_seed(0)
        self.base: Any = LlamaForCausalLM(LlamaConfig(**SIZES[size], tie_word_embeddings=True)).eval()
        self.zoo: Any = None
        self.kept: dict[str, Any] = {}

    def ids(self, rows: int, length: int) -> torch.Tensor:
        """Return token ids, the same on both sides."""
        return (torch.arange(rows * length).view(rows, length) * 7 + 3) % self.base.config.vocab_size

    def attach(self, method: str) -> None:
        """Put a prompt of a method on the model."""
        self.zoo.get_method(method)(self.base, num_virtual_tokens=TOKENS)

    def import_(self) -> Callable[[], Any]:
        """Return a function that imports the package; transformers and torch are already imported."""
        return lambda: setattr(self, "zoo", importlib.import_module("softprompt_zoo"))

    def attach_(self, method: str) -> Callable[[], Any]:
        """Return a function that attaches a prompt to a model without prompts."""
        self.free()
        return lambda: self.attach(method)

    def free(self) -> None:
        """Remove all prompts."""
        self.kept.clear()
        if hasattr(self.base, "prompts"):
            self.zoo.detach(self.base)

    def with_(self, method: str) -> Any:
        """Return the model with a prompt of this method, which may remain from the last call."""
        if self.kept.get("method") != method:
            self.free()
            self.attach(method)
            self.kept["method"] = method
        return self.base.eval()

    def forward(self, method: str, **options: Any) -> Callable[[], Any]:
        """Return a function that reads a text after a prompt."""
        model, ids = self.with_(method), self.ids(1, LENGTH)
        return torch.no_grad()(lambda: model(input_ids=ids, **options))

    def step(self, method: str) -> Callable[[], Any]:
        """Return a function that takes one training step on two rows."""
        model, ids = self.with_(method).train(), self.ids(2, LENGTH)
        optimizer = torch.optim.AdamW(model.prompts.parameters(), lr=1e-3)

        def run() -> None:
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    def decode(self, method: str) -> Callable[[], Any]:
        """Return a function that decodes one token after a cached text."""
        model = self.with_(method)
        with torch.no_grad():
            cache = model(input_ids=self.ids(1, LENGTH), use_cache=True).past_key_values
        lengths = itertools.count(LENGTH)

        @torch.no_grad()
        def run() -> None:
            length = next(lengths)
            mask, position = torch.ones(1, length + 1, dtype=torch.long), torch.tensor([[length]])
            model(input_ids=self.ids(1, 1), attention_mask=mask, position_ids=position, past_key_values=cache)

        run()
        return run

    def rows(self, method: str) -> Callable[[], Any]:
        """Return a function that reads as many rows as there are prompts, each row with its own prompt."""
        model, ids = self.with_(method), self.ids(ROWS, LENGTH // 2)
        names = [f"p{row}" for row in range(ROWS)]
        for name in names:
            if name not in model.prompts:
                model.prompts.add(name, method, num_virtual_tokens=TOKENS)
        return torch.no_grad()(lambda: model(input_ids=ids, prompts=names))

    def folded(self, count: int) -> Callable[[], Any]:
        """Return a function that reads a row after each of some folded prompts: keys and values computed once."""
        model, ids = self.with_("prompt_tuning"), self.ids(count, LENGTH if count == 1 else LENGTH // 2)
        names = [f"folded{row}" for row in range(count)]
        for name in names:
            if name not in model.prompts:
                self.zoo.fold(model, "default", name=name)
        return torch.no_grad()(lambda: model(input_ids=ids, prompts=names))

    def measures(self) -> dict[str, Callable[[], Callable[[], Any]]]:
        """Return the measures by name: functions that prepare a measure and return the function to time."""
        return {
            "import": self.import_,
            "attach a prefix": lambda: self.attach_("prefix_tuning"),
            "attach a prompt": lambda: self.attach_("prompt_tuning"),
            "forward, prefix": lambda: self.forward("prefix_tuning"),
            "training step, prefix": lambda: self.step("prefix_tuning"),
            "one decoded token, prefix": lambda: self.decode("prefix_tuning"),
            "16 rows, 16 prefixes": lambda: self.rows("prefix_tuning"),
            "forward, prompt": lambda: self.forward("prompt_tuning"),
            "forward without a cache, prompt": lambda: self.forward("prompt_tuning", use_cache=False),
            "training step, prompt": lambda: self.step("prompt_tuning"),
            "one decoded token, prompt": lambda: self.decode("prompt_tuning"),
            "16 rows, 16 prompts": lambda: self.rows("prompt_tuning"),
            "forward, folded prompt": lambda: self.folded(1),
            "16 rows, 16 folded prompts": lambda: self.folded(ROWS),
        }


class Imports:
    """A timer for modules that are imported while something else is timed, such as the lazy imports of attaching."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0
        machinery: Any = sys.modules["importlib._bootstrap"]
        self.inner, machinery._find_and_load = machinery._find_and_load, self.load

    def load(self, *args: Any) -> Any:
        """Import a module that is not loaded yet."""
        began, self.depth = time.process_time(), self.depth + 1
        try:
            return self.inner(*args)
        finally:
            self.depth -= 1
            if not self.depth:
                self.seconds += time.process_time() - began


def main() -> None:
    """Answer until the input ends; the arguments are the model's size and the folder that must contain the package."""
    size, root = sys.argv[1], Path(sys.argv[2]).resolve()
    torch.set_num_threads(1)
    side, imports = Side(size), Imports()
    measures = side.measures()
    print(json.dumps(list(measures)), flush=True)
    for line in sys.stdin:
        run = measures[line.strip()]()
        before, began = imports.seconds, time.process_time()
        run()
        seconds = time.process_time() - began
        place = Path(side.zoo.__file__).resolve()
        if not place.is_relative_to(root):
            raise RuntimeError(f"softprompt_zoo was imported from {place}; expected it in {root}")
        print(json.dumps([seconds, imports.seconds - before]), flush=True)


if __name__ == "__main__":
    main()
