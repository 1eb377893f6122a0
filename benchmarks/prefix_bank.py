"""A bank with users' prompts of six methods among many others, for the benchmark of serving."""

from pathlib import Path
from typing import Any

import torch

import softprompt_zoo as zoo

METHODS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"num_virtual_tokens": 20},
    "prefix_tuning": {"num_virtual_tokens": 20},
    "p_tuning": {"num_virtual_tokens": 16},
    "p_tuning_v2": {"num_virtual_tokens": 33},
    "multitask_prompt_tuning": {"num_virtual_tokens": 8, "num_tasks": 2, "rank": 2},
    "cpt": {"token_ids": tuple(range(500, 540)), "token_types": (1, *[2] * 18, 3, 4, *[6] * 17, 7, 8)},
}
"""Six methods and their sizes. The prompts are random, since the comparisons do not depend on their content."""
AT_ONCE = 2000


def make_bank(folder: Path, model: Any, users: int, prompts: int) -> None:
    """Create a bank.

    Args:
        folder: The bank's folder.
        model: The model, without prompts; it is left unchanged.
        users: Number of prompts `user-0`, …, of the methods in turn, stored as prefixes.
        prompts: Total number of prompts; the others are prefixes of one token in float16.
    """
    bank, methods = zoo.PromptBank(folder, model), list(METHODS)
    made = []
    for index in range(users):
        if index < 8 * len(methods):
            torch.manual_seed(index)
            made.append(_random_prefix(model, methods[index % len(methods)]))
        else:  # all further prompts are earlier prefixes with added noise
            made.append(made.pop(0))
            _add_noise(made[-1], index)
        bank.add(f"user-{index}", made[-1])
    small = _random_prefix(model, "prefix_tuning", num_virtual_tokens=1)
    bank = zoo.PromptBank(folder, model, dtype=torch.float16)
    for begin in range(users, prompts, AT_ONCE):
        bank.add_many({f"other-{index}": small for index in range(begin, min(prompts, begin + AT_ONCE))})
    bank.close()


def _random_prefix(model: Any, method: str, **options: Any) -> Any:
    """Return a random prompt of a method as a prefix."""
    options = METHODS[method] | options
    prompted = zoo.get_method(method)(model, "made", **options)
    _add_noise(prompted.prompts["made"], 0)
    zoo.fold(prompted, task=1 if "num_tasks" in options else None)
    folded = prompted.prompts["folded"]
    zoo.detach(prompted)
    return folded


@torch.no_grad()
def _add_noise(prompt: Any, seed: int) -> None:
    """Add a little noise to every parameter of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    for weight in prompt.parameters():
        weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=generator))
