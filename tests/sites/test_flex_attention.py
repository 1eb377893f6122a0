"""Prompts under flex attention, whose masks are functions; without its compiler, which takes minutes on a CPU."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.flex import FLEX, uncompiled_flex
from softprompt_zoo.testing.real_tokens import expected_logits, make_of_real_tokens
from softprompt_zoo.testing.subject import LENGTHS, Subject, pad, random_text

TEXTS = [random_text(length, seed) for seed, length in enumerate(LENGTHS)]
OPTIONS = {"num_virtual_tokens": 5}
METHODS = ["prompt_tuning", "prefix_tuning"]


@pytest.fixture
def uncompiled():
    with uncompiled_flex():
        yield


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_real_tokens(uncompiled, architecture, method):
    """The text is longer than gemma3's window, out of which virtual tokens must slide."""
    subject = Subject.prompted(architecture, method, OPTIONS, implementation=FLEX)
    base = Subject(architecture, tiny_model(architecture, implementation="eager"))
    tokens = make_of_real_tokens(subject, base, TEXTS[0])
    assert subject.model.config._attn_implementation.endswith(FLEX)
    assert_equal(subject.logits(TEXTS[0]), expected_logits(base, tokens, TEXTS[0]), "logits")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("architecture", "side"),
    [("llama", "left"), ("gemma3", "left"), ("gemma3", "right"), ("bert", "left"), ("bart", "right")],
)
def test_rows_with_prompts_of_their_own(uncompiled, architecture, side, method):
    subjects = []
    for implementation in ("sdpa", FLEX):
        subjects.append(Subject.prompted(architecture, method, OPTIONS, implementation=implementation))
        torch.manual_seed(0)
        subjects[-1].model.prompts.add("longer", "prefix_tuning", num_virtual_tokens=7)
    rows = ["longer", None, "default"]
    expected, found = (subject.text_logits(TEXTS, side, prompts=rows) for subject in subjects)
    for row in range(len(rows)):
        assert_equal(found[row], expected[row], f"row {row}")
    base = Subject(architecture, tiny_model(architecture)).text_logits(TEXTS, side)
    assert not torch.allclose(found[0], base[0], atol=1e-2), "the prompt has no effect"


def test_generation(uncompiled):
    found = []
    ids, mask = pad(TEXTS, "left")
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    for implementation in ("sdpa", FLEX):
        subject = Subject.prompted("llama", "prefix_tuning", OPTIONS, implementation=implementation)
        output = subject.model.generate(ids, attention_mask=mask, **options)
        found.append(torch.stack(output.logits, dim=1))
    assert_equal(found[1], found[0], "logits")
    base = tiny_model("llama").generate(ids, attention_mask=mask, **options).logits
    assert not torch.allclose(found[1], torch.stack(base, dim=1), atol=1e-2), "the prompt has no effect"


def test_disabled_is_the_base_model(uncompiled):
    ids, mask = pad(TEXTS, "left")
    base = Subject("llama", tiny_model("llama", implementation=FLEX)).logits(ids, mask)
    subject = Subject.prompted("llama", "prefix_tuning", OPTIONS, implementation=FLEX)
    with subject.model.prompts.disabled():
        assert torch.equal(subject.logits(ids, mask), base)
    zoo.detach(subject.model)
    assert torch.equal(subject.logits(ids, mask), base)
    assert subject.model.config._attn_implementation == FLEX


def test_training_on_a_cpu_is_torchs_to_refuse(uncompiled):
    subject = Subject.prompted("llama", "prefix_tuning", OPTIONS, implementation=FLEX)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        subject.loss(TEXTS[0])


def test_flash_attention_is_refused():
    model = tiny_model("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(zoo.UnsupportedError, match=r"flash_attention_2.*no mask.*sdpa"):
        zoo.get_method("prefix_tuning")(model)
    assert not hasattr(model, "prompts")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from the compiler, and from how transformers calls it
def test_compiled():
    """With the compiler: this needs a C++ compiler and minutes. On a CPU, torch 2.13 fails if attaching is compiled."""
    ids, mask = pad(TEXTS, "left")
    with uncompiled_flex():
        subject = Subject.prompted("gemma3", "prefix_tuning", OPTIONS, implementation=FLEX)
    expected = Subject.prompted("gemma3", "prefix_tuning", OPTIONS).logits(ids, mask)
    assert_equal(subject.logits(ids, mask)[mask.bool()], expected[mask.bool()], "logits")


def test_a_weight_is_refused(uncompiled):
    subject = Subject.prompted("llama", "prefix_tuning", OPTIONS, implementation=FLEX)
    subject.model.prompts.set_weight("default", 0.5)
    with pytest.raises(zoo.UnsupportedError, match="flex attention cannot apply a prompt's weight"):
        subject.logits(TEXTS[0])
