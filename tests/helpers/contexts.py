"""Models with a context-aware prompt, and batches for them."""

import peft
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.checks import without_dropout
from softprompt_zoo.testing.subject import Subject, pad, random_text

CAUSAL = ["gpt2", "llama", "qwen3", "gemma3", "mistral", "gpt_neox"]
EXAMPLES = [("w11 w12", "w21"), ("w13", "w22 w23")]
TEMPLATE = "w5 {input} w6 {target} w7"
IDS = [5, 11, 12, 6, 21, 7, 5, 13, 6, 22, 23, 7]
TYPES = [1, 2, 2, 3, 4, 0, 5, 6, 7, 8, 8, 0]
OPTIONS = {"examples": EXAMPLES, "template": TEMPLATE, "tokenizer": tiny_tokenizer()}
HIDDEN = 32
SCALE = (HIDDEN / 2048) ** 0.5
TEXT = random_text(7, 3)


def balls(radius=0.2, format_radius=0.1):
    by_kind = {0: 0.0, 1: format_radius, 2: radius, 3: format_radius}
    return torch.tensor([by_kind[kind % 4] for kind in TYPES]) * SCALE


def prompted(architecture="llama", **options):
    """Build a prompted model in training mode, without dropout, whose prompt's offsets fill their balls."""
    model = zoo.get_method("cpt")(tiny_model(architecture), **{**OPTIONS, **options}).train()
    without_dropout(Subject(architecture, model))
    learned = model.prompts["default"].learned
    with torch.no_grad():
        learned.offsets.copy_(torch.randn(learned.offsets.shape, generator=torch.Generator().manual_seed(5)))
    return model


def batch(lengths=(7, 4), side="right", first=()):
    """Build a batch in which the last two tokens of each row are labeled, and also the first in the rows `first`."""
    texts = [random_text(length, seed) for seed, length in enumerate(lengths)]
    ids, mask = pad(texts, side)
    labels = torch.full_like(ids, -100)
    for row in range(len(texts)):
        places = mask[row].nonzero()[:, 0]
        chosen = [*places[-2:], *([places[0]] if row in first else [])]
        labels[row, chosen] = ids[row, chosen]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def with_peft(architecture, **options):
    """Put PEFT's own method on the same model, with a context made by hand; return it and its prompt encoder."""
    config = peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=IDS, cpt_mask=[1] * len(IDS), cpt_tokens_type_mask=TYPES, **options
    )
    wrapped = peft.get_peft_model(tiny_model(architecture), config)
    without_dropout(Subject(architecture, wrapped))
    return wrapped, next(iter(wrapped.prompt_encoder.values()))
