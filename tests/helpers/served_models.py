"""Models with prompts on disk, requests, and expected outputs, to compare engines with."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.embedded import resolve_model
from softprompt_zoo.testing.sizes import VOCABULARY
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

NAMES = ("alice", "bob", "carol")
TEXTS = 20
NEW_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Served:
    """A prompted model beside its bare checkpoint."""

    checkpoint: Path
    """The folder of the bare model and its tokenizer."""
    model: Any
    words: Any
    """The tokenizer."""
    rows: list[tuple[str | None, str]]
    """For each request, the name of a prompt, or none, and a text."""

    def chat(self, text: str) -> list[dict[str, Any]]:
        """Return a chat of one message."""
        return [{"role": "user", "content": text}]

    def ids(self, text: str) -> list[int]:
        """Return a text's own tokens."""
        return self.words(text, add_special_tokens=False).input_ids

    def chat_ids(self, text: str) -> list[int]:
        """Return the tokens of a chat that asks for an answer."""
        return self.ids(self.words.apply_chat_template(self.chat(text), tokenize=False, add_generation_prompt=True))

    @torch.no_grad()
    def written(self, name: str | None, ids: list[int]) -> list[int]:
        """Return what the prompted model writes after ids, greedily."""
        text = torch.tensor([ids])
        options = {"attention_mask": torch.ones_like(text), "max_new_tokens": NEW_TOKENS, "do_sample": False}
        return self.model.generate(text, prompts=[name], **options)[0, len(ids) :].tolist()

    @torch.no_grad()
    def written_behind(self, embeds: torch.Tensor) -> list[int]:
        """Return what the bare model writes after embeddings `(tokens, hidden)`, greedily."""
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        mask = torch.ones(1, len(embeds), dtype=torch.long)
        with self.model.prompts.disabled():
            return self.model.generate(inputs_embeds=embeds[None], attention_mask=mask, **options)[0].tolist()

    @torch.no_grad()
    def embed(self, ids: list[int]) -> torch.Tensor:
        """Return the embeddings `(tokens, hidden)` of ids."""
        return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    def as_vocabulary(self, folder: Path) -> dict[str, Any]:
        """Export all prompts as tokens and return their index."""
        zoo.export(self.model, folder, to="vocabulary", name=list(NAMES), tokenizer=self.words)
        return json.loads((folder / "soft_tokens.json").read_text("utf-8"))


def tiny(folder: Path) -> Served:
    """Build a tiny llama with heads of size 32, which vLLM's attention on a CPU needs."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(num_key_value_heads=2, head_dim=32, max_position_embeddings=512, **sizes, **tokens)
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # larger weights, so that another prompt means another answer
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    words = tiny_tokenizer()
    words.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    lengths = torch.randint(1, 40, (TEXTS,)).tolist()
    return _prompted(folder, [" ".join(f"w{t}" for t in torch.randint(5, VOCABULARY, (n,))) for n in lengths])


def smollm2(_folder: Path) -> Served:
    """Use the embedded model."""
    things = ["the sea", "a bridge", "winter in the mountains", "old clocks", "bread"]
    asked = ["Write one sentence about {}.", "What is {}?", "{} reminds me of", "List three facts about {}:"]
    return _prompted(resolve_model("smollm2"), [text.format(thing) for thing in things for text in asked])


def _prompted(checkpoint: Path, texts: list[str]) -> Served:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    table = model.get_input_embeddings().weight
    torch.manual_seed(5)
    model = zoo.get_method("prompt_tuning")(model, NAMES[0], num_virtual_tokens=4)
    for length, name in enumerate(NAMES[1:], start=7):
        model.prompts.add(name, "prompt_tuning", num_virtual_tokens=length)
    with torch.no_grad():
        for weight in model.prompts.parameters():
            words = torch.randint(5, table.shape[0], (len(weight),))
            weight.copy_(table[words] + 0.2 * table.std() * torch.randn_like(weight))
    named = [*NAMES, None]
    rows = [(named[number % len(named)], text) for number, text in enumerate(texts)]
    return Served(Path(checkpoint), model, AutoTokenizer.from_pretrained(checkpoint), rows)
