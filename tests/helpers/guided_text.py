"""Texts generated under guidance, and the same scores computed from forward passes."""

import torch

from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.real_tokens import make_of_real_tokens
from softprompt_zoo.testing.subject import Subject, random_text

SCALE = 3.0
NEW_TOKENS = 4
TEXT = random_text(7, 5)


def base_of(architecture):
    return Subject(architecture, tiny_model(architecture))


def made_of_words(architecture, method):
    """Return a model whose prompt is made of real words, the ids of those words, and the base model."""
    subject, base = Subject.prompted(architecture, method, {"num_virtual_tokens": 4}), base_of(architecture)
    return subject, make_of_real_tokens(subject, base, TEXT).ids, base


def guided(subject, ids, **options):
    """Generate greedily under guidance; return the new tokens and their scores, `(rows, NEW_TOKENS, vocab)`."""
    shown = {"return_dict_in_generate": True, "output_scores": True}
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "guidance_scale": SCALE, **shown, **options}
    written = subject.generate(ids, **options)
    return written.sequences[:, -NEW_TOKENS:], torch.stack(written.scores, dim=1)


def check_scores(new, scores, conditional, unconditional):
    """Compare scores with `SCALE * (conditional - unconditional) + unconditional` from two forward passes per token.

    Args:
        new: The generated tokens, `(rows, NEW_TOKENS)`.
        scores: Their scores, `(rows, NEW_TOKENS, vocab)`.
        conditional: Maps the tokens generated so far to logits, `(rows, length, vocab)`.
        unconditional: Does the same without the prompt.
    """
    for step in range(NEW_TOKENS):
        seen, plain = (run(new[:, :step])[:, -1].log_softmax(-1) for run in (conditional, unconditional))
        assert_equal(scores[:, step], SCALE * (seen - plain) + plain, f"scores of token {step}")
