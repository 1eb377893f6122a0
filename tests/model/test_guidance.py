"""`guidance_scale`: the unconditional branch has no prompt, as in PEFT and with real words."""

import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.guided_text import NEW_TOKENS, SCALE, TEXT, base_of, check_scores, guided, made_of_words
from helpers.products import in_turns
from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

import softprompt_zoo as zoo
from softprompt_zoo.model.generation import PromptedGeneration
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text

NEGATIVE = random_text(5, 6)


def check_real_words(architecture, method, rows=1, **options):
    subject, words, base = made_of_words(architecture, method)
    ids = torch.cat([TEXT, random_text(7, 8)])[:rows]
    new, scores = guided(subject, ids, **options)
    words_new, words_scores = guided(base, torch.cat([words.expand(rows, -1), ids], 1), **options)
    assert torch.equal(new, words_new)
    assert_equal(scores, words_scores, "scores")


@in_turns(architecture=["gpt2", "llama", "gemma3", "bloom"], method=["prompt_tuning", "prefix_tuning"])
def test_a_prompt_of_real_words_is_guided_as_they_are(architecture, method):
    check_real_words(architecture, method)


@pytest.mark.parametrize("options", [{"negative_prompt_ids": NEGATIVE}, {"use_cache": False}, {"rows": 2}])
def test_a_negative_prompt_no_cache_and_a_batch(options):
    check_real_words("llama", "prompt_tuning", **options)


def test_an_encoder_decoder_is_guided_as_by_real_words():
    check_real_words("bart", "prompt_tuning")


def test_the_check_notices_a_prompt_in_the_unconditional_branch(monkeypatch):
    monkeypatch.setattr(PromptedGeneration, "_guided_without_prompts", lambda model, processor: processor)
    with pytest.raises(AssertionError):
        check_real_words("llama", "prompt_tuning")


def test_guidance_that_the_user_made_and_that_stays_the_users():
    subject, words, base = made_of_words("llama", "prompt_tuning")
    for model in (subject, base):
        processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(SCALE, model.model)
        given = {"logits_processor": LogitsProcessorList([processor]), "guidance_scale": None}
        ids = TEXT if model is subject else torch.cat([words, TEXT], 1)
        new = guided(model, ids, **given)[0]
        assert processor.model is model.model
        assert torch.equal(new, guided(model, ids)[0])


@pytest.mark.parametrize("rows", [[None, "default"], ["stored", ["default", "second"]]])
def test_another_prompt_in_every_row(rows, tmp_path):
    subject, base = Subject.prompted("llama", "prompt_tuning", {"num_virtual_tokens": 3}), base_of("llama")
    subject.model.prompts.add("second", "prefix_tuning", num_virtual_tokens=2)
    bank = zoo.PromptBank(tmp_path, subject.model)
    bank.add("stored", subject.model.prompts["second"])
    subject.model.prompts.bank = bank
    ids = torch.cat([TEXT, random_text(7, 8)])
    new, scores = guided(subject, ids, prompts=rows)
    check_scores(
        new,
        scores,
        lambda written: subject.logits(torch.cat([ids, written], 1), prompts=rows),
        lambda written: base.logits(torch.cat([ids[:, -1:], written], 1)),
    )


def test_gated_tokens(llama_adapter):
    subject = Subject.prompted("llama", llama_adapter, {"num_virtual_tokens": 4})
    base = base_of("llama")
    new, scores = guided(subject, TEXT)
    check_scores(
        new,
        scores,
        lambda written: subject.logits(torch.cat([TEXT, written], 1)),
        lambda written: base.logits(torch.cat([TEXT[:, -1:], written], 1)),
    )
    with subject.disabled():
        assert not torch.allclose(guided(subject, TEXT)[1], scores, atol=1e-2), "the prompt has no effect"


@pytest.mark.parametrize("gets", ["model", "peft_model"])
def test_pefts_text(gets, tmp_path):
    peft = pytest.importorskip("peft")
    needs_accepted_peft()
    subject, words, base = made_of_words("llama", "prompt_tuning")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=words.shape[1])
    theirs = peft.get_peft_model(base.model, config).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(base.model.get_input_embeddings()(words[0]))
    ours = subject.model
    if gets == "peft_model":  # a LoRA that does nothing yet
        zoo.detach(ours)
        ours = peft.get_peft_model(ours, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
        zoo.get_method("prompt_tuning")(ours, num_virtual_tokens=words.shape[1])
        with torch.no_grad():
            embeddings = theirs.prompt_encoder["default"].embedding.weight
            ours.base_model.model.prompts["default"].learned.embeddings.copy_(embeddings)
    given = {"input_ids": TEXT, "attention_mask": torch.ones_like(TEXT), "guidance_scale": SCALE}
    texts = [model.generate(max_new_tokens=NEW_TOKENS, do_sample=False, **given) for model in (ours, theirs)]
    assert torch.equal(*texts)
