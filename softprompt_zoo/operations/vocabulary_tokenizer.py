"""A tokenizer that has virtual tokens as special tokens."""

import copy
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from transformers import AddedToken

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files import vocabulary

PROBES = ("One, two.", "a b")
"""Texts that show what a tokenizer puts around them."""


def extend(tokenizer: Any, counts: Mapping[str, int]) -> tuple[Any, dict[str, list[int]]]:
    """Copy a tokenizer and add a special token for every virtual one.

    Args:
        tokenizer: The tokenizer. Not changed.
        counts: Number of virtual tokens by prompt name.

    Returns:
        The copy, and each prompt's new ids.

    Raises:
        UnsupportedError: If the ids cannot be those of new rows in the table.
    """
    names = {name: vocabulary.token_names(name, count) for name, count in counts.items()}
    taken = tokenizer.get_vocab()
    _check_are_new(itertools.chain.from_iterable(names.values()), taken)
    extended = copy.deepcopy(tokenizer)
    ids = {name: _add(extended, own) for name, own in names.items()}
    _check_ids([*itertools.chain.from_iterable(ids.values())], set(taken.values()), len(tokenizer))
    return extended, ids


def _check_are_new(tokens: Iterable[str], taken: Collection[str]) -> None:
    for token in tokens:
        if token in taken:
            raise UnsupportedError(f"the tokenizer already has a token {token!r}; give the prompt another name")


def _add(tokenizer: Any, tokens: list[str]) -> list[int]:
    """Add special tokens to a tokenizer, and return their ids."""
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    ids: list[int] = tokenizer.convert_tokens_to_ids(tokens)
    return ids


def put_in_chats(tokenizer: Any, strings: dict[str, str], default: str) -> None:
    """Make chat templates put soft tokens in front.

    Args:
        tokenizer: The tokenizer. Changed.
        strings: Each prompt's tokens as text, by name.
        default: Those in front if a chat names no prompt.
    """
    template = tokenizer.chat_template
    if isinstance(template, str):
        tokenizer.chat_template = vocabulary.chat_template(template, strings, default)
    elif isinstance(template, dict):
        changed = {kind: vocabulary.chat_template(own, strings, default) for kind, own in template.items()}
        tokenizer.chat_template = changed


def index_of(
    table: str, scale: float, active: tuple[str, ...], tokenizer: Any, ids: dict[str, list[int]]
) -> vocabulary.Index:
    """Describe the export, for those who read it.

    Args:
        table: Name of the embedding table in the checkpoint.
        scale: The factor by which the model multiplies its rows.
        active: The prompts that are in front by default.
        tokenizer: The tokenizer with the new tokens.
        ids: Each prompt's ids, by name.

    Returns:
        The index.
    """
    soft = [token for part in active for token in ids[part]]
    in_front, add_special_tokens = _in_front(tokenizer, soft)
    prompts: dict[str, vocabulary.SoftTokens] = {
        part: {
            "ids": own,
            "tokens": tokenizer.convert_ids_to_tokens(own),
            "in_front": _in_front(tokenizer, own)[0],
        }
        for part, own in ids.items()
    }
    return vocabulary.Index(table, scale, active, in_front, add_special_tokens, prompts)


def _check_ids(flat: list[int], used: set[int], known: int) -> None:
    """Refuse ids of new tokens that another token has, or that do not follow the last row."""
    if used & set(flat):
        raise UnsupportedError(
            f"the tokenizer's ids have gaps, so it gives a new token the id {min(used & set(flat))}, which another "
            'token has; use to="embeddings"'
        )
    if flat != list(range(known, known + len(flat))):
        raise UnsupportedError(
            f"the tokenizer gives new tokens the ids {flat[0]} to {flat[-1]}; expected {known} and those after it"
        )


def _in_front(tokenizer: Any, soft: list[int]) -> tuple[str | None, bool]:
    """Find the string that produces the soft tokens in front of a text's own ids, including its begin token."""
    text = "".join(tokenizer.convert_ids_to_tokens(soft))
    around, bare = _ids_of_probes(tokenizer, ""), _ids_of_probes(tokenizer, "", add_special_tokens=False)
    starts = {tuple(full[: _find(full, own)]) for full, own in zip(around, bare, strict=True)}
    begin = list(starts.pop()) if len(starts) == 1 else []
    begin_text = "".join(tokenizer.convert_ids_to_tokens(begin))
    # With a space if the tokenizer marks the start of a text but would not do so after a special token.
    for blank in ("", " "):
        if _ids_of_probes(tokenizer, text + blank) == [soft + full for full in around]:
            return text + blank, True
        front = text + begin_text + blank
        if _ids_of_probes(tokenizer, front, add_special_tokens=False) == [soft + begin + own for own in bare]:
            return front, False
    return None, False


def _ids_of_probes(tokenizer: Any, front: str, **options: bool) -> list[list[int]]:
    return [list(tokenizer(front + probe, **options).input_ids) for probe in PROBES]


def _find(ids: list[int], part: list[int]) -> int:
    places = [place for place in range(len(ids)) if ids[place : place + len(part)] == part]
    return places[0] if places else 0
