"""The cartridge's experiment: a text about invented museums, conversations about it, and what a cartridge retains.

A model this small writes nothing sensible if it is merely told to ask questions about a text. It does if it is shown a
few questions and answers about other museums first: every conversation here continues such examples and a sentence.
"""

import importlib
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import softprompt_zoo as zoo
from common import Trainer, target_losses
from runner import Result
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.examples import Example, demo_data, read_examples
from softprompt_zoo.training.data import IGNORED, Row
from softprompt_zoo.training.evaluation import generate

METHOD = "cartridge"
ASK = {
    "city": (
        ("Where is {name}?", "{name} is in {value}."),
        ("In which city do I find {name}?", "You find {name} in {value}."),
        ("Which city has {name}?", "The city of {name} is {value}."),
    ),
    "founded": (
        ("Since when has there been {name}?", "There has been {name} since {value}."),
        ("When was {name} founded?", "{name} was founded in {value}."),
        ("How old is {name}?", "{name} is from {value}."),
    ),
    "building": (
        ("What building is {name} in?", "{name} is in the old {value}."),
        ("What was the building of {name} before?", "The building of {name} was a {value}."),
        ("Which old building holds {name}?", "The old {value} holds {name}."),
    ),
    "entry": (
        ("What does {name} cost?", "{name} costs {value}."),
        ("How much do I pay in {name}?", "You pay {value} in {name}."),
        ("What is the price of entry to {name}?", "Entry to {name} is {value}."),
    ),
    "closed": (
        ("On which day is {name} closed?", "{name} is closed on {value}."),
        ("When should I not come to {name}?", "Do not come to {name} on a {value}."),
        ("Which day is wrong for {name}?", "The wrong day for {name} is {value}."),
    ),
    "highlight": (
        ("What is there to find in {name}?", "In {name} you find the {value}."),
        ("What should I see in {name}?", "See the {value} in {name}."),
        ("What is the best thing in {name}?", "The best thing in {name} is the {value}."),
    ),
}
"""For each field, the wordings of questions and answers that the model is shown; the last wording is held out."""
SHOTS = 3
STUDY = {"fields": list(ASK), "shots": SHOTS, "max_new_tokens": 40}
TEACHER_BATCH = 4
"""Number of rows that are measured at once after the whole text."""


def plugin() -> Any:
    """Import the method's package, which contains the self-study."""
    return importlib.import_module(zoo.get_method(METHOD).config_class.__module__)


def museums(tokenizer: Any, tokens: int) -> tuple[list[Example], list[Example]]:
    """Return distinct museums whose sentences make a text of `tokens` tokens or a few less, and the other museums."""
    different = {_fields(example)["name"]: example for example in reversed(read_examples(demo_data() / "train.jsonl"))}
    examples = list(reversed(different.values()))
    count = 1
    while count < len(examples) and len(_ids(tokenizer, _text(examples[: count + 1]))) <= tokens:
        count += 1
    return examples[:count], examples[count:]


def document(tokenizer: Any, tokens: int) -> str:
    """Return the text about the museums."""
    return _text(museums(tokenizer, tokens)[0])


def make_study(model: Any, tokenizer: Any, tokens: int, conversations: int, questions: int) -> Result:
    """Let the model write conversations to train on and held-out ones, and measure it on the latter.

    Args:
        model: The language model, without prompts.
        tokenizer: Its tokenizer.
        tokens: Length of the text.
        conversations: Number of conversations to train on.
        questions: Number of held-out questions, which ask for facts that may be in conversations, in other words.

    Returns:
        The rows of both, and for each held-out row the model's loss on the answer without and with the text.

    Raises:
        ValueError: If the model wrote no conversations or no held-out questions that can be parsed.
    """
    shown, others = museums(tokenizer, tokens)
    text = _text(shown)
    draw = random.Random(0)
    facts = [(example, field) for example in shown for field in ASK if field in _fields(example)]
    trained = [(*fact, wording) for fact in facts for wording in range(len(ASK["city"]) - 1)]
    draw.shuffle(trained)
    draw.shuffle(facts)
    held_out = [(*fact, -1) for fact in facts]
    train = _conversations(model, tokenizer, others, trained[:conversations], "train")
    known = {row["question"] for row in train}
    asked = _conversations(model, tokenizer, others, held_out[:questions], "held out")
    asked = [row for row in asked if row["question"] not in known]
    if not train or not asked:
        raise ValueError(f"the model wrote {len(train)} conversations and {len(asked)} questions that can be read")
    rows = [_row(row) for row in asked]
    before = _behind_system_message(tokenizer, text)
    pad_id = tokenizer.pad_token_id
    print("  measuring the answers without and with the text", flush=True)
    with_text = [Row(before + row.text, row.target) for row in rows]
    return {
        "text_tokens": len(_ids(tokenizer, text)),
        "train": train,
        "held_out": asked,
        "without_text_loss": target_losses(model, rows, pad_id),
        "with_text_loss": target_losses(model, with_text, pad_id, TEACHER_BATCH),
    }


def _conversations(
    model: Any, tokenizer: Any, others: Sequence[Example], wanted: Sequence[tuple[Example, str, int]], name: str
) -> list[dict[str, Any]]:
    """Write conversations about fields of museums; those that cannot be parsed are left out."""
    print(f"  writing {len(wanted)} conversations, {name}", flush=True)
    prompts = [_prompt(others, *one) for one in wanted]
    rows = []
    for written in write_answers(model, tokenizer, prompts):
        question, found, answer = written.partition("\nAnswer:")
        question, answer = question.strip(), answer.strip().split("\n")[0]
        if found and question and answer and "\n" not in question:
            asked = _ids(tokenizer, plugin().turn(tokenizer, question))
            ids = [*_ids(tokenizer, answer), tokenizer.eos_token_id]
            labels = [IGNORED] * len(asked) + ids
            rows.append({"question": question, "answer": answer, "input_ids": asked + ids, "labels": labels})
    return rows


def write_answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Continue texts up to the end of a paragraph."""
    texts = [_ids(tokenizer, prompt) for prompt in prompts]
    written = generate(model, tokenizer, texts, STUDY["max_new_tokens"])  # type: ignore[arg-type]
    return [text.split("\n\n")[0] for text in written]


def _prompt(others: Sequence[Example], example: Example, field: str, wording: int) -> str:
    question, answer = ASK[field][wording]
    shots = [other for other in others if field in _fields(other)][:SHOTS]
    parts = []
    for shot in shots:
        values = {"name": _fields(shot)["name"], "value": _fields(shot)[field]}
        asked, answered = question.format(**values), answer.format(**values)
        parts.append(f"Text: {shot.target}\nQuestion: {asked}\nAnswer: {answered}\n\n")
    return "".join(parts) + f"Text: {example.target}\nQuestion:"


def _fields(example: Example) -> dict[str, str]:
    pairs = (part.partition(" : ") for part in example.input.split(" | "))
    return {name: value for name, _, value in pairs}


def _text(examples: Sequence[Example]) -> str:
    return "\n".join(str(example.target) for example in examples)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def train_on_study(
    model: Any, tokenizer: Any, study: Mapping[str, Any], tokens: int, share: int, recipe: Recipe, seed: int
) -> Result:
    """Train a cartridge and measure it on the held-out answers.

    Args:
        model: The language model, without prompts.
        tokenizer: Its tokenizer.
        study: From `make_study`.
        tokens: Requested length of the text.
        share: Number of text tokens for each token of the cartridge.
        recipe: The recipe of the training.
        seed: The seed of the order of the conversations.

    Returns:
        The loss of each held-out answer, before training (`cut_loss`) and after (`loss`), and how the training went.
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


def match_study(model: Any, tokenizer: Any, study: Mapping[str, Any], tokens: int, share: int, scores: bool) -> Result:
    """Start a cartridge by attention matching and measure it on the held-out answers, without a step of training.

    Args:
        model: The language model, without prompts.
        tokenizer: Its tokenizer.
        study: From `make_study`; its conversations are not used.
        tokens: Requested length of the text.
        share: Number of text tokens for each token of the cartridge.
        scores: Whether the cartridge's tokens have scores.

    Returns:
        The loss of each held-out answer, and the elapsed and processor seconds that matching took.
    """
    chosen = {"document": document(tokenizer, tokens), "tokenizer": tokenizer, "chat": bool(tokenizer.chat_template)}
    count = study["text_tokens"] // share
    model = zoo.get_method(METHOD)(model, num_virtual_tokens=count, scores=scores, **chosen)
    began, began_cpu = time.perf_counter(), time.process_time()
    plugin().match_attention(model)
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    rows = [_row(row) for row in study["held_out"]]
    return {"loss": target_losses(model, rows, tokenizer.pad_token_id), "tokens": count, **seconds}


def _row(row: Mapping[str, Any]) -> Row:
    asked = sum(label == IGNORED for label in row["labels"])
    return Row(row["input_ids"][:asked], row["input_ids"][asked:])


def _behind_system_message(tokenizer: Any, text: str) -> list[int]:
    """Return the ids in front of the user's turn when the model sees the text."""
    shown = f"{text}\n\n"
    if tokenizer.chat_template:
        shown = tokenizer.apply_chat_template([{"role": "system", "content": text}], tokenize=False)
    return _ids(tokenizer, shown)
