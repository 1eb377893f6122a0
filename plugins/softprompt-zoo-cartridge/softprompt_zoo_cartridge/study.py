"""Self-study: the model asks and answers questions about a document, one chunk at a time."""

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import tqdm

import softprompt_zoo as zoo
from softprompt_zoo_cartridge.text import around_document, document_ids, encode, turn

BAR_AFTER = 1.0
"""Seconds after which a progress bar is shown. Our choice."""
SEED_PROMPTS: Mapping[str, tuple[str, ...]] = {
    "structuring": (
        "Write an instruction to put one part of the text above into a table or into JSON. Write only the instruction.",
        "Write an instruction to sort the facts of one section above under headings. Write only the instruction.",
    ),
    "summarization": (
        "Write a request to summarize one section of the text above, and name the section. Write only the request.",
        "Write a request for the main points of the text above on one of its topics. Write only the request.",
    ),
    "question": (
        "Ask one question about a fact in the text above, clear without the text at hand. Write only the question.",
        "Ask one question whose answer joins two places of the text above. Write only the question.",
    ),
    "use_case": ("Ask what somebody would ask who needs the text above for their work. Write only the question.",),
    "creative": ("Think of an unusual question or task that starts from the text above. Write only that.",),
    "generic": ("Write a first message to somebody who has read the text above. Write only the message.",),
}
"""Kind of question to the model's instructions; the kinds are the reference's, the wording is ours."""


def self_study(
    model: Any,
    tokenizer: Any,
    document: "str | Sequence[int] | Tensor",
    *,
    conversations: int,
    chunk_tokens: "int | tuple[int, int]" = (512, 4096),
    kinds: Sequence[str] = tuple(SEED_PROMPTS),
    temperature: float = 0.6,
    max_question_tokens: int = 128,
    max_answer_tokens: int = 256,
    answers_only: bool = False,
    batch_size: int = 8,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Let a model ask and answer questions about a document, as training data for a cartridge.

    A chunk of the document is the system message, and a seed prompt of a random kind asks for a question. The
    model writes the question, then answers it, and sees the chunk both times. The row is the text after the chunk.

    Args:
        model: A causal chat model with `generate`, prompted or not: its prompts are temporarily disabled.
        tokenizer: Its tokenizer; without a chat template, plain text is used.
        document: The text, or its token ids; it may be longer than the model's positions.
        conversations: Number of conversations. Those with an empty question or answer are left out.
        chunk_tokens: Length of a chunk, or its minimum and maximum, between which it is drawn.
        kinds: Kinds of questions, from `SEED_PROMPTS`.
        temperature: Of the question; 0 for greedy decoding. Answers are decoded greedily.
        max_question_tokens: Maximum length of a question.
        max_answer_tokens: Maximum length of an answer.
        answers_only: Whether the labels leave out the user's turn; the reference keeps it.
        batch_size: Number of conversations written at once.
        seed: For chunks, kinds and questions; torch's global generator is unaffected.

    Yields:
        Rows with `input_ids` and `labels` (lists), and `kind`, `question`, `answer`, `chunk` (texts).

    Raises:
        TypeError: If an option has a wrong type.
        ValueError: If an option is not allowed, or a chunk and its question do not fit into the model's positions.
    """
    sizes = _sizes(chunk_tokens)
    numbers = {"conversations": conversations, "batch_size": batch_size}
    lengths = {"max_question_tokens": max_question_tokens, "max_answer_tokens": max_answer_tokens}
    for option, value in (numbers | lengths).items():
        zoo.check_positive_integer(option, value)
    zoo.check_not_negative("temperature", temperature)
    if isinstance(kinds, str) or not kinds:
        raise ValueError(f"kinds is {kinds!r}; expected a list with some of {', '.join(map(repr, SEED_PROMPTS))}")
    for kind in kinds:
        zoo.check_choice("kinds", kind, tuple(SEED_PROMPTS))
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids = document_ids(document, tokenizer, chat=False, vocab_size=vocab_size).tolist()
    before, behind = around_document(tokenizer)
    return _converse(
        _Writer(model, tokenizer, answers_only),
        _draws(tokenizer, ids, sizes, kinds, conversations, seed),
        lambda chunk, said: before + chunk + behind + turn(tokenizer, said),
        (max_question_tokens, temperature),
        (max_answer_tokens, 0.0),
        batch_size,
    )


def _sizes(chunk_tokens: Any) -> tuple[int, int]:
    """Return the minimum and maximum length of a chunk."""
    sizes = chunk_tokens if isinstance(chunk_tokens, tuple | list) else (chunk_tokens, chunk_tokens)
    if len(sizes) != 2:
        raise ValueError(f"chunk_tokens is {chunk_tokens!r}; expected a number, or a minimum and a maximum")
    for size in sizes:
        zoo.check_positive_integer("chunk_tokens", size)
    if sizes[0] > sizes[1]:
        raise ValueError(f"chunk_tokens is {chunk_tokens!r}; expected a minimum and a maximum, in this order")
    return sizes[0], sizes[1]


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int = 0) -> dict[str, Tensor]:
    """Pad rows on the right, for a `DataLoader` or a `Trainer`.

    Args:
        rows: From `self_study`.
        pad_token_id: The id that pads `input_ids`; it is masked.

    Returns:
        `input_ids`, `attention_mask` and `labels`, `(rows, length)`.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: Sequence[Sequence[int]], filler: int) -> Tensor:
        return torch.tensor([[*value, *[filler] * (longest - len(value))] for value in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad_token_id),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], -100),
    }


class _Writer:
    """A model that writes conversations and turns them into rows."""

    def __init__(self, model: Any, tokenizer: Any, answers_only: bool) -> None:
        self.model, self.tokenizer, self.answers_only = model, tokenizer, answers_only
        configured = getattr(model.generation_config, "eos_token_id", None)
        ends = configured if isinstance(configured, list) else [configured]
        self.ends = {end for end in (*ends, tokenizer.eos_token_id) if end is not None}
        padding = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.padding: int = next(token for token in padding if token is not None)

    def write(self, texts: list[str], max_new_tokens: int, temperature: float) -> list[list[int]]:
        """Continue each text; return the new ids, including the end token if there is one."""
        prompts = [encode(self.tokenizer, text) for text in texts]
        longest = max(map(len, prompts))
        bound = getattr(self.model.config, "max_position_embeddings", None)
        if bound is not None and longest + max_new_tokens > bound:
            raise ValueError(
                f"a chunk and its question have {longest} tokens, and {max_new_tokens} more may be written; the model "
                f"has {bound} positions; choose a smaller chunk_tokens"
            )
        device = self.model.get_input_embeddings().weight.device
        padded = [[self.padding] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        if temperature > 0:
            how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        with _undisturbed(self.model):
            output = self.model.generate(
                torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=max_new_tokens,
                num_beams=1,
                pad_token_id=self.padding,
                **how,
            )
        return [self._until_end(new) for new in output[:, longest:].tolist()]

    def text(self, ids: list[int]) -> str:
        """Decode ids to text."""
        decoded: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return decoded.strip()

    def row(self, question: str, answer: list[int]) -> dict[str, Any]:
        """Return a training row: the user's turn and the answer, as they follow the document."""
        asked = encode(self.tokenizer, turn(self.tokenizer, question))
        labels = [-100] * len(asked) if self.answers_only else asked
        return {"input_ids": asked + answer, "labels": labels + answer}

    def _until_end(self, ids: list[int]) -> list[int]:
        end = next((index + 1 for index, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[:end]


def _draws(
    tokenizer: Any, ids: list[int], sizes: tuple[int, ...], kinds: Sequence[str], count: int, seed: int
) -> list[tuple[str, str, str, int]]:
    """Draw the kind, seed prompt, chunk and torch seed of each conversation."""
    draw = random.Random(seed)
    drawn = []
    for _ in range(count):
        size = min(draw.randint(*sizes), len(ids))
        start = draw.randint(0, len(ids) - size)
        kind = draw.choice(list(kinds))
        chunk = tokenizer.decode(ids[start : start + size])
        drawn.append((kind, draw.choice(SEED_PROMPTS[kind]), chunk, draw.getrandbits(32)))
    return drawn


def _converse(
    writer: _Writer,
    draws: list[tuple[str, str, str, int]],
    prompt: Any,
    asking: tuple[int, float],
    answering: tuple[int, float],
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    starts = range(0, len(draws), batch_size)
    for start in tqdm(starts, desc="writing conversations", unit="batch", leave=False, delay=BAR_AFTER):
        batch = draws[start : start + batch_size]
        chunks = [chunk for _, _, chunk, _ in batch]
        with _own_random_numbers(writer.model, batch[0][3]):
            asked = writer.write([prompt(chunk, seed_prompt) for _, seed_prompt, chunk, _ in batch], *asking)
        questions = [writer.text(ids) for ids in asked]
        answers = writer.write([prompt(*pair) for pair in zip(chunks, questions, strict=True)], *answering)
        for (kind, _, chunk, _), question, ids in zip(batch, questions, answers, strict=True):
            answer = writer.text(ids)
            if question and answer:
                yield {
                    **writer.row(question, ids),
                    "kind": kind,
                    "question": question,
                    "answer": answer,
                    "chunk": chunk,
                }


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Temporarily disable prompts and switch to eval mode."""
    was_training = model.training
    model.eval()
    try:
        with model.prompts.disabled() if hasattr(model, "prompts") else contextlib.nullcontext():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _own_random_numbers(model: Any, seed: int) -> Iterator[None]:
    device = model.get_input_embeddings().weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
