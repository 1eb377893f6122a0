"""Look inside prompts: nearest words, norms, similar tokens, and the attention they get."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_choice, check_positive_integer
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.methods.parts.initialization import FREQUENT_VOCABULARY
from softprompt_zoo.model.attachment import prompts_of
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.operations.attention_batches import Batch
from softprompt_zoo.operations.attention_mass import measure_attention
from softprompt_zoo.operations.given import check_idle_task
from softprompt_zoo.operations.inspection_findings import Neighbour, Norms, PromptInspection
from softprompt_zoo.operations.inspection_report import Inspection
from softprompt_zoo.shapes import Float
from softprompt_zoo.sites.prompts_argument import check_combination
from softprompt_zoo.sites.task_ids_argument import check_task
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

NEAREST_BY = ("cosine", "distance")
ROWS_AT_ONCE = 16384
"""Number of vocabulary rows that are compared at once."""
SAMPLED_WORDS = 64
"""Number of words whose keys and values are compared."""


@torch.no_grad()
def inspect(
    model: PreTrainedModel,
    name: str | Sequence[str] | None = None,
    *,
    tokenizer: Any = None,
    inputs: Batch | Sequence[Batch] | None = None,
    neighbours: int = 5,
    nearest_by: str = "cosine",
    task: int | None = None,
) -> Inspection:
    """Look inside a model's prompts. The model is not changed.

    Args:
        model: A model with prompts.
        name: The prompt, or several, seen together in this order; by default the active ones.
        tokenizer: The model's tokenizer, for the text of words; without it, words are shown by their ids.
        inputs: A batch as the model's forward takes it, or several, for measuring the attention to the prompts.
        neighbours: Nearest words for each virtual token, at least 1.
        nearest_by: `"cosine"` of the angle, or L2 `"distance"`, both on the scale of the embedding module's output.
        task: The task to inspect, for prompts with several.

    Returns:
        The findings, by prompt.

    Raises:
        ValueError: If an option is not allowed, no prompt is active, or the task of a prompt with tasks is missing.
        TypeError: If `inputs` is not a batch, `tokenizer` is not a tokenizer, or `name` is neither a name nor a
            list of names.
        UnknownPromptError: If there is no prompt of that name.
        UnsupportedError: If the model has no prompts, has no values (the `meta` device), or returns no attention
            weights.
    """
    prompts = prompts_of(model, "inspect")
    check_positive_integer("neighbours", neighbours)
    check_choice("nearest_by", nearest_by, NEAREST_BY)
    _check_tokenizer(tokenizer)
    names = _names(prompts, name)
    _check_has_values(model, prompts.backbone)
    check_idle_task(task, map(prompts.__getitem__, names))
    tasks = {name: prompts[name].config.tasks for name in names}
    task = _check_task(task, tasks)
    count = min(neighbours, prompts.backbone.vocab_size)
    found = [_look(prompts, name, task if tasks[name] else None, tokenizer, count, nearest_by) for name in names]
    if inputs is not None:
        masses = measure_attention(model, names, inputs, task)
        found = [dataclasses.replace(one, attention=masses[one.name]) for one in found]
    return Inspection(tuple(found))


def _check_has_values(model: PreTrainedModel, backbone: Backbone) -> None:
    if backbone.device.type == "meta":
        raise UnsupportedError(
            f"the model is on the meta device, where nothing has a value ({type(model).__name__}); load its "
            "weights first"
        )


def _names(prompts: Prompts, name: str | Sequence[str] | None) -> tuple[str, ...]:
    names = prompts.active if name is None else check_combination(name, prompts.keys(), "name")
    if not names:
        raise ValueError(f"no prompt is active; name one of {', '.join(map(repr, prompts)) or 'none'}")
    return tuple(names)


def _check_tokenizer(tokenizer: Any) -> None:
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(f"tokenizer is {tokenizer!r}; expected the model's, as AutoTokenizer.from_pretrained gives it")


def _check_task(task: int | None, tasks: Mapping[str, int | None]) -> int | None:
    counts = [(count, name) for name, count in tasks.items() if count is not None]
    if not counts:
        return None
    count, name = min(counts)
    if task is None and count == 1:
        return 0
    check_task(task, count, name)
    return task


def _look(
    prompts: Prompts, name: str, task: int | None, tokenizer: Any, neighbours: int, nearest_by: str
) -> PromptInspection:
    prompt, backbone = prompts[name], prompts.backbone
    tokens = prompt.merged_tokens(backbone)
    near: tuple[tuple[Neighbour, ...], ...] = ()
    if task is not None:
        tokens = tokens.task(task)
    if tokens.at_input is not None:
        embeddings = tokens.at_input.to(backbone.device, torch.float32)
        near, words = _nearest(embeddings, backbone, tokenizer, neighbours, nearest_by)
        norms = {"embeddings": Norms(embeddings.norm(dim=1)[None].cpu(), words[None])}
    else:
        norms = _layer_norms(tokens, backbone)
    gates = {site: torch.tensor([_size(gate) for gate in own]) for site, own in tokens.gates.items()}
    unit = functional.normalize(tokens.features(), dim=1)
    count = prompt.num_virtual_tokens
    return PromptInspection(name, prompt.method, count, near, norms, unit @ unit.T, gates, None)


def _nearest(
    tokens: Float[Tensor, "tokens hidden"], backbone: Backbone, tokenizer: Any, count: int, nearest_by: str
) -> tuple[tuple[tuple[Neighbour, ...], ...], Float[Tensor, " vocab"]]:
    """Find the nearest words of every token; return them and the sorted norms of all words."""
    parts = []
    unit = functional.normalize(tokens, dim=1)
    best: list[Tensor] = []
    for start in range(0, backbone.vocab_size, ROWS_AT_ONCE):
        ids = torch.arange(start, min(start + ROWS_AT_ONCE, backbone.vocab_size), device=backbone.device)
        words = backbone.embed(ids).float()
        parts.append(words.norm(dim=1))
        cosine = unit @ functional.normalize(words, dim=1).T
        distance = torch.cdist(tokens, words, compute_mode="donot_use_mm_for_euclid_dist")
        found = torch.stack([ids.expand_as(cosine).to(cosine.dtype), cosine, distance])
        best = [torch.cat([*best, found], dim=2)]
        order = -best[0][1] if nearest_by == "cosine" else best[0][2]
        kept = order.topk(min(count, order.shape[1]), dim=1, largest=False).indices
        best = [best[0].gather(2, kept.expand(3, -1, -1))]
    ids, cosines, distances = best[0].cpu()
    near = tuple(
        tuple(
            Neighbour(int(index), _word(tokenizer, int(index)), float(cosine), float(distance))
            for index, cosine, distance in zip(*of_token, strict=True)
        )
        for of_token in zip(ids, cosines, distances, strict=True)
    )
    return near, torch.cat(parts).sort().values.cpu()


def _word(tokenizer: Any, index: int) -> str:
    if tokenizer is None:
        return f"#{index}"
    try:
        return str(tokenizer.decode([index])) or f"#{index}"
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):  # rows of the table that have no word
        return f"#{index}"


def _layer_norms(tokens: VirtualTokens, backbone: Backbone) -> dict[str, Norms]:
    """Compare the norms of keys and values with those of words that the model reads, at all layers."""
    most = min(FREQUENT_VOCABULARY, backbone.vocab_size)
    count = min(SAMPLED_WORDS, most, (backbone.max_positions or SAMPLED_WORDS))
    words = backbone.keys_values(torch.linspace(0, most - 1, count, device=backbone.device).long())
    found = {}
    for site in backbone.layers:
        own, of_words = tokens.at(site) or tokens.gated_at(site), words.sites[site]
        if own is not None:
            found[f"{site} keys"] = _compared(own.keys, of_words.keys, own.count)
            found[f"{site} values"] = _compared(own.values, of_words.values, own.count)
    return found


def _compared(
    layers: Sequence[Float[Tensor, "_ tokens _"] | None],
    of_words: Sequence[Float[Tensor, "_ words _"] | None],
    count: int,
) -> Norms:
    own = [torch.full((count,), math.nan) if layer is None else _norm(layer) for layer in layers]
    words = torch.stack([_norm(layer) for layer in of_words if layer is not None])
    return Norms(torch.stack(own), words.sort(dim=1).values)


def _norm(layer: Float[Tensor, "kv_heads tokens head_dim"]) -> Float[Tensor, " tokens"]:
    norms: Tensor = layer.float().norm(dim=-1).mean(dim=0).cpu()
    return norms


def _size(gate: Float[Tensor, " #heads"] | None) -> float:
    return 0.0 if gate is None else float(gate.float().abs().mean())
