"""Export prompts as new tokens of an ordinary checkpoint, for engines that know nothing about prompts."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt_zoo.backbone.eval_mode import eval_mode
from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.backbone.peft_layers import adapter_names, has_adapters
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files import vocabulary
from softprompt_zoo.model.attachment import detach
from softprompt_zoo.model.context import is_disabled
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.operations.input_prompts import check_input_numbers, input_tokens
from softprompt_zoo.operations.new_folder import check_free, moved_into_place
from softprompt_zoo.operations.vocabulary_rows import add_rows, least_likely, output_row
from softprompt_zoo.operations.vocabulary_tokenizer import extend, index_of, put_in_chats
from softprompt_zoo.shapes import Float, Int

TRIAL_TOKENS = 16
"""Text tokens in the forward that compares the new checkpoint with the prompted model."""


@torch.no_grad()
def export_vocabulary(
    model: PreTrainedModel,
    directory: Path,
    tokenizer: Any,
    names: Sequence[str] | None = None,
    task: int | None = None,
) -> None:
    """Write an ordinary checkpoint and tokenizer in which every virtual token is a special token.

    Args:
        model: A causal model with prompts. Not changed; all of its weights except the tables of its vocabulary are
            written without being copied.
        directory: The folder to write; it must be missing or empty.
        tokenizer: The model's. Not changed.
        names: The prompts; by default, the chat template puts the first of them in front. If not given, the active
            ones, which it puts in front together.
        task: The task to write, for prompts with several.

    Raises:
        TypeError: If the tokenizer is not one.
        ValueError: If the directory is not empty, a prompt does not have that task, or none has tasks.
        UnsupportedError: If the checkpoint could not reproduce what the prompts do. Nothing is written.
    """
    prompts: Prompts = model.prompts  # type: ignore[assignment]
    _check_tokenizer(tokenizer)
    tokens = input_tokens(prompts, names, task, "vocabulary")
    vocabulary.check_names(tokens)
    active = prompts.active if names is None else tuple(tokens)[:1]
    check_free(directory)
    _check_model(model, prompts, tokens)
    check_input_numbers(tokens, prompts.backbone.dtype)
    known = len(tokenizer)
    scale = _scale(model, prompts, known)
    extended, ids = extend(tokenizer, {name: len(own) for name, own in tokens.items()})
    text = _trial_text(prompts, known, sum(len(own) for own in ids.values()))
    expected = {
        name: _logits(model, text, prompts=[list(name)], **_tasks(prompts, task)) for name in {active, *_alone(tokens)}
    }
    rows = torch.cat([own / scale for own in tokens.values()])
    plain = _with_rows(model, rows, _flat(ids.values()), expected[active], known)
    for combination, logits in expected.items():
        soft = _flat(ids[name] for name in combination)
        _compare(_logits(plain, text, soft), logits, len(soft), known, combination)
    strings = {name: "".join(extended.convert_ids_to_tokens(own)) for name, own in ids.items()}
    put_in_chats(extended, strings, "".join(strings[name] for name in active))
    with moved_into_place(directory) as folder:
        plain.save_pretrained(folder)
        extended.save_pretrained(folder)
        table: Any = plain.get_input_embeddings().weight
        vocabulary.write_index(folder, index_of(vocabulary.table_name(folder, table), scale, active, extended, ids))


def _check_tokenizer(tokenizer: Any) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"tokenizer is {type(tokenizer).__name__}; expected the model's tokenizer, "
            "as AutoTokenizer.from_pretrained returns it"
        )


def _flat(ids: Iterable[Sequence[int]]) -> list[int]:
    return [token for own in ids for token in own]


def _alone(names: Any) -> list[tuple[str, ...]]:
    return [(name,) for name in names]


def _tasks(prompts: Prompts, task: int | None) -> dict[str, Any]:
    return {} if task is None else {"task_ids": torch.tensor([task], device=prompts.backbone.device)}


def _check_model(model: PreTrainedModel, prompts: Prompts, tokens: Any) -> None:
    """Refuse what an ordinary checkpoint cannot reproduce, before anything is computed."""
    if is_disabled(prompts):
        shown = ", ".join(map(repr, tokens))
        raise UnsupportedError(
            f"the prompts are disabled here ({shown}), so nothing can be compared; leave prompts.disabled()"
        )
    if not prompts.backbone.kind.is_causal:
        raise UnsupportedError(
            f"{type(model).__name__} is not a causal model: its own encoder would return a state for every soft token, "
            'but the prompted model returns only the text; keep the prompt in our format, or use to="embeddings"'
        )
    _check_heads(prompts, tokens)
    _check_weights(model)


def _check_heads(prompts: Prompts, names: Iterable[str]) -> None:
    for name in names:
        if prompts[name].head is not None:
            raise UnsupportedError(
                f"prompt {name!r} has its own trained task head, which tokens cannot hold; keep the prompt in "
                "our format"
            )


def _check_weights(model: PreTrainedModel) -> None:
    """Refuse weights that cannot be written as they are."""
    _check_have_values(model)
    quantizer = part_of(model, "hf_quantizer")
    if quantizer is not None:
        raise UnsupportedError(
            f"the model is quantized ({type(quantizer).__name__}); load it in float32 or bfloat16, export, and "
            "quantize the result"
        )
    if has_adapters(model):
        shown = ", ".join(map(repr, adapter_names(model))) or "merged ones"
        raise UnsupportedError(f"the model has adapters in its layers ({shown}); merge them into the weights first")


def _check_have_values(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UnsupportedError(
                f"the model has weights on the meta device, which have no values: {name}; load them first"
            )


def _scale(model: PreTrainedModel, prompts: Prompts, known: int) -> float:
    """Find the factor by which the model multiplies the rows of its table; Gemma has one."""
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[union-attr,assignment]
    if known > table.shape[0]:
        raise UnsupportedError(
            f"the tokenizer has {known} tokens, but the model's embedding table has {table.shape[0]} rows; give the "
            "tokenizer that belongs to the model"
        )
    ids = torch.linspace(0, known - 1, min(known, 64), device=table.device).long()
    rows, embedded = table[ids].double(), prompts.backbone.embed(ids).double()
    if rows.shape != embedded.shape:
        raise UnsupportedError(
            f"the model's embedding module returns a width of {embedded.shape[-1]}, but its table has {rows.shape[-1]}"
        )
    return _factor(rows, embedded, torch.finfo(table.dtype).eps)


def _factor(rows: Float[Tensor, "tokens hidden"], embedded: Float[Tensor, "tokens hidden"], eps: float) -> float:
    """Return the factor by which rows of the table were multiplied, if nothing else was done to them."""
    scale = float((rows * embedded).sum() / (rows * rows).sum().clamp(min=1e-30))
    rest = (embedded - scale * rows).abs().max() / embedded.abs().max().clamp(min=1e-30)
    if scale == 0 or rest > 4 * eps:
        raise UnsupportedError(
            "the model's embedding module does more than multiply the rows of its table (at best by "
            f'{scale:g}), so no row results in the prompt; use to="embeddings"'
        )
    return 1.0 if abs(scale - 1) < 1e-9 else scale


def _trial_text(prompts: Prompts, known: int, virtual: int) -> Int[Tensor, "1 length"]:
    room = TRIAL_TOKENS
    if prompts.backbone.max_positions is not None:
        room = max(1, min(room, prompts.backbone.max_positions - virtual))
    return torch.linspace(known // 8, known - 1, room, device=prompts.backbone.device).long()[None]


def _logits(
    model: PreTrainedModel, text: Int[Tensor, "1 length"], soft: Sequence[int] = (), **more: Any
) -> Float[Tensor, "1 positions width"]:
    ids = torch.cat([torch.tensor([list(soft)], dtype=text.dtype, device=text.device), text], dim=1)
    with eval_mode([model]):
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more)
    logits: Tensor = output.logits if "logits" in output else output.last_hidden_state  # of a model without a head
    return logits


def _compare(
    found: Float[Tensor, "..."], expected: Float[Tensor, "..."], count: int, known: int, names: tuple[str, ...]
) -> None:
    """Refuse a checkpoint that would not do the same as the prompted model."""
    if expected.ndim == 3:
        found, expected = found[:, count:, :known], expected[..., :known]
    allowed = (1e-4 if expected.dtype in (torch.float32, torch.float64) else 0.1) * max(
        1.0, float(expected.abs().max())
    )
    difference = (
        float((found.float() - expected.float()).abs().max()) if found.shape == expected.shape else float("inf")
    )
    if not difference <= allowed:
        raise UnsupportedError(
            f"with prompt {', '.join(map(repr, names))} as tokens, the model's outputs differ by {difference:.2g}, so "
            "it does more with token ids than look up their embeddings; keep the prompt in our format"
        )


def _without_prompts(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model without its prompts and without copying its weights: the copy shares their storage."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return detach(copy.deepcopy(model, memo))


def _with_rows(
    model: PreTrainedModel,
    rows: Float[Tensor, "tokens hidden"],
    ids: list[int],
    logits: Float[Tensor, "... vocab"],
    known: int,
) -> PreTrainedModel:
    """Copy a model without its prompts, with new rows in its table whose tokens it never generates.

    Args:
        model: The prompted model. Not changed.
        rows: The new rows, in the scale of the table.
        ids: Their ids.
        logits: Its predictions with its prompts, for a text.
        known: Size of the vocabulary.

    Returns:
        The copy.
    """
    plain = _without_prompts(model)
    head = plain.get_output_embeddings()
    row = None if head is None else output_row(head, least_likely(logits[..., :known]), known)
    add_rows(plain, ids, rows, row)
    _forbid(plain, ids)
    return plain


def _forbid(model: PreTrainedModel, ids: list[int]) -> None:
    """Keep `generate` from producing soft tokens even when it samples."""
    config = model.generation_config if model.can_generate() else None
    if config is not None:
        config.suppress_tokens = [*(config.suppress_tokens or []), *ids]
