"""Tiny models with a multitask prompt, for the tests of multitask prompt tuning."""

import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.checks import without_dropout
from softprompt_zoo.testing.subject import Subject, random_text

TASKS, TOKENS, HIDDEN = 3, 4, 32
TEXT = random_text(7, 1)
TEXTS = [random_text(length, seed) for seed, length in enumerate((6, 4, 7))]
EVERY_TASK = torch.arange(TASKS)


def prompted(architecture="llama", disturbed=True, **options):
    torch.manual_seed(0)
    options = {"num_virtual_tokens": TOKENS, "num_tasks": TASKS, **options}
    model = zoo.get_method("mpt")(tiny_model(architecture), **options)
    subject = Subject(architecture, model)
    if disturbed:
        subject.disturb("default")
    return subject


def learned(subject, name="default"):
    return subject.model.prompts[name].learned


def tokens_of(subject, name="default"):
    """Compute the tokens of every task from the learned factors."""
    own = learned(subject, name)
    return (own.shared * torch.einsum("tkr,trd->tkd", own.cols, own.rows)).detach()


def plain(architecture, embeddings):
    """Build a model with a plain prompt of these embeddings."""
    model = zoo.get_method("prompt")(tiny_model(architecture), num_virtual_tokens=len(embeddings))
    with torch.no_grad():
        model.prompts["default"].learned.embeddings.copy_(embeddings)
    return Subject(architecture, model)


def training(subject):
    subject.model.train()
    without_dropout(subject)
    return subject
