"""Tiny models on disk, a bank of prompts for each, and what `generate` writes with them."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests that do not start vLLM run without an installation
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
torch.set_num_threads(1)

SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 32}
WINDOWED = {**GROUPED, "sliding_window": 48}
MODELS = {
    "llama": GROUPED,
    "qwen3": GROUPED,
    "mistral": WINDOWED,
    "gemma3_text": {
        **WINDOWED,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 32,
    },
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 512},
    "opt": {**SIZES, "hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 64},
}
"""Sizes that vLLM's attention on a CPU accepts: heads of 32."""
PREFIXES = (1, 5, 31, 32, 33, 64, 130)
INPUT_LEVEL = (4, 40)
NEW_TOKENS = 16
VOCABULARY = 101


@dataclasses.dataclass(frozen=True)
class Place:
    """A model on disk, a bank for it, and the model in memory."""

    folder: Path
    model: torch.nn.Module

    @property
    def checkpoint(self) -> str:
        return str(self.folder / "model")

    @property
    def bank(self) -> str:
        return str(self.folder / "bank")

    @property
    def names(self) -> list[str]:
        return list(zoo.PrefixReader(self.bank).names())

    def texts(self) -> list[list[int]]:
        """Return ids of texts of several lengths, the same ones each time."""
        generator = torch.Generator().manual_seed(7)
        lengths = [1, 2, 7, 31, 32, 33, 50, 90, 12]
        return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]

    @torch.no_grad()
    def expected(self, name: str | None, ids: list[int], new_tokens: int = NEW_TOKENS) -> list[int]:
        """Return what the prompted model writes, greedily."""
        text = torch.tensor([ids])
        written = self.model.generate(
            input_ids=text,
            attention_mask=torch.ones_like(text),
            prompts=[name],
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
        )
        return written[0, len(ids) :].tolist()


def make_place(folder: Path, model_type: str) -> Place:
    """Save a tiny model with its tokenizer, and a bank of prefixes and folded input-level prompts."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **MODELS[model_type],
    )
    model = AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():  # larger weights, so that different prompts give different answers
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    model.save_pretrained(folder / "model")
    tokenizer = tiny_tokenizer()  # it writes the token 5 as `w5`
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    bank = zoo.PromptBank(folder / "bank", model)
    for length in PREFIXES:
        add(bank, model, f"prefix-{length}", "prefix_tuning", num_virtual_tokens=length)
    for length in INPUT_LEVEL:
        add(bank, model, f"input-{length}", "prompt_tuning", num_virtual_tokens=length)
    model = zoo.get_method("prefix_tuning")(model, "own", num_virtual_tokens=2)
    model.prompts.bank = bank
    return Place(folder, model)


def add(bank: zoo.PromptBank, model: torch.nn.Module, name: str, method: str, *, seed: int = 0, **options: int) -> None:
    """Make a random prompt with a method, fold it, and store it."""
    torch.manual_seed(1000 * seed + len(bank))
    prompted = zoo.get_method(method)(model, "made", init="random", **options)
    with torch.no_grad():
        for weight in prompted.prompts["made"].parameters():
            weight.normal_(std=0.7)
    zoo.fold(prompted)
    bank.add(name, prompted.prompts["folded"], overwrite=True)
    zoo.detach(prompted)


@pytest.fixture(scope="module", params=MODELS)
def place(request, tmp_path_factory):
    """Each model in turn."""
    return make_place(tmp_path_factory.mktemp(request.param), request.param)
