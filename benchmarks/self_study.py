"""The cartridge's experiment: a text about museums that nobody can know, conversations on it, and what is left."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import softprompt_zoo as zoo
from common import Trainer, target_losses
from runner import Result
from softprompt_zoo.config import Recipe
from softprompt_zoo.examples import demo_data, read_examples
from softprompt_zoo.training.data import IGNORED, Row

METHOD = "cartridge"
STUDY = {
    "chunk_tokens": 256,
    "max_question_tokens": 40,
    "max_answer_tokens": 60,
    "held_out_kinds": ["question"],
}
"""How the model questions itself: on chunks of about six museums."""
TEACHER_BATCH = 4
"""Rows that are measured at once behind the whole text."""


def plugin() -> Any:
    """Import the package of the method, which brings the self-study."""
    return importlib.import_module(zoo.get_method(METHOD).config_class.__module__)


def document(tokenizer: Any, tokens: int) -> str:
    """Join the sentences of different museums to a text of so many tokens, or a few less."""
    text, names = "", set[str]()
    for example in read_examples(demo_data() / "train.jsonl"):
        name = example.input.split("|")[0]
        longer = f"{text}{example.target}\n"
        if name in names:
            continue
        if text and len(tokenizer(longer, add_special_tokens=False)["input_ids"]) > tokens:
            break
        text = longer
        names.add(name)
    return text.strip()


def make_study(model: Any, tokenizer: Any, tokens: int, conversations: int, questions: int) -> Result:
    """Let the model write conversations to train on and others to be asked about, and measure it on those.

    Args:
        model: The language model, without prompts.
        tokenizer: Its tokenizer.
        tokens: Length of the text.
        conversations: To train on.
        questions: Held out.

    Returns:
        The rows of both, and by held-out row the model's loss on the answer without and with the text.
    """
    cartridge = plugin()
    text = document(tokenizer, tokens)
    print(f"  writing {conversations} conversations and {questions} questions on {tokens} tokens", flush=True)
    lengths = {name: STUDY[name] for name in ("chunk_tokens", "max_question_tokens", "max_answer_tokens")}
    train = [
        _kept(row)
        for row in cartridge.self_study(model, tokenizer, text, conversations=conversations, seed=0, **lengths)
    ]
    known = {row["question"] for row in train}
    asked = cartridge.self_study(
        model,
        tokenizer,
        text,
        conversations=2 * questions,  # some are empty, or were asked in training
        kinds=STUDY["held_out_kinds"],
        answers_only=True,
        seed=1,
        **lengths,
    )
    held_out = [_kept(row) for row in asked if row["question"] not in known]
    held_out = list({row["question"]: row for row in held_out}.values())[:questions]
    rows = [_row(row) for row in held_out]
    before = _behind_system_message(tokenizer, text)
    pad_id = tokenizer.pad_token_id
    return {
        "text_tokens": len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        "train": train,
        "held_out": held_out,
        "without_text_loss": target_losses(model, rows, pad_id),
        "with_text_loss": target_losses(
            model, [Row(before + row.text, row.target) for row in rows], pad_id, TEACHER_BATCH
        ),
    }


def train_on_study(
    model: Any, tokenizer: Any, study: Mapping[str, Any], tokens: int, share: int, recipe: Recipe, seed: int
) -> Result:
    """Train a cartridge and measure it on the held-out answers.

    Args:
        model: The language model, without prompts.
        tokenizer: Its tokenizer.
        study: From `make_study`.
        tokens: Length asked for the text.
        share: The cartridge has a token for so many of the text's.
        recipe: How to train.
        seed: Of the order of the conversations.

    Returns:
        By held-out row the loss of the answer; before training (`cut`) and after.
    """
    cartridge = plugin()
    torch.manual_seed(seed)
    options = {"document": document(tokenizer, tokens), "tokenizer": tokenizer, "chat": bool(tokenizer.chat_template)}
    count = study["text_tokens"] // share
    model = zoo.get_method(METHOD)(model, num_virtual_tokens=count, **options)
    rows = [_row(row) for row in study["held_out"]]
    cut = target_losses(model, rows, tokenizer.pad_token_id)
    trainer = Trainer(model, recipe)
    history = trainer.fit(
        study["train"], lambda chosen: cartridge.collate(chosen, tokenizer.pad_token_id), seed, f"{count} tokens"
    )
    losses = target_losses(model, rows, tokenizer.pad_token_id)
    return {"loss": losses, "cut_loss": cut, "tokens": count, "trained": trainer.num_trained, **history}


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("kind", "question", "answer", "input_ids", "labels")}


def _row(row: Mapping[str, Any]) -> Row:
    asked = sum(label == IGNORED for label in row["labels"])
    return Row(row["input_ids"][:asked], row["input_ids"][asked:])


def _behind_system_message(tokenizer: Any, text: str) -> list[int]:
    """Return the ids that stand in front of the user's turn where the model sees the text."""
    shown = f"{text}\n\n"
    if tokenizer.chat_template:
        shown = tokenizer.apply_chat_template([{"role": "system", "content": text}], tokenize=False)
    ids: Sequence[int] = tokenizer(shown, add_special_tokens=False)["input_ids"]
    return list(ids)
