"""A tokenizer that knows virtual tokens as special ones."""

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
    """Copy a tokenizer and give it a special token for every virtual one.

    Args:
        tokenizer: The tokenizer. Not changed.
        counts: Prompt name to its virtual tokens.

    Returns:
        The copy, and each prompt's new ids.

    Raises:
        UnsupportedError: If the ids cannot be those of new rows of the table.
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
            raise UnsupportedError(f"the tokenizer has a token {token!r} already; give the prompt another name")


def _add(tokenizer: Any, tokens: list[str]) -> list[int]:
    """Add special tokens to a tokenizer, and return their ids."""
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    ids: list[int] = tokenizer.convert_tokens_to_ids(tokens)
    return ids


def put_in_chats(tokenizer: Any, strings: dict[str, str], default: str) -> None:
    """Have chat templates put soft tokens in front.

    Args:
        tokenizer: The tokenizer. Changed.
        strings: Prompt name to its tokens, as text.
        default: Those in front where a chat names no prompt.
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
    """Describe what was written, for who reads it.

    Args:
        table: Name of the embedding table in the checkpoint.
        scale: What the model multiplies its rows by.
        active: The prompts in front by default.
        tokenizer: With the new tokens.
        ids: Prompt name to its ids.

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
    """Refuse ids of new tokens that another token has, or that are not those of the next rows."""
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
    """Find the string that gives the soft tokens in front of a text's own ids, its begin token included."""
    text = "".join(tokenizer.convert_ids_to_tokens(soft))
    around, bare = _ids_of_probes(tokenizer, ""), _ids_of_probes(tokenizer, "", add_special_tokens=False)
    starts = {tuple(full[: _find(full, own)]) for full, own in zip(around, bare, strict=True)}
    begin = list(starts.pop()) if len(starts) == 1 else []
    begin_text = "".join(tokenizer.convert_ids_to_tokens(begin))
    # A blank where the tokenizer marks the start of a text and would not after a special token.
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
