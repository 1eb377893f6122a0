"""`assistant_early_exit`: the first layers draft, all layers check, and the text is the same as without a draft."""

import contextlib

import pytest
import torch
from helpers.products import in_turns

from softprompt_zoo.model import generation, resolve
from softprompt_zoo.sites import shared_pass
from softprompt_zoo.sites.selection import Part
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import Subject, random_text

TEXT = random_text(7, 5)
METHODS = ["prompt_tuning", "prefix_tuning", "p_tuning"]
ARCHITECTURES = ["llama", "qwen3", "gemma3"]


def written(subject, **options):
    return subject.generate(TEXT, max_new_tokens=5, do_sample=False, **options)


def needs_early_exit(architecture):
    """Skip if the base model itself fails, as it does with windows in transformers 5.15."""
    try:
        written(Subject(architecture, tiny_model(architecture)), assistant_early_exit=1)
    except (RuntimeError, TypeError) as error:
        pytest.skip(f"the base model fails: {error}")


def check_early_exit(architecture, method, **options):
    """Check early exit in the model's first call, when nothing computed by all layers has been kept yet."""
    subject = Subject.prompted(architecture, method, {"num_virtual_tokens": 4})
    expected = written(Subject.prompted(architecture, method, {"num_virtual_tokens": 4}), **options)
    layers = subject.model.config.num_hidden_layers
    assert torch.equal(written(subject, assistant_early_exit=1, **options), expected)
    assert subject.model.config.num_hidden_layers == layers
    assert torch.equal(written(subject, **options), expected)


@in_turns(architecture=ARCHITECTURES, method=METHODS)
def test_the_text_is_that_of_all_layers(architecture, method):
    needs_early_exit(architecture)
    check_early_exit(architecture, method)


def test_gated_tokens(llama_adapter):
    check_early_exit("llama", llama_adapter)


def test_the_check_notices_a_pass_through_the_first_layers(monkeypatch):
    monkeypatch.setattr(shared_pass, "_with_all_layers", contextlib.nullcontext)
    with pytest.raises(KeyError, match="layer=1"):
        check_early_exit("llama", "prompt_tuning")


def drafts_seen(monkeypatch, subject, **options):
    """Return the prompts of the rows in each pass of the first layers over the text."""
    seen = []
    run = resolve.resolve

    def seeing(*args):
        call = run(*args)
        if subject.model.config.num_hidden_layers == 1:
            seen.append(call.selection.combinations)
        return call

    monkeypatch.setattr(resolve, "resolve", seeing)
    written(subject, assistant_early_exit=1, **options)
    return set(seen)


def test_the_draft_sees_the_prompts_of_the_call(monkeypatch):
    subject = Subject.prompted("llama", "prompt_tuning", {"num_virtual_tokens": 4})
    subject.model.prompts.add("other", "prefix_tuning", num_virtual_tokens=2)
    assert drafts_seen(monkeypatch, subject, prompts=["other"]) == {((Part("other"),),)}


def test_the_draft_sees_the_task_of_the_call(monkeypatch):
    options = {"num_virtual_tokens": 3, "num_tasks": 2}
    subject = Subject.prompted("llama", "multitask_prompt_tuning", options)
    assert drafts_seen(monkeypatch, subject, task_ids=[1]) == {((Part("default", 1),),)}


def check_failed_draft():
    subject = Subject.prompted("llama", "prompt_tuning", {"num_virtual_tokens": 4})
    expected, layers = written(subject), subject.model.config.num_hidden_layers

    def fail(module, args):
        if module.config.num_hidden_layers < layers:
            raise RuntimeError("no memory")

    handle = subject.model.base_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        written(subject, assistant_early_exit=1)
    handle.remove()
    assert subject.model.config.num_hidden_layers == layers
    assert torch.equal(written(subject), expected)


def test_a_draft_that_fails_leaves_all_layers():
    check_failed_draft()


def test_the_check_notices_a_model_that_stays_shortened(monkeypatch):
    monkeypatch.setattr(generation, "_get_candidates", lambda get, model, *args, **kwargs: get(*args, **kwargs))
    with pytest.raises(AssertionError):
        check_failed_draft()


def test_slots_in_the_text():
    subject = Subject.prompted("llama", "prompt_tuning", {"num_virtual_tokens": 4})
    slots = torch.full_like(TEXT, -1)
    slots[0, 2] = 1
    expected = written(subject, soft_slots=slots)
    assert torch.equal(written(subject, soft_slots=slots, assistant_early_exit=1), expected)
