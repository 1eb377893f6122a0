"""Tests, before a prompt is attached, whether virtual tokens made of real words act as these words in the base model.

It is easy to see whether a model's attention takes a prompt, but not whether that is all the model does with its text:
it may count positions elsewhere, or read its ids a second time. So each stack is run on a few words, as it will be
called.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.families import FAMILIES
from softprompt_zoo.errors import described
from softprompt_zoo.sites.shared_pass import causal_prefix
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.trial.built_alike import built, remember
from softprompt_zoo.trial.leading_layers import leading
from softprompt_zoo.trial.rehearsed_stack import FixedPrompts, RehearsedStack
from softprompt_zoo.trial.words import ready

WORD_COUNT, TEXT_LENGTH, PADDING_LENGTH = 2, 3, 2
TELLING = 3.0
"""Factor by which the words' effect must exceed rounding for a test of only the leading layers to count."""
KEYS_VALUES_WRONG = "keys and values of real words do not act as these words do"
INPUTS_WRONG = "the embeddings of real words do not act as these words do"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What would go wrong; `None` for what works."""

    keys_values: str | None = None
    """With keys and values."""
    inputs: str | None = None
    """With virtual tokens at the input embeddings."""
    padding: str | None = None
    """With prompts of different lengths in one batch, if they are real positions."""


_FOUND: dict[Any, Findings] = {}


@torch.no_grad()
def rehearse(family: str, stacks: Mapping[str, Stack]) -> Findings:
    """Test a model's stacks on a few words, or recall the findings about one built alike. The model is not changed.

    Args:
        family: The backbone's family.
        stacks: Its stacks; nothing can be found out about those on the `meta` device.

    Returns:
        What would go wrong.
    """
    key = (family, *(built(stack.module) for stack in stacks.values()))
    if None in key:
        return _try(family, stacks)
    if key not in _FOUND:
        remember(_FOUND, key, Findings() if _passes(family, stacks) else _try(family, stacks))
    return _FOUND[key]


@torch.no_grad()
def sees_later_tokens(stack: Stack) -> bool:
    """Return whether a stack's tokens see later ones: whether a different last token changes the first state."""
    weight: Any = stack.embedding.weight
    if weight.is_meta:
        return False
    ids = _words_and_text(stack)
    other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    try:
        with ready({stack.name: stack}):
            states = [RehearsedStack("encoder", stack).run(each, {})[:, 0] for each in (ids, other)]
    except Exception:
        return False
    return not torch.allclose(states[0], states[1], rtol=0, atol=1e-6 * float(states[0].abs().max()))


def _passes(family: str, stacks: Mapping[str, Stack]) -> bool:
    """Return whether the leading layers alone work, and the words matter there; otherwise all layers are tested."""
    try:
        shorter = {name: leading(stack) or stack for name, stack in stacks.items()}
        if all(shorter[name] is stack for name, stack in stacks.items()):
            return False
        return _try(family, shorter) == Findings() and _is_telling(family, shorter)
    except Exception:  # problems are reported for the whole model
        return False


def _is_telling(family: str, stacks: Mapping[str, Stack]) -> bool:
    """Return whether words change the states of the following text by much more than rounding."""
    first, last = next(iter(stacks.values())), list(stacks.values())[-1]
    ids = _words_and_text(first)
    with ready(stacks):
        for stack in {first.name: first, last.name: last}.values():
            rehearsed = RehearsedStack(family, stack)
            with_words, without = ({}, {}) if stack is first else _encoded(first, ids)
            expected = rehearsed.run(ids, with_words)[:, WORD_COUNT:]
            alone = rehearsed.run(ids[:, WORD_COUNT:], without)
            change, whole = (expected - alone).double().norm(dim=-1), expected.double().norm(dim=-1)
            if not bool((change > TELLING * rehearsed.close * whole).all()):
                return False
    return True


def _encoded(encoder: Stack, ids: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a decoder's arguments with embeddings in place of encoded words and text, and of the text only."""
    states = encoder.embed(ids)
    return {"encoder_hidden_states": states}, {"encoder_hidden_states": states[:, WORD_COUNT:]}


def _words_and_text(stack: Stack) -> Tensor:
    """Return the ids to test with, `(1, length)`; special tokens are at the ends of the table."""
    weight: Any = stack.embedding.weight
    count: int = weight.shape[0]
    return (count // 2 + torch.arange(WORD_COUNT + TEXT_LENGTH, device=weight.device))[None] % count


def _try(family: str, stacks: Mapping[str, Stack]) -> Findings:
    first, last = next(iter(stacks.values())), list(stacks.values())[-1]
    sound = "its encoder reads sound and no tokens" if first.is_audio_encoder else None
    if any(tensor.is_meta for tensor in (*first.embedding.parameters(), *last.module.parameters())):
        return Findings(inputs=sound)
    ids = _words_and_text(first)
    with ready(stacks):
        if FAMILIES[family].is_causal:
            return _try_causal(RehearsedStack(family, last), ids)
        inputs, padding = (sound, None) if sound else _try_encoder(RehearsedStack(family, first), ids)
        has_decoder = last is not first and last.attentions
        keys_values = _try_decoder(first, RehearsedStack(family, last), ids) if has_decoder else None
    return Findings(keys_values, inputs, padding)


def _try_causal(rehearsed: RehearsedStack, ids: Tensor) -> Findings:
    words, text = ids[:, :WORD_COUNT], ids[:, WORD_COUNT:]
    try:
        expected = rehearsed.run(ids, {})[:, WORD_COUNT:]
        plain = rehearsed.record(words, {})
        wrong = _try_padded(rehearsed, plain, text, expected)
    except Exception as error:
        wrong = _in_words(error)
    if wrong is not None:
        return Findings(keys_values=wrong)
    try:
        wrong = _try_embeddings(rehearsed, words, plain.sites[rehearsed.stack.name])
        return Findings(inputs=wrong or _try_long_text(rehearsed, ids))
    except Exception as error:
        return Findings(inputs=_in_words(error))


def _try_padded(rehearsed: RehearsedStack, plain: LayerTokens, text: Tensor, expected: Tensor) -> str | None:
    """Test keys and values in front of a text padded on either side; unpadded if padding affects the model itself."""
    length = text.shape[1]
    empty = text[:, :1].expand(-1, PADDING_LENGTH)
    ids = torch.cat([torch.cat([empty, text], dim=1), torch.cat([text, empty], dim=1)])
    places = torch.arange(length + PADDING_LENGTH, device=ids.device)
    mask = {"attention_mask": torch.stack([places >= PADDING_LENGTH, places < length]).long()}

    def rows(states: Tensor) -> Tensor:
        return torch.stack([states[0, PADDING_LENGTH:], states[1, :length]])

    padded = None
    with contextlib.suppress(Exception):  # without padding it may work
        padded = rows(rehearsed.run(ids, mask, plain))
    if padded is not None and rehearsed.agree(padded, expected):
        return None
    alone = rehearsed.run(text, {})
    if not rehearsed.agree(rehearsed.run(text, {}, plain), expected, alone):
        return KEYS_VALUES_WRONG
    if padded is not None and rehearsed.agree(padded, expected, alone):
        return None
    is_proof = rehearsed.agree(rows(rehearsed.run(ids, mask)), alone)
    return "padding moves the text away from its prompt" if is_proof else None


def _try_embeddings(rehearsed: RehearsedStack, words: Tensor, plain: SiteTokens) -> str | None:
    """Test the words' embeddings, next to ones of no word: a model may look up the word."""
    embedded = rehearsed.stack.embed(words[0])
    prompts = FixedPrompts(words=InputTokens(embedded), none=InputTokens(embedded * 1.0625))
    segment: Any = causal_prefix(rehearsed.stack, prompts.call).segments[0]
    for given, wanted in ((segment.keys, plain.keys), (segment.values, plain.values)):
        for layer, of_words in zip(given, wanted, strict=True):
            if of_words is not None and not rehearsed.agree(layer, of_words):
                return INPUTS_WRONG
    return None


def _try_long_text(rehearsed: RehearsedStack, ids: Tensor) -> str | None:
    """Test the words' embeddings in front of a text beyond the length from which the rotation changes."""
    limit = rehearsed.stack.rotation_limit
    if limit is None or not rehearsed.stack.takes_position_ids:
        return None
    words, text = ids[:, :WORD_COUNT], ids[:, WORD_COUNT:]
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    positions = torch.where(places < WORD_COUNT, places, places + limit)
    mask = torch.ones_like(ids)
    expected = rehearsed.run(ids, {"position_ids": positions, "attention_mask": mask})[:, WORD_COUNT:]
    inputs = {"position_ids": positions[:, WORD_COUNT:] - WORD_COUNT, "attention_mask": mask[:, WORD_COUNT:]}
    given = rehearsed.run(text, inputs, InputTokens(rehearsed.stack.embed(words[0])))
    rehearsed.run(text, {})  # the rotation is a buffer: reset it to that of a short text
    return None if rehearsed.agree(given, expected) else f"{INPUTS_WRONG} in texts of more than {limit} tokens"


def _try_encoder(rehearsed: RehearsedStack, ids: Tensor) -> tuple[str | None, str | None]:
    """Test embeddings as real positions; return what is wrong with them, and with padding."""
    words, text = ids[:, :WORD_COUNT], ids[:, WORD_COUNT:]
    try:
        everything = rehearsed.run(ids, {})
        expected = everything[:, WORD_COUNT:]
        given = rehearsed.run(text, {}, InputTokens(rehearsed.stack.embed(words[0])))[:, -TEXT_LENGTH:]
        if not rehearsed.agree(given, expected) and not rehearsed.agree(given, expected, rehearsed.run(text, {})):
            return INPUTS_WRONG, None
        padded = torch.cat([ids, ids[:, :PADDING_LENGTH]], dim=1)
        mask = torch.arange(padded.shape[1], device=ids.device)[None] < ids.shape[1]
        shown = rehearsed.run(padded, {"attention_mask": mask.long()})[:, : ids.shape[1]]
    except Exception as error:
        return _in_words(error), None
    return None, None if rehearsed.agree(shown, everything) else "padding changes its states"


def _try_decoder(encoder: Stack, rehearsed: RehearsedStack, ids: Tensor) -> str | None:
    """Test keys and values of a decoder and its cross-attention, next to embeddings in place of encoded text."""
    words, text = ids[:, :WORD_COUNT], ids[:, WORD_COUNT:]
    try:
        with_words, without = _encoded(encoder, ids)
        expected = rehearsed.run(ids, with_words)[:, WORD_COUNT:]
        given = rehearsed.run(text, without, rehearsed.record(words, with_words))
        is_right = rehearsed.agree(given, expected) or rehearsed.agree(given, expected, rehearsed.run(text, without))
    except Exception as error:
        return _in_words(error)
    return None if is_right else KEYS_VALUES_WRONG


def _in_words(error: Exception) -> str:
    return f"a trial run failed: {described(error)}"
