"""Multitask prompt tuning from teachers: the losses of Wang et al. 2023 by hand, and refused teachers."""

import copy
import json

import pytest
import torch
from helpers.multitask import (
    EVERY_TASK,
    HIDDEN,
    TASKS,
    TEXT,
    TEXTS,
    TOKENS,
    learned,
    plain,
    prompted,
    tokens_of,
    training,
)
from safetensors.torch import load_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.sizes import ROTARY
from softprompt_zoo.testing.subject import DECODER_LENGTH, pad, random_text

pytestmark = pytest.mark.filterwarnings("ignore:a prompt of the method .* asks for learning rates:UserWarning")


def by_hand(architecture, embeddings, text, labels):
    """Run the base model on embeddings; return its loss, logits and labels of its predictions, and text states."""
    model = tiny_model(architecture)
    words = model.get_input_embeddings()(text)
    inputs = torch.cat([embeddings[None], words], dim=1)
    if architecture == "t5":
        output = model(inputs_embeds=inputs, labels=labels, output_hidden_states=True)
        states = [state[:, TOKENS:] for state in output.encoder_hidden_states], list(output.decoder_hidden_states)
        return output.loss, output.logits, labels, states
    behind = functional.pad(labels, (TOKENS, 0), value=-100)
    output = model(inputs_embeds=inputs, labels=behind, output_hidden_states=True)
    states = ([state[:, TOKENS:] for state in output.hidden_states],)
    return output.loss, output.logits[:, TOKENS:-1], labels[:, 1:], states


def distance_by_hand(student, teacher, temperature):
    """Return the KL divergence and mean squared distance of one row, written out."""
    seen = student[2] != -100
    p = (teacher[1][seen] / temperature).softmax(-1)
    q = (student[1][seen] / temperature).softmax(-1)
    divergence = (p * (p.log() - q.log())).sum(-1)
    hidden = []
    for ours, theirs in zip(student[3], teacher[3], strict=True):
        hidden.append(torch.stack([(a - b).pow(2).mean(-1) for a, b in zip(ours[1:], theirs[1:], strict=True)]).mean(0))
    return divergence, hidden


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_distillation_is_the_papers(architecture):
    teacher = torch.randn(TASKS, TOKENS, HIDDEN)
    subject = training(prompted(architecture, teacher=teacher, temperature=2.0, distillation=0.7))
    texts = torch.cat([random_text(6, 1), random_text(6, 2)])
    labels = (
        torch.cat([random_text(DECODER_LENGTH, seed) for seed in (3, 4)]) if architecture == "t5" else texts.clone()
    )
    labels[0, -2:] = -100
    loss = subject.model(input_ids=texts, labels=labels, task_ids=[2, 0]).loss
    student = tokens_of(subject)
    divergences, hidden, task_losses = [], [[], []], []
    with torch.no_grad():
        for row, task in enumerate([2, 0]):
            one = slice(row, row + 1)
            ours = by_hand(architecture, student[task], texts[one], labels[one])
            theirs = by_hand(architecture, teacher[task], texts[one], labels[one])
            task_losses.append(ours[0] * int((labels[one] != -100).sum()))
            divergence, states = distance_by_hand(ours, theirs, 2.0)
            divergences.append(divergence)
            for stack, state in enumerate(states):
                seen = labels[one] != -100 if stack == 1 else torch.ones(1, state.shape[1], dtype=torch.bool)
                hidden[stack].append(state[seen])
    expected = sum(task_losses) / (labels != -100).sum()
    distance = torch.cat(divergences).mean() + sum(torch.cat(part).mean() for part in hidden if part)
    assert distance > 0.1
    torch.testing.assert_close(loss.detach(), expected + 0.7 * distance, rtol=1e-4, atol=1e-4)
    subject.model.eval()
    evaluated = subject.model(input_ids=texts, labels=labels, task_ids=[2, 0]).loss
    torch.testing.assert_close(evaluated.detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_a_student_that_is_its_teacher_pays_nothing(architecture):
    start = tokens_of(prompted(architecture))
    shared = plain(architecture, start[0]).model.prompts["default"]
    options = {"init": shared, "disturbed": False}
    with_teacher = training(prompted(architecture, teacher=start[:1].expand(TASKS, -1, -1), **options))
    without = training(prompted(architecture, **options))
    ids, mask = pad(TEXTS, "right")
    losses = []
    for subject in (with_teacher, without):
        labels = random_text(DECODER_LENGTH, 5).repeat(3, 1) if architecture == "t5" else ids.where(mask == 1, -100)
        loss = subject.model(input_ids=ids, attention_mask=mask, labels=labels, task_ids=[0, 1, 2]).loss
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(*losses)
    for name, gradient in with_teacher.gradients().items():
        assert_equal(gradient, dict(without.model.named_parameters())[name].grad, name)


def test_the_teacher_is_neither_trained_nor_changed_nor_saved(tmp_path):
    teachers = [plain("llama", torch.randn(TOKENS, HIDDEN)).model.prompts["default"] for _ in range(TASKS)]
    before = [teacher.learned.embeddings.clone() for teacher in teachers]
    subject = training(prompted(teacher=teachers))
    ids = torch.cat([TEXT, TEXT, TEXT])
    optimizer = torch.optim.AdamW(subject.model.prompts.parameters(), lr=1e-2)
    for _ in range(2):
        subject.model(ids, labels=ids, task_ids=EVERY_TASK).loss.backward()
        optimizer.step()
    for teacher, kept in zip(teachers, before, strict=True):
        assert teacher.learned.embeddings.grad is None
        assert torch.equal(teacher.learned.embeddings, kept)
    torch.testing.assert_close(learned(subject).teacher, torch.stack(before))
    assert sorted(name for name, _ in learned(subject).named_parameters()) == ["cols", "rows", "shared"]
    subject.model.save_pretrained(tmp_path)
    assert {key.rpartition(".")[2] for key in load_file(tmp_path / "model.safetensors")} == {"cols", "rows", "shared"}
    config = json.loads((tmp_path / "softprompt_zoo.json").read_text())["prompts"]["default"]["config"]
    assert config["teacher"] == "given"
    with_teacher = copy.deepcopy(subject.model)
    assert torch.equal(with_teacher.prompts["default"].learned.teacher, learned(subject).teacher)


def test_a_teacher_may_be_a_saved_folder(tmp_path):
    teachers = []
    for task in range(TASKS):
        plain("llama", torch.randn(TOKENS, HIDDEN)).model.save_pretrained(tmp_path / str(task))
        teachers.append(tmp_path / str(task))
    found = learned(prompted(teacher=[str(teachers[0]), *teachers[1:]])).teacher
    for task, folder in enumerate(teachers):
        assert torch.equal(found[task], load_file(folder / "adapter_model.safetensors")["prompt_embeddings"])


def test_without_its_teacher_a_loaded_prompt_does_not_train_silently(tmp_path):
    teacher = torch.randn(TASKS, TOKENS, HIDDEN)
    subject = training(prompted(teacher=teacher))
    subject.model.save_pretrained(tmp_path)
    model = zoo.load(tiny_model("llama"), tmp_path, trainable=True)
    arguments = {"input_ids": TEXT, "labels": TEXT, "task_ids": [1]}
    assert torch.isfinite(model(**arguments).loss)
    model.train()
    with pytest.raises(zoo.UnsupportedError, match="trained with a teacher, which is not saved"):
        model(**arguments)
    again = training(prompted(init=tmp_path, source_task="each", teacher=teacher, disturbed=False))
    torch.testing.assert_close(again.model(**arguments).loss, subject.model(**arguments).loss)
    bare = training(prompted(init=tmp_path, source_task="each", disturbed=False))
    assert bare.model(**arguments).loss < again.model(**arguments).loss


def weighed(weight):
    model = plain("llama", torch.zeros(TOKENS, HIDDEN)).model
    model.prompts.set_weight("default", weight)
    return model.prompts["default"]


def of_a_wider_model():
    model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **{**ROTARY, "hidden_size": 2 * HIDDEN}))
    return zoo.get_method("prompt")(model, num_virtual_tokens=TOKENS).prompts["default"]


@pytest.mark.parametrize(
    ("teacher", "error", "text"),
    [
        (
            lambda: torch.zeros(TASKS, TOKENS + 1, HIDDEN),
            zoo.UnsupportedError,
            r"teacher 0 is \(5, 32\); expected .*\(4, 32\)",
        ),
        (lambda: torch.zeros(TASKS, TOKENS, 8), zoo.UnsupportedError, r"teacher 0 is \(4, 8\)"),
        (lambda: torch.zeros(2, TOKENS, HIDDEN), ValueError, r"shape \(2, 4, 32\); expected a list of 3 prompts"),
        (lambda: [plain("llama", torch.zeros(TOKENS, HIDDEN)).model.prompts["default"]], ValueError, "has 1 entries"),
        (lambda: ["a", "b", 3], TypeError, r"teacher holds 3 \(int\)"),
        (lambda: "folder", TypeError, r"teacher is 'folder' \(str\)"),
        (lambda: ["a", "b", "c"], zoo.CheckpointError, "a has none of softprompt_zoo.json, adapter_config.json"),
        (
            lambda: [zoo.get_method("prefix")(tiny_model("llama"), num_virtual_tokens=4).prompts["default"]] * 3,
            zoo.UnsupportedError,
            "teacher 0 is keys and values",
        ),
        (lambda: [of_a_wider_model()] * 3, zoo.BackboneMismatchError, "teacher has a prompt .* of different sizes"),
        (lambda: [weighed(0.5)] * 3, zoo.UnsupportedError, "teacher 0 has the weight 0.5"),
    ],
)
def test_teachers_that_do_not_fit_are_refused_at_once(teacher, error, text):
    model = tiny_model("llama")
    with pytest.raises(error, match=text):
        zoo.get_method("mpt")(model, num_virtual_tokens=TOKENS, num_tasks=TASKS, teacher=teacher())
    assert not hasattr(model, "prompts")


def test_distillation_does_not_depend_on_padding():
    subject = training(prompted(teacher=torch.randn(TASKS, TOKENS, HIDDEN)))
    losses = []
    for side, extra in (("right", 0), ("right", 3), ("left", 2)):
        ids, mask = pad(TEXTS, side, extra)
        labels = ids.where(mask == 1, -100)
        # After left padding, nothing predicts the first text token, so it has no label here.
        labels[torch.arange(3), mask.argmax(1)] = -100
        losses.append(subject.model(ids, attention_mask=mask, labels=labels, task_ids=[0, 1, 2]).loss.detach())
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_accumulated_batches_weigh_their_distillation_by_their_labels():
    subject = training(prompted(teacher=torch.randn(TASKS, TOKENS, HIDDEN)))
    bare = training(prompted())
    options = {"input_ids": TEXT, "labels": TEXT, "task_ids": [1]}
    whole = subject.model(**options).loss - bare.model(**options).loss
    counted = torch.tensor(2 * TEXT[:, 1:].numel())  # as Trainer counts two such batches
    half = subject.model(**options, num_items_in_batch=counted).loss
    half = half - bare.model(**options, num_items_in_batch=counted).loss
    torch.testing.assert_close(half, whole / 2)


def test_a_frozen_prompt_that_had_a_teacher_does_not_hinder_others(tmp_path):
    prompted(teacher=torch.randn(TASKS, TOKENS, HIDDEN)).model.save_pretrained(tmp_path)
    model = zoo.load(tiny_model("llama"), tmp_path)
    model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=3)
    model.prompts.activate("default", "prefix")
    options = {"input_ids": TEXT, "labels": TEXT, "task_ids": [1]}
    expected = model.eval()(**options).loss
    torch.testing.assert_close(model.train()(**options).loss, expected)
    model.prompts["default"].requires_grad_()
    with pytest.raises(zoo.UnsupportedError, match="was trained with a teacher"):
        model(**options)


@pytest.mark.slow
def test_a_compiled_model_distils_too():
    subject = training(prompted(teacher=torch.randn(TASKS, TOKENS, HIDDEN)))
    options = {"input_ids": TEXT, "labels": TEXT, "task_ids": torch.tensor([1])}
    expected = subject.model(**options).loss
    loss = torch.compile(subject.model, backend="eager")(**options).loss
    torch.testing.assert_close(loss, expected)
    assert loss > 2 * training(prompted()).model(**options).loss
    loss.backward()
    assert learned(subject).cols.grad[1].abs().max() > 0


def test_rows_without_the_prompt_need_a_loss_without_a_teacher():
    ids = torch.cat([TEXT, TEXT])
    options = {"labels": ids, "prompts": ["default", None], "task_ids": [1, 0]}
    training(prompted()).model(ids, **options).loss.backward()
    with pytest.raises(zoo.UnsupportedError, match="not every row of the batch has the prompt"):
        training(prompted(teacher=torch.randn(TASKS, TOKENS, HIDDEN))).model(ids, **options)
