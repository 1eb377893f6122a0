"""What users do with a model beside training it: threads, input embeddings, prompt lookup, half precision."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import LENGTHS, Subject, assert_equal, pad, random_text

METHODS = ["prompt_tuning", "prefix_tuning"]
WRITERS = ["llama", "gpt2", "t5", "bloom", "gptj"]
TEXTS = [random_text(length, seed) for seed, length in enumerate(LENGTHS)]
NEW_TOKENS = 6
CALLS = 24
SMALLEST_SCALE = 2**-8
"""Of a number of 8 bits, as bfloat16's are."""

everywhere = pytest.mark.parametrize(("architecture", "method"), [(a, m) for a in (*WRITERS, "bert") for m in METHODS])
where_text_is_written = pytest.mark.parametrize(("architecture", "method"), [(a, m) for a in WRITERS for m in METHODS])


def prompted(architecture, method):
    subject = Subject.prompted(architecture, method, {"num_virtual_tokens": 5})
    torch.manual_seed(1)
    subject.model.prompts.add("other", method, num_virtual_tokens=3)
    subject.disturb("other")
    return subject


def in_threads(work, arguments):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(work, arguments))


def generate(subject, ids, **options):
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    output = subject.model.generate(ids, **options, return_dict_in_generate=True, output_logits=True)
    return torch.stack(output.logits, dim=1)


@everywhere
def test_threads_with_prompts_of_their_own(architecture, method):
    subject = prompted(architecture, method)
    calls = [(["default", "other", None][call % 3], TEXTS[call % 2]) for call in range(CALLS)]

    def run(call):
        return subject.logits(call[1], prompts=[call[0]])

    single = [run(call) for call in calls]
    assert not torch.equal(single[0], single[4])  # the same text with another prompt, and with none
    assert not torch.equal(single[0], single[2])
    for found, expected in zip(in_threads(run, calls), single, strict=True):
        assert torch.equal(found, expected)


@where_text_is_written
def test_threads_that_generate(architecture, method):
    subject = prompted(architecture, method)
    calls = [["default", "other", None][call % 3] for call in range(6)]

    def run(name):
        return generate(subject, TEXTS[1], prompts=[name])

    single = [run(name) for name in calls]
    assert not torch.equal(single[0], single[1])
    assert not torch.equal(single[1], single[2])
    for found, expected in zip(in_threads(run, calls), single, strict=True):
        assert torch.equal(found, expected)


@everywhere
def test_threads_that_train(architecture, method):
    """Each thread's gradients are those of its own prompt."""
    subject = prompted(architecture, method)
    own = {name: list(subject.model.prompts[name].parameters()) for name in ("default", "other")}
    calls = [["default", "other"][call % 2] for call in range(8)]

    def gradients(name):
        logits = subject.model(**subject.inputs(TEXTS[0], prompts=[name])).logits
        return torch.autograd.grad(logits.pow(2).sum(), own[name])

    for found, expected in zip(in_threads(gradients, calls), [gradients(name) for name in calls], strict=True):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other, "gradient")


@where_text_is_written
def test_caches_and_rows(architecture, method):
    """No cache and a static one, with another prompt in every row."""
    subject = prompted(architecture, method)
    ids, mask = pad(TEXTS, "left" if subject.is_causal else "right")
    rows = {"attention_mask": mask, "prompts": ["other", None, "default"]}
    expected = generate(subject, ids, **rows)
    for options in ({"use_cache": False}, {"cache_implementation": "static"}):
        assert_equal(generate(subject, ids, **rows, **options), expected, str(options))
    base = Subject(architecture, tiny_model(architecture))
    assert_equal(expected[1], generate(base, TEXTS[1])[0], "the row without a prompt")
    assert not torch.allclose(expected[0], generate(base, TEXTS[0])[0], atol=1e-2)


@where_text_is_written
def test_generation_from_input_embeddings(architecture, method):
    subject = prompted(architecture, method)
    embeddings = subject.model.get_input_embeddings()(TEXTS[0])
    expected = generate(subject, TEXTS[0])
    assert_equal(generate(subject, None, inputs_embeds=embeddings), expected, "from embeddings")
    base = Subject(architecture, tiny_model(architecture))
    assert not torch.allclose(generate(base, TEXTS[0]), expected, atol=1e-2), "the prompt has no effect"


@where_text_is_written
def test_prompt_lookup(architecture, method):
    """Guesses from the text change the speed and nothing else."""
    subject = prompted(architecture, method)
    text = torch.cat([TEXTS[1]] * 3, dim=1)
    for prompts in (None, ["other"]):
        options = {"max_new_tokens": 12} | ({} if prompts is None else {"prompts": prompts})
        guessed = generate(subject, text, prompt_lookup_num_tokens=3, **options)
        assert_equal(guessed, generate(subject, text, **options), f"prompts {prompts}")


@everywhere
def test_what_is_returned_has_the_texts_length(architecture, method):
    subject = Subject.prompted(architecture, method, {"num_virtual_tokens": 5}, implementation="eager")
    base = Subject(architecture, tiny_model(architecture, implementation="eager"))
    ids, mask = pad(TEXTS, "right")
    found, expected = (s.run(ids, mask, output_hidden_states=True, output_attentions=True) for s in (subject, base))
    names = [name for name in expected if "attentions" in name or "hidden_states" in name]
    names = [name for name in names if expected[name]]  # gpt2's cross-attentions are empty
    assert len(names) >= 2
    for name in names:
        assert [part.shape for part in found[name]] == [part.shape for part in expected[name]], name
        assert not torch.equal(found[name][-1], expected[name][-1]), f"the prompt has no effect on {name}"


@everywhere
def test_bfloat16(architecture, method):
    """Prompt and model in bfloat16 are as near to float32 as the base model is."""
    subject, base = prompted(architecture, method), Subject(architecture, tiny_model(architecture))
    ids, mask = pad(TEXTS, "right")
    exact, exact_base = subject.logits(ids, mask), base.logits(ids, mask)
    subject.model.to(torch.bfloat16)
    base.model.to(torch.bfloat16)
    half = subject.logits(ids, mask)
    assert half.dtype == torch.bfloat16
    allowed = 2 * (base.logits(ids, mask).float() - exact_base).abs().mean() + SMALLEST_SCALE
    assert (half.float() - exact).abs().mean() <= allowed
    assert (exact - exact_base).abs().mean() > 2 * allowed, "without the prompt the bound must not hold"
    subject.loss(ids[:1], mask[:1]).backward()
    for name, parameter in subject.model.prompts["default"].named_parameters():
        assert parameter.grad.dtype == torch.bfloat16, name
        assert parameter.grad.abs().max() > 0, name


@where_text_is_written
def test_generation_in_bfloat16(architecture, method):
    subject = prompted(architecture, method)
    subject.model.to(torch.bfloat16)
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.isfinite(generate(subject, TEXTS[0], **options)).all()
