"""Measure how similar prompts are, to choose one to start from."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from softprompt_zoo.config.checks import check_choice
from softprompt_zoo.operations.given import GivenPrompt, check_alike, read_given
from softprompt_zoo.shapes import Float

SIMILARITIES = ("mean", "tokens")


@torch.no_grad()
def similarity(a: GivenPrompt, b: GivenPrompt, how: str = "mean", *, model: PreTrainedModel | None = None) -> float:
    """Return how similar two prompts are, by the cosine between their virtual tokens.

    Args:
        a: A prompt, `model.prompts[name]`, or the folder of a saved one.
        b: Another prompt of the same kind; its length may differ.
        how: `"mean"`: the cosine of the two mean tokens. `"tokens"`: the mean cosine over all pairs of
            tokens.
        model: The model that the prompts are for; needed if both are folders.

    Returns:
        A number in [-1, 1]. A token's keys and values count as one vector; gates do not count.

    Raises:
        TypeError: If one is neither a prompt nor a folder.
        ValueError: If `how` is none of these, or it is unknown which model they are for.
        UnsupportedError: If the prompts are of different kinds.
        BackboneMismatchError: If one was made for a model of different sizes.

    Source:
        Vu et al., "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer", 2022 (arXiv 2110.07904): cosine
        similarity of average tokens, and per-token average cosine similarity; here lengths may differ.
    """
    check_choice("how", how, SIMILARITIES)
    given, _, _ = read_given([("a", a), ("b", b)], model)
    check_alike(given)
    return _similarity(given[0].tokens.features(), given[1].tokens.features(), how)


@torch.no_grad()
def most_similar(
    prompt: GivenPrompt,
    candidates: Mapping[str, GivenPrompt] | Sequence[str | os.PathLike[str]],
    how: str = "mean",
    *,
    model: PreTrainedModel | None = None,
) -> list[tuple[str, float]]:
    """Rank prompts by their similarity to one, to choose a trained prompt from which to start a new task.

    Args:
        prompt: A prompt that was briefly trained on the new task.
        candidates: Prompts by name, such as `model.prompts`, or folders of saved ones. The prompt itself is left out.
        how: As in `similarity`.
        model: The model that the prompts are for; needed if all are folders.

    Returns:
        Names or folders with their similarity, most similar first.

    Raises:
        TypeError: If `candidates` is neither a mapping nor a list of folders.
        ValueError: If there are no candidates.
        UnsupportedError: If one is not of the same kind as the prompt.
        BackboneMismatchError: If one was made for a model of different sizes.

    Source:
        Vu et al. 2022 (arXiv 2110.07904): retrieval of source prompts by the similarity of task embeddings.
    """
    check_choice("how", how, SIMILARITIES)
    named = _others(_named(candidates), prompt)
    given, _, _ = read_given([("prompt", prompt), *((f"candidate {name!r}", c) for name, c in named.items())], model)
    check_alike(given)
    own, *others = [one.tokens.features() for one in given]
    found = [(name, _similarity(own, other, how)) for name, other in zip(named, others, strict=True)]
    return sorted(found, key=lambda pair: -pair[1])


def _named(candidates: Any) -> dict[str, Any]:
    if isinstance(candidates, Mapping):
        return dict(candidates.items())
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise TypeError(f"candidates is {type(candidates).__name__}; expected prompts by name, or a list of folders")
    return {_place(folder): folder for folder in candidates}


def _others(candidates: Mapping[str, Any], prompt: Any) -> dict[str, Any]:
    """Return the candidates without the prompt itself."""
    others = {name: candidate for name, candidate in candidates.items() if not _is_same(candidate, prompt)}
    if not others:
        known = ", ".join(map(repr, candidates)) or "none"
        raise ValueError(f"candidates has no prompt but the given one ({known}); give at least one to compare with")
    return others


def _is_same(candidate: Any, prompt: Any) -> bool:
    if isinstance(candidate, str | os.PathLike) and isinstance(prompt, str | os.PathLike):
        return os.path.realpath(candidate) == os.path.realpath(prompt)
    return candidate is prompt


def _place(folder: Any) -> str:
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"candidates has {type(folder).__name__} in a list; give prompts by name: {{name: prompt}}")
    return os.fspath(folder)


def _similarity(a: Float[Tensor, "tokens features"], b: Float[Tensor, "other_tokens features"], how: str) -> float:
    if how == "mean":
        a, b = a.mean(dim=0, keepdim=True), b.mean(dim=0, keepdim=True)
    cosine = float((functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T).mean())
    return max(-1.0, min(1.0, cosine))  # rounding may exceed the bounds
