"""Demonstrations as token ids, and recognizing rows that are demonstrations.

Each token belongs to a part: in example i, counted from 0, `2 i` before its target, `2 i + 1` from the target on.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import softprompt_zoo as zoo

INPUT, TARGET = "{input}", "{target}"
EXPECTED = "expected pairs (input, target) of two texts, in the order in which the model reads them"
Integers = tuple[int, ...]


def read_pairs(examples: Any) -> tuple[tuple[str, str], ...]:
    """Read examples as pairs.

    Args:
        examples: A sequence of pairs `(input, target)`.

    Returns:
        The pairs.

    Raises:
        TypeError: If it is not a sequence, or one of its items is not a pair of texts.
    """
    if isinstance(examples, str) or not isinstance(examples, Sequence):
        raise TypeError(f"examples is {examples!r}; {EXPECTED}")
    for index, pair in enumerate(examples):
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or not all(isinstance(part, str) for part in pair):
            raise TypeError(f"examples[{index}] is {pair!r}; {EXPECTED}")
    return tuple((text, target) for text, target in examples)


def split_template(template: str) -> tuple[str, str]:
    """Return the parts of a template before and after the target.

    Args:
        template: How an example is written.

    Raises:
        ValueError: If its fields are wrong.
    """
    before, found, behind = template.partition(TARGET)
    if not found or before.count(INPUT) != 1 or INPUT in behind or TARGET in behind:
        raise ValueError(f"template is {template!r}; expected one {INPUT} followed by one {TARGET}")
    return before, behind


def tokenize_pieces(tokenizer: Any, template: str | None, text: str, target: str) -> list[list[int]]:
    """Tokenize an example in three pieces, without special tokens.

    Args:
        tokenizer: A transformers tokenizer.
        template: How an example is written.
        text: The text for `{input}`.
        target: The text for `{target}`.

    Returns:
        The ids before the target, of the target, and after it.

    Raises:
        ValueError: If the template is unknown.
    """
    if template is None:
        raise ValueError("the template is unknown because the prompt was given as token ids; tokenize the row yourself")
    before, behind = split_template(template)
    shown = before.rstrip(" ")  # tokenizers include the space before a word in its token
    pieces = (shown.replace(INPUT, text), before[len(shown) :] + target, behind)
    return [tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else [] for piece in pieces]


def tokenize_examples(tokenizer: Any, template: str | None, examples: Iterable[tuple[str, str]]) -> tuple[Any, Any]:
    """Tokenize examples one after the other.

    Args:
        tokenizer: A transformers tokenizer.
        template: How an example is written.
        examples: Pairs `(input, target)`.

    Returns:
        The token ids, and the part of each.

    Raises:
        ValueError: If an input or a target has no tokens.
    """
    ids: list[int] = []
    parts: list[int] = []
    for index, (text, target) in enumerate(examples):
        shown, answer, behind = tokenize_pieces(tokenizer, template, text, target)
        if not shown or not answer:
            raise ValueError(f"examples[{index}] is {(text, target)!r}, and a part of it has no tokens; give both")
        ids += shown + answer + behind
        parts += [2 * index] * len(shown) + [2 * index + 1] * len(answer + behind)
    return tuple(ids), tuple(parts)


def check_tokens(ids: Integers | None, parts: Integers | None) -> None:
    """Refuse token ids that do not form examples.

    Raises:
        ValueError: If they do not.
    """
    if not ids or not parts or len(ids) != len(parts):
        raise ValueError(
            f"there are {len(ids or ())} token_ids and {len(parts or ())} token_parts; give a part for each"
        )
    if sorted(parts) != [*parts] or sorted({*parts}) != [*range(parts[-1] + 1)] or parts[-1] % 2 == 0:
        raise ValueError(f"token_parts is {parts}; expected 0, 1, 2, … up to an odd number, in order and without gaps")


def rows_of_examples(config: Any, backbone: zoo.Backbone, text: zoo.Text) -> Tensor:
    """Find which rows are examples: those whose text ends with an example's tokens before its target.

    Args:
        config: With `token_ids` and `token_parts`.
        backbone: The model's embedding table.
        text: The rows' text.

    Returns:
        `(rows, examples)` bool.
    """
    ids = torch.tensor(config.token_ids, device=text.mask.device)
    parts = torch.tensor(config.token_parts, device=text.mask.device)
    lengths = text.mask.sum(dim=1)
    # Stable: text is moved to the end, in its own order, wherever padding and answers were.
    order = text.mask.int().argsort(dim=1, stable=True)
    ends = text.embeddings.gather(1, order[..., None].expand_as(text.embeddings))
    found = []
    for example in range(0, max(config.token_parts), 2):
        shown = backbone.embed(ids[parts == example]).to(ends.dtype)
        same = lengths >= len(shown)
        # For a row that is too short, the comparison does not matter: `same` is already false.
        tail = ends[:, max(0, ends.shape[1] - len(shown)) :]
        found.append(same & (tail == shown[len(shown) - tail.shape[1] :]).all(dim=-1).all(dim=-1))
    return torch.stack(found, dim=1)
