"""Slots together with other uses of a model: checkpointing, compiling, embeddings, dtypes, detaching, Trainer."""

import copy

import pytest
import torch
from texts_with_slots import TEXTS, TOKENS, base_of, made_of, seen, spoken, subject_and_words, with_slots
from transformers import RobertaConfig, RobertaForMaskedLM, Trainer, TrainingArguments

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.checks import turn_checkpointing_on
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_checkpointing_changes_memory_only(architecture, use_reentrant):
    subject = Subject.prompted(architecture, "p_tuning", {"num_virtual_tokens": TOKENS})
    ids, mask, slots = with_slots()
    labels = random_text(8, 78).repeat(3, 1) if subject.is_encoder_decoder else ids
    inputs = subject.inputs(ids, mask, soft_slots=slots, labels=labels)
    for module in subject.model.modules():
        for name in ("p", "dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    subject.model.train()
    subject.model(**inputs).loss.backward()
    plain = subject.gradients()
    turn_checkpointing_on(subject.model, use_reentrant)
    subject.model(**inputs).loss.backward()
    for name, gradient in subject.gradients().items():
        assert_equal(gradient, plain[name], f"gradient of {name}")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_it_compiles_into_one_graph(architecture):
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    expected = subject.logits(ids, mask, soft_slots=slots)
    torch._dynamo.reset()
    compiled = torch.compile(subject.model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_equal(compiled(**subject.inputs(ids, mask, soft_slots=slots)).logits, expected, "compiled logits")


def test_a_model_that_counts_positions_from_its_ids():
    """RoBERTa computes positions from the ids, from which slots are removed."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = RobertaConfig(vocab_size=101, max_position_embeddings=64, pad_token_id=0, **sizes)
    base = RobertaForMaskedLM(config).eval()
    for parameter in base.parameters():
        parameter.data.normal_(std=0.3)
    model = zoo.get_method("prompt_tuning")(copy.deepcopy(base), num_virtual_tokens=TOKENS)
    words = made_of(model, "default", 0)
    for side in ("left", "right"):
        ids, mask, slots = with_slots(side=side)
        with torch.no_grad():
            ours = model(ids, attention_mask=mask, soft_slots=slots).logits
            theirs = base(spoken(ids, slots, words), attention_mask=mask).logits
        assert_equal(ours[mask.bool()], theirs[mask.bool()], f"logits padded on the {side}")


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_disabled_and_detached_models_read_the_placeholders(architecture):
    subject, _ = subject_and_words(architecture)
    ids, mask, slots = with_slots()
    expected = base_of(architecture).logits(ids, mask)
    with subject.model.prompts.disabled():
        assert torch.equal(subject.logits(ids, mask, soft_slots=slots), expected)
    zoo.detach(subject.model)
    assert torch.equal(subject.logits(ids, mask), expected)


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_text_without_slots_sees_no_prompt(architecture):
    """Once a call has slots, its rows see virtual tokens there and nowhere else."""
    subject, _ = subject_and_words(architecture)
    ids, mask = pad(TEXTS, "right")
    logits = subject.logits(ids, mask, soft_slots=torch.full_like(ids, -1))
    assert_equal(seen(logits, mask, subject), seen(base_of(architecture).logits(ids, mask), mask, subject), "logits")


def test_embeddings_instead_of_ids():
    subject, words = subject_and_words("llama")
    ids, mask, slots = with_slots()
    embeddings = subject.model.get_input_embeddings()(ids)
    with torch.no_grad():
        logits = subject.model(inputs_embeds=embeddings, attention_mask=mask, soft_slots=slots).logits
    assert_equal(logits, subject.logits(ids, mask, soft_slots=slots), "logits")
    text = subject.model.generate(
        inputs_embeds=embeddings[:1], attention_mask=mask[:1], soft_slots=slots[:1], max_new_tokens=4, do_sample=False
    )
    heard = spoken(ids, slots, words)[:1]
    expected = base_of("llama").model.generate(heard, attention_mask=mask[:1], max_new_tokens=4, do_sample=False)
    assert torch.equal(text, expected[:, -4:])


def test_the_stack_inside_takes_slots_too():
    subject, words = subject_and_words("llama")
    ids, _, slots = (part[:1] for part in with_slots())
    with torch.no_grad():
        states = subject.model.model(ids, soft_slots=slots).last_hidden_state
        expected = base_of("llama").model.model(spoken(ids, slots, words)).last_hidden_state
    assert_equal(states, expected, "hidden states")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32])
def test_any_integers_do(dtype):
    subject, _ = subject_and_words("llama")
    ids, mask, slots = with_slots()
    expected = subject.logits(ids, mask, soft_slots=slots)
    assert torch.equal(subject.logits(ids, mask, soft_slots=slots.to(dtype)), expected)


def test_half_precision():
    model = zoo.get_method("p_tuning")(tiny_model("llama").to(torch.bfloat16), num_virtual_tokens=TOKENS)
    ids, mask, slots = with_slots()
    output = model(ids, attention_mask=mask, soft_slots=slots, labels=ids)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(parameter.grad.abs().max() > 0 for parameter in model.prompts.parameters())


def test_trainer_keeps_the_column_and_trains_the_slots(tmp_path):
    torch.manual_seed(0)
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS + 1)
    table = model.prompts["default"].learned.embeddings
    before = table.detach().clone()
    ids, mask, slots = with_slots()
    labels = ids.masked_fill(mask == 0, -100)
    columns = {"input_ids": ids, "attention_mask": mask, "soft_slots": slots, "labels": labels}
    rows = [{name: column[row] for name, column in columns.items()} for row in range(3)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer._set_signature_columns_if_needed()
    assert "soft_slots" in trainer._signature_columns
    trainer.train()
    moved = (table.detach() - before).abs().amax(1)
    assert (moved[:TOKENS] > 1e-3).all()
    assert moved[TOKENS] == 0
    with torch.no_grad():
        expected = model.eval()(**columns).loss
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
