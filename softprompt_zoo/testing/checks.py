"""Helpers for checking the promises: texts, generation, gradients, and known faults of base models."""

from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt_zoo.sites.positions import given_cache
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.models import tiny_model
from softprompt_zoo.testing.subject import LENGTHS, Subject, pad, random_text

NEW_TOKENS = 6
TEXTS = [random_text(length, seed) for seed, length in enumerate(LENGTHS)]

COUNT_PADDING = ("albert", "bart", "bert", "distilbert", "electra", "led", "marian", "mbart", "mpnet", "pegasus")
BASE_DEPENDS_ON_PADDING = {(architecture, "left") for architecture in COUNT_PADDING}
"""Base models that count positions over left padding; the results are their own fault."""

BASE_LACKS_STATIC_CACHE = {"gpt_neo", "led"}
"""Base models whose results differ with a static cache; gpt_neo's windows count its free columns."""

BASE_GRADIENTS_ARE_NAN = {"led"}
"""Base models whose own gradients are NaN next to padding, in double precision."""


def needs_generation(subject: Subject) -> None:
    """Skip if the model does not generate."""
    if not subject.can_generate:
        pytest.skip("an encoder does not generate")


def needs_assisted_decoding(base: Subject) -> None:
    """Skip if the base model itself fails with assisted decoding: with windows in transformers 5.15."""
    try:
        greedy(base, TEXTS[0], assistant_model=tiny_model(base.architecture, seed=3))
    except RuntimeError as error:
        pytest.skip(f"the base model fails: {error}")


def without_dropout(subject: Subject) -> None:
    """Turn the base model's dropout off, so that results in training mode are reproducible."""
    for module in subject.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "attn_pdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def turn_checkpointing_on(model: Any, use_reentrant: bool) -> None:
    """Turn gradient checkpointing on, under its name in the installed transformers."""
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    getattr(model, next(name for name in names if hasattr(model, name)))({"use_reentrant": use_reentrant})


def greedy(subject: Subject, ids: Tensor, mask: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Generate greedily; return the text, and the logits of each new token `(rows, NEW_TOKENS, vocab)`."""
    shown = {"return_dict_in_generate": True, "output_logits": True}
    output = subject.generate(ids, mask, **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}, **shown)
    return output.sequences, torch.stack(output.logits, dim=1)


def by_repeated_forward(subject: Subject, ids: Tensor, mask: Tensor, text: Tensor) -> list[Tensor]:
    """Return the logits of each new token of `text`, each from one forward over everything before it."""
    logits = []
    for step in range(NEW_TOKENS):
        before = text[:, : step - NEW_TOKENS]
        if subject.is_causal:
            seen = torch.cat([mask, mask.new_ones(mask.shape[0], step)], dim=1)
            begun = torch.cat([mask, mask.new_zeros(mask.shape[0], step)], dim=1)
            logits.append(subject.logits(before, seen, **subject.text_mask(begun))[:, -1])
        else:
            logits.append(subject.logits(ids, mask, decoder_input_ids=before)[:, -1])
    return logits


def check_step_by_step(subject: Subject) -> None:
    """Run a text token by token on one cache; compare with one forward, whose text is the first token."""
    text = TEXTS[0]
    begun = torch.zeros_like(text)
    begun[:, 0] = 1
    full = subject.logits(text, **(subject.text_mask(begun) if subject.is_causal else {}))
    if not subject.is_causal:
        text = subject.inputs(text)["decoder_input_ids"]
    cache = None
    for step in range(text.shape[1]):
        token = text[:, step : step + 1]
        more: dict[str, Any] = {subject.cache_argument: cache, "use_cache": True, **subject.tasks(TEXTS[0])}
        if not subject.is_causal:
            more["decoder_input_ids"] = token
        output = subject.run(token if subject.is_causal else TEXTS[0], **more)
        cache = given_cache(output)
        assert_equal(output.logits[:, 0], full[:, step], f"step {step}")


def check_gradients_of_prompt_alone(subject: Subject) -> None:
    """Fail unless all parameters of the prompts, except those that never change, have gradients, and no others do."""
    for name, parameter in subject.model.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert has_gradient == (subject.is_prompt_parameter(name) and parameter.requires_grad), name
        assert has_gradient or parameter.grad is None, name


def check_same_kind(model: Any, base: Any) -> None:
    """Fail unless a model has the class, parameter names, their `requires_grad` and the attention of another model.

    Args:
        model: The model.
        base: The other model.
    """
    assert type(model) is type(base)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert model.config._attn_implementation == base.config._attn_implementation
    assert _required_gradients(model) == _required_gradients(base)


def _required_gradients(model: Any) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def check_row_gradients(subject: Subject, rows: list[Any]) -> None:
    """Compare the gradients of a padded batch with those of its rows, one after the other.

    Args:
        subject: A prompted model.
        rows: A prompt's name for each of `TEXTS`, or `None`.
    """
    if subject.architecture in BASE_GRADIENTS_ARE_NAN:
        return
    ids, mask = pad(TEXTS, "right")
    weights = torch.arange(1, len(rows) + 1)
    subject.model.double()  # sums of large gradients over many rows would differ by rounding

    def total(logits: Tensor, keep: Tensor, weight: Tensor) -> Tensor:
        keep = torch.ones_like(logits[..., 0]) if subject.is_encoder_decoder else keep
        return (weight * (logits.pow(2).sum(-1) * keep).sum(-1)).sum()

    total(subject.model(**subject.inputs(ids, mask, prompts=rows)).logits, mask, weights).backward()
    batch = subject.gradients()
    for row, (name, text) in enumerate(zip(rows, TEXTS, strict=True)):
        if name is not None:
            logits = subject.model(**subject.inputs(text, prompts=[name])).logits
            total(logits, torch.ones_like(text), weights[row]).backward()
    alone = subject.gradients()
    assert batch.keys() == alone.keys()
    for name in batch:
        assert_equal(batch[name], alone[name], f"gradient of {name}")


def shapes(output: Any) -> dict[str, Any]:
    """Return the shapes in a model's output, by name."""
    return {
        name: [tuple(part.shape) for part in value] if isinstance(value, tuple) else tuple(value.shape)
        for name, value in output.items()
        if isinstance(value, Tensor | tuple)
    }
