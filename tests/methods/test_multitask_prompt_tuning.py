"""Multitask prompt tuning against Wang et al. 2023, PEFT's module and arithmetic by hand."""

import copy
import json

import peft
import pytest
import torch
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding, MultitaskPromptTuningConfig
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Trainer

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.checks import without_dropout
from softprompt_zoo.testing.subject import DECODER_LENGTH, Subject, assert_equal, pad, random_text
from softprompt_zoo.training.task_sampling import MixedTasks, TaskSampler

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
    """The tokens of every task, computed here."""
    own = learned(subject, name)
    return (own.shared * torch.einsum("tkr,trd->tkd", own.cols, own.rows)).detach()


def plain(architecture, embeddings):
    """A model with a plain prompt of these embeddings."""
    model = zoo.get_method("prompt")(tiny_model(architecture), num_virtual_tokens=len(embeddings))
    with torch.no_grad():
        model.prompts["default"].learned.embeddings.copy_(embeddings)
    return Subject(architecture, model)


def training(subject):
    subject.model.train()
    without_dropout(subject)
    return subject


# ---- the equation


@pytest.mark.parametrize("rank", [1, 3])
def test_the_equation_is_pefts(rank):
    subject = prompted(rank=rank)
    config = MultitaskPromptTuningConfig(
        num_tasks=TASKS, num_ranks=rank, num_virtual_tokens=TOKENS, token_dim=HIDDEN, num_transformer_submodules=1
    )
    theirs = MultitaskPromptEmbedding(config, torch.nn.Embedding(11, HIDDEN))
    own = learned(subject)
    with torch.no_grad():
        own.cols.normal_()
        own.rows.normal_()
        theirs.embedding.weight.copy_(own.shared)
        theirs.prefix_task_cols.copy_(own.cols)
        theirs.prefix_task_rows.copy_(own.rows)
        expected = theirs(torch.arange(TOKENS).expand(TASKS, -1), EVERY_TASK)
    tokens = subject.model.prompts["default"].place(subject.model.prompts.backbone).tokens
    torch.testing.assert_close(tokens.embeddings, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_tasks_prompt_is_the_shared_one_times_a_matrix_of_that_rank(rank):
    subject = prompted(rank=rank)
    own = learned(subject)
    with torch.no_grad():
        own.cols.normal_()
        own.rows.normal_()
    for embeddings in tokens_of(subject).double() / own.shared.detach().double():
        assert torch.linalg.matrix_rank(embeddings, rtol=1e-4) == rank


@pytest.mark.parametrize(("num_tasks", "rank", "expected"), [(1, 1, 77_668), (3, 2, 76_800 + 3 * 2 * 868)])
def test_parameter_count_of_t5_base(num_tasks, rank, expected):
    """The paper's 77.6K parameters: 100 tokens of 768 (prompt tuning's 76,800), and 868 numbers per task and rank."""
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
    zoo.get_method("mpt")(model, num_virtual_tokens=100, num_tasks=num_tasks, rank=rank)
    assert model.prompts["default"].num_parameters == expected


# ---- start values


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_every_task_starts_as_the_shared_prompt(architecture, rank):
    subject = prompted(architecture, disturbed=False, rank=rank)
    expected = plain(architecture, learned(subject).shared).logits(TEXT)
    for task in range(TASKS):
        assert torch.equal(subject.logits(TEXT, task_ids=[task]), expected)


def test_inits_are_those_of_prompt_tuning():
    table = tiny_model("llama").get_input_embeddings()
    words = table(torch.arange(101)).detach()
    sampled = learned(prompted(disturbed=False)).shared
    assert all((words == row).all(-1).any() for row in sampled)
    options = {"tokenizer": tiny_tokenizer(with_special_tokens=True), "disturbed": False}
    text = learned(prompted(init="text", init_text="w5 w6 w7", **options)).shared
    assert torch.equal(text, words[[5, 6, 7, 5]])
    labels = learned(prompted(init="labels", labels=["w5 w6", "w9"], **options)).shared
    torch.testing.assert_close(labels[:2], torch.stack([(words[5] + words[6]) / 2, words[9]]))
    random = learned(prompted(init="random", num_virtual_tokens=50, disturbed=False)).shared
    assert random.abs().max() <= 0.5
    assert random.std().item() == pytest.approx((1 / 12) ** 0.5, rel=0.1)


def test_normal_factors_are_pefts():
    own = learned(prompted(factor_init="normal", num_virtual_tokens=50, rank=8, disturbed=False))
    for factor in (own.cols, own.rows):
        assert factor.mean().abs() < 0.004
        assert factor.std().item() == pytest.approx(0.02, rel=0.1)


def test_factors_of_a_higher_rank_learn_different_things():
    subject = training(prompted(rank=3, disturbed=False))
    optimizer = torch.optim.SGD(subject.model.prompts.parameters(), lr=0.1)
    for _ in range(2):
        subject.model(TEXT, labels=TEXT, task_ids=[1]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    own = learned(subject)
    for embeddings in (tokens_of(subject)[1] / own.shared.detach()).double()[None]:
        assert torch.linalg.matrix_rank(embeddings, rtol=1e-5) == 3


def test_a_task_that_is_absent_gets_no_gradient():
    subject = training(prompted())
    subject.model(pad(TEXTS, "right")[0], labels=pad(TEXTS, "right")[0], task_ids=[2, 0, 2]).loss.backward()
    own = learned(subject)
    for factor in (own.cols, own.rows):
        assert factor.grad[[0, 2]].flatten(1).abs().amax(1).min() > 0
        assert not factor.grad[1].any()
    assert own.shared.grad.abs().max() > 0


# ---- tasks of rows


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert", "t5", "bart"])
def test_a_batch_of_mixed_tasks_gives_what_plain_prompts_give(architecture):
    subject = prompted(architecture)
    tokens = tokens_of(subject)
    batch = subject.text_logits(TEXTS, "right", task_ids=[2, 0, 2])
    for row, task in enumerate([2, 0, 2]):
        expected = plain(architecture, tokens[task]).text_logits([TEXTS[row]], "right")[0]
        assert_equal(batch[row], expected, f"row {row}, task {task}")


@pytest.mark.parametrize("architecture", ["llama", "t5"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_return_sequences": 2}],
    ids=str,
)
def test_generate_with_mixed_tasks(architecture, options):
    subject = prompted(architecture)
    tokens = tokens_of(subject)
    many = options.get("num_return_sequences", 1)
    common = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    options = {**common, **options, **({"num_beams": 2} if many > 1 else {})}
    texts = [random_text(6, seed) for seed in range(3)]
    ids = torch.cat(texts)
    found = subject.model.generate(ids, attention_mask=torch.ones_like(ids), task_ids=[1, 2, 1], **options)
    for row, task in enumerate([1, 2, 1]):
        alone = plain(architecture, tokens[task]).model
        expected = alone.generate(texts[row], attention_mask=torch.ones_like(texts[row]), **options)
        assert torch.equal(found[row * many : (row + 1) * many], expected)
    other = subject.model.generate(ids, attention_mask=torch.ones_like(ids), task_ids=[0, 0, 0], **options)
    assert not torch.equal(found, other)


def test_tasks_beside_other_prompts_and_bare_rows():
    subject = prompted()
    host = subject.model.prompts
    host.add("more", "mpt", num_virtual_tokens=2, num_tasks=5)
    host.add("plain", "prompt", num_virtual_tokens=3)
    subject.disturb("more", 0.5)
    rows = ["default", None, "more", ["plain", "more"], "plain", ["default", "more"]]
    ids = torch.cat([random_text(6, seed) for seed in range(len(rows))])
    task_ids = torch.tensor([2, -1, 4, 3, 99, 1])  # rows without tasks may say anything
    batch = subject.logits(ids, prompts=rows, task_ids=task_ids)
    backbone, pieces = host.backbone, {"default": tokens_of(subject), "more": tokens_of(subject, "more")}
    for row, names in enumerate(rows):
        names = [names] if isinstance(names, str) else names or []
        parts = [
            pieces[name][task_ids[row]] if name in pieces else host[name].merged_tokens(backbone).embeddings
            for name in names
        ]
        model = plain("llama", torch.cat(parts)) if parts else Subject("llama", tiny_model("llama"))
        assert_equal(batch[row], model.logits(ids[row : row + 1])[0], f"row {row}")
    with pytest.raises(ValueError, match="task_ids has 3 in row 5, where prompt 'default' has 3 tasks"):
        subject.logits(ids, prompts=rows, task_ids=[2, -1, 4, 3, 99, 3])


def test_one_task_needs_no_task_ids():
    subject = prompted(num_tasks=1)
    expected = subject.logits(TEXT, task_ids=[0])
    assert torch.equal(subject.logits(TEXT), expected)
    assert_equal(subject.logits(TEXT.expand(3, -1))[2:], expected, "a row of three")
    assert torch.equal(
        subject.model.generate(TEXT, max_new_tokens=4, do_sample=False),
        subject.model.generate(TEXT, max_new_tokens=4, do_sample=False, task_ids=[0]),
    )


def test_task_ids_may_be_narrow_integers_and_lists():
    subject = prompted()
    ids = torch.cat([TEXT, TEXT, TEXT])
    expected = subject.logits(ids, task_ids=torch.tensor([0, 1, 2]))
    for task_ids in ([0, 1, 2], (0, 1, 2), torch.tensor([0, 1, 2], dtype=torch.uint8)):
        assert torch.equal(subject.logits(ids, task_ids=task_ids), expected)


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
@pytest.mark.parametrize(
    ("task_ids", "error", "text"),
    [
        (None, ValueError, "prompt 'default' has 3 tasks and task_ids is missing"),
        ([0, 3], ValueError, "task_ids has 3 in row 1, where prompt 'default' has 3 tasks; .* from 0 to 2"),
        ([-1, 0], ValueError, "task_ids has -1 in row 0"),
        ([0.0, 1.0], ValueError, "dtype torch.float32; expected integers"),
        ([True, False], ValueError, "dtype torch.bool; expected integers"),
        ([0], ValueError, "task_ids has 1 entries for a batch of 2 rows"),
        ([0, 1, 2, 0], ValueError, "task_ids has 4 entries for a batch of 2 rows"),
        ([[0, 1]], ValueError, r"task_ids has shape \(1, 2\)"),
        (1, TypeError, r"task_ids is 1 \(int\)"),
        ("sst2", TypeError, r"task_ids is 'sst2' \(str\)"),
    ],
)
def test_wrong_task_ids_are_refused_before_the_model_is_called(architecture, task_ids, error, text):
    subject = prompted(architecture)
    calls = []
    for stack in subject.model._softprompt_stacks.values():
        stack.embedding.register_forward_pre_hook(lambda *args: calls.append(args))
    ids = torch.cat([TEXT, TEXT])
    variants = [task_ids] if not isinstance(task_ids, list) else [task_ids, torch.tensor(task_ids)]
    for variant in variants:
        with pytest.raises(error, match=text):
            subject.model(**subject.inputs(ids, task_ids=variant))
        if subject.can_generate:
            with pytest.raises(error, match=text):
                subject.model.generate(ids, task_ids=variant, max_new_tokens=2)
    assert not calls
    subject.logits(ids, task_ids=[0, 1])
    assert calls


def test_disabled_and_bare_models_do_not_look_at_task_ids():
    subject = prompted()
    expected = Subject("llama", tiny_model("llama")).logits(TEXT)
    with subject.model.prompts.disabled():
        assert torch.equal(subject.model(TEXT, task_ids=[7]).logits, expected)
        assert torch.equal(subject.model(TEXT).logits, expected)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_compiled(architecture):
    subject = prompted(architecture)
    ids = torch.cat([random_text(6, seed) for seed in range(3)])
    task_ids = torch.tensor([2, 0, 1])
    expected = subject.logits(ids, task_ids=task_ids)
    compiled = torch.compile(subject.model, backend="eager")
    with torch.no_grad():
        assert_equal(compiled(ids, task_ids=task_ids).logits, expected, "compiled logits")
        other = compiled(ids, task_ids=task_ids.flip(0)).logits
        assert_equal(other, subject.logits(ids, task_ids=task_ids.flip(0)), "compiled logits of other tasks")
        with pytest.raises(RuntimeError, match="task_ids has a task that the row's prompt does not have"):
            compiled(ids, task_ids=torch.tensor([2, 3, 1]))


def test_merged_prompts_take_task_ids(tmp_path):
    subject = prompted()
    ids = torch.cat([TEXT, TEXT, TEXT])
    expected = subject.logits(ids, task_ids=EVERY_TASK)
    tokens = tokens_of(subject)
    zoo.merge(subject.model)
    assert torch.equal(learned(subject).tensors["embeddings"], tokens)
    assert_equal(subject.logits(ids, task_ids=EVERY_TASK), expected, "merged")
    with pytest.raises(ValueError, match="has 3 tasks and task_ids is missing"):
        subject.model(ids)
    subject.model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    loaded = Subject("llama", zoo.load(tiny_model("llama"), tmp_path))
    assert torch.equal(loaded.logits(ids, task_ids=EVERY_TASK), subject.logits(ids, task_ids=EVERY_TASK))


def test_decoding_keeps_what_it_computed(monkeypatch):
    """One pass over the virtual tokens, not one for every new token."""
    from softprompt_zoo.sites import shared_pass

    passes = []
    original = shared_pass.capture
    monkeypatch.setattr(shared_pass, "capture", lambda *args: passes.append(args) or original(*args))
    ids = torch.cat([TEXT, TEXT])
    prompted().model.generate(ids, task_ids=[2, 0], max_new_tokens=6, min_new_tokens=6)
    assert len(passes) == 1


# ---- distillation


def by_hand(architecture, embeddings, text, labels):
    """Run the base model on embeddings: its loss, the logits and labels of its predictions, its states at text."""
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
    """KL and mean squared distance of one row, written out."""
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
        (lambda: ["a", "b", "c"], zoo.CheckpointError, "a has neither"),
        (
            lambda: [zoo.get_method("prefix")(tiny_model("llama"), num_virtual_tokens=4).prompts["default"]] * 3,
            zoo.UnsupportedError,
            "teacher 0 is keys and values",
        ),
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
        # The first text token has no prediction behind left padding, so it has no label here.
        labels[torch.arange(3), mask.argmax(1)] = -100
        losses.append(subject.model(ids, attention_mask=mask, labels=labels, task_ids=[0, 1, 2]).loss.detach())
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_accumulated_batches_weigh_their_distillation_by_their_labels():
    subject = training(prompted(teacher=torch.randn(TASKS, TOKENS, HIDDEN)))
    bare = training(prompted())
    options = {"input_ids": TEXT, "labels": TEXT, "task_ids": [1]}
    whole = subject.model(**options).loss - bare.model(**options).loss
    counted = torch.tensor(2 * TEXT.numel())
    half = subject.model(**options, num_items_in_batch=counted).loss
    half = half - bare.model(**options, num_items_in_batch=counted).loss
    torch.testing.assert_close(half, whole / 2)


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


# ---- learning rates


def test_factors_have_a_rate_of_their_own():
    subject = prompted()
    own = learned(subject)
    optimizer = torch.optim.SGD(subject.model.prompts.parameter_groups(0.3))
    shared, factors = optimizer.param_groups
    assert shared["params"] == [own.shared]
    assert factors["params"] == [own.cols, own.rows]
    assert (shared["lr"], factors["lr"]) == (0.3, pytest.approx(0.4))
    other = prompted(factor_learning_rate_ratio=0.5).model.prompts.parameter_groups(0.3)
    assert [group["lr"] for group in other] == [0.3, 0.15]


def test_the_trainer_of_the_command_line_uses_them(tmp_path):
    from softprompt_zoo.training.trainer import PromptTrainer

    subject = prompted()
    arguments = zoo.get_method("mpt").training_arguments(str(tmp_path), learning_rate=0.03, use_cpu=True)
    optimizer = PromptTrainer(None, model=subject.model, args=arguments).create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, pytest.approx(0.04)]


# ---- target adaptation


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize(
    ("source_task", "expected"),
    [("average", lambda factor: factor.mean(0, keepdim=True)), (2, lambda factor: factor[2:])],
)
def test_a_target_task_starts_from_the_sources(source_task, expected, is_saved, tmp_path):
    source = prompted(rank=2)
    source.model.save_pretrained(tmp_path)
    start = tmp_path if is_saved else source.model.prompts["default"]
    target = prompted(init=start, source_task=source_task, num_tasks=1, rank=2, disturbed=False)
    assert torch.equal(learned(target).shared, learned(source).shared)
    torch.testing.assert_close(learned(target).cols, expected(learned(source).cols), rtol=0, atol=0)
    torch.testing.assert_close(learned(target).rows, expected(learned(source).rows), rtol=0, atol=0)
    two = prompted(init=start, source_task=source_task, num_tasks=2, rank=2, disturbed=False)
    torch.testing.assert_close(learned(two).cols, expected(learned(source).cols).expand(2, -1, -1), rtol=0, atol=0)


def test_a_target_may_take_the_shared_prompt_only():
    source = prompted(rank=2)
    target = prompted(init=source.model.prompts["default"], source_task="shared", num_tasks=2, disturbed=False)
    assert torch.equal(learned(target).shared, learned(source).shared)
    assert torch.equal(learned(target).cols, torch.ones(2, TOKENS, 1))
    assert torch.equal(learned(target).rows, torch.ones(2, 1, HIDDEN))


def test_a_target_may_start_from_one_task_of_a_merged_prompt():
    source = prompted()
    tokens = tokens_of(source)
    zoo.merge(source.model)
    start = source.model.prompts["default"]
    target = prompted(init=start, source_task=1, num_tasks=1, disturbed=False)
    assert torch.equal(tokens_of(target)[0], tokens[1])
    with pytest.raises(zoo.UnsupportedError, match="source_task is 'average', and the init prompt is merged"):
        prompted(init=start)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 2}, "rank is 2, the init prompt has 1"),
        ({"source_task": 3}, "source_task is 3; the init prompt has the tasks 0 to 2"),
        ({"source_task": "each", "num_tasks": 2}, "num_tasks is 2, the init prompt has 3"),
        ({"num_virtual_tokens": 5}, "init is a prompt of 4 virtual tokens"),
    ],
)
def test_sources_that_do_not_fit(options, text):
    start = prompted().model.prompts["default"]
    with pytest.raises(ValueError, match=text):
        prompted(init=start, **options)


def test_other_methods_do_not_start_from_all_tasks_at_once():
    model = tiny_model("llama")
    with pytest.raises(zoo.UnsupportedError, match="init is a prompt with 3 tasks, of which 'prompt_tuning' has none"):
        zoo.get_method("prompt")(model, num_virtual_tokens=TOKENS, init=prompted().model.prompts["default"])
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_tasks": 0}, ValueError, "num_tasks is 0"),
        ({"num_tasks": 2.0}, TypeError, "num_tasks is 2.0"),
        ({"rank": -1}, ValueError, "rank is -1"),
        ({"factor_init": "zero"}, ValueError, "factor_init is 'zero'; expected one of 'identity', 'normal'"),
        ({"source_task": "mean"}, ValueError, "source_task is 'mean'; expected one of 'average', 'shared', 'each', or"),
        ({"source_task": True}, TypeError, "source_task is True"),
        ({"source_task": -1}, ValueError, "source_task is -1"),
        ({"distillation": -0.1}, ValueError, "distillation is -0.1; expected a number of at least 0"),
        ({"temperature": 0}, ValueError, "temperature is 0; expected a number above 0"),
        ({"temperature": float("inf")}, ValueError, "temperature is inf"),
        ({"factor_learning_rate_ratio": "1"}, TypeError, "factor_learning_rate_ratio is '1'"),
        ({"init": "loud"}, ValueError, "init is 'loud'"),
    ],
)
def test_bad_options(options, error, text):
    model = tiny_model("llama")
    with pytest.raises(error, match=text):
        zoo.get_method("mpt")(model, **options)
    assert not hasattr(model, "prompts")


# ---- PEFT, both ways


def in_peft(architecture, folder):
    return peft.PeftModel.from_pretrained(tiny_model(architecture), folder).eval()


def run_peft(wrapped, architecture, ids, task_ids):
    """PEFT's logits; it ignores `decoder_input_ids` of these prompts, so an encoder-decoder gets labels."""
    more = {"labels": decoder_labels(len(ids))} if architecture == "t5" else {}
    with torch.no_grad():
        logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), task_ids=task_ids, **more).logits
    return logits if architecture == "t5" else logits[:, -ids.shape[1] :]


def decoder_labels(rows):
    return random_text(DECODER_LENGTH, 8).repeat(rows, 1)


def run_ours(subject, ids, task_ids):
    more = {"labels": decoder_labels(len(ids))} if subject.architecture == "t5" else {}
    return subject.logits(ids, task_ids=task_ids, **more)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5"])
def test_peft_loads_all_tasks_without_any_side_file(architecture, tmp_path):
    subject = prompted(architecture, rank=2)
    zoo.export(subject.model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    own, tensors = learned(subject), load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(tensors["prompt_embeddings"], own.shared)
    assert torch.equal(tensors["prefix_task_cols"], own.cols)
    assert torch.equal(tensors["prefix_task_rows"], own.rows)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {"num_tasks": 3, "num_ranks": 2, "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM"}
    assert {key: fields[key] for key in expected} == expected
    wrapped, ids = in_peft(architecture, tmp_path), torch.cat([TEXT, TEXT, TEXT])
    logits = run_peft(wrapped, architecture, ids, torch.tensor([2, 0, 1]))
    assert_equal(logits, run_ours(subject, ids, torch.tensor([2, 0, 1])), "PEFT's logits")
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_generation_in_peft_gives_our_text(architecture, tmp_path):
    subject = prompted(architecture)
    zoo.export(subject.model, tmp_path)
    ids = torch.cat([TEXT, TEXT, TEXT])
    options = {"max_new_tokens": 6, "attention_mask": torch.ones_like(ids), "task_ids": EVERY_TASK, "num_beams": 2}
    ours = subject.model.generate(ids, **options)
    assert torch.equal(ours, in_peft(architecture, tmp_path).generate(input_ids=ids, **options))
    assert len({tuple(row.tolist()) for row in ours}) > 1


@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_one_task_is_a_plain_prompt_of_pefts(architecture, is_merged, tmp_path):
    subject = prompted(architecture)
    expected = run_ours(subject, TEXT, [1])
    if is_merged:
        zoo.merge(subject.model)
    zoo.export(subject.model, tmp_path, task=1)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
    assert_equal(run_peft(in_peft(architecture, tmp_path), architecture, TEXT, None), expected, "PEFT's logits")
    loaded = Subject(architecture, zoo.load(tiny_model(architecture), tmp_path))
    assert loaded.model.prompts["default"].method == "prompt_tuning"
    more = {"labels": decoder_labels(1)} if architecture == "t5" else {}
    assert_equal(loaded.logits(TEXT, **more), expected, "logits of the import")


def test_exports_that_are_refused(tmp_path):
    subject = prompted()
    for task, text in (
        (3, "task is 3; prompt 'default' has the tasks 0 to 2"),
        (-1, "task is -1"),
        (True, "task is True"),
    ):
        with pytest.raises(ValueError, match=text):
            zoo.export(subject.model, tmp_path / "x", task=task)
    with pytest.raises(ValueError, match="task is 0, and prompt 'default' has no tasks"):
        zoo.export(plain("llama", torch.zeros(TOKENS, HIDDEN)).model, tmp_path / "x", task=0)
    with pytest.raises(zoo.UnsupportedError, match="hands no task_ids to this method's prompts on an encoder"):
        zoo.export(prompted("bert").model, tmp_path / "x")
    zoo.merge(subject.model)
    with pytest.raises(zoo.UnsupportedError, match="this merged prompt has 3; export one with task="):
        zoo.export(subject.model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5"])
def test_we_load_pefts(architecture, tmp_path):
    torch.manual_seed(0)
    kind = "SEQ_2_SEQ_LM" if architecture == "t5" else "CAUSAL_LM"
    options = {"num_transformer_submodules": 1} if architecture == "t5" else {}
    config = MultitaskPromptTuningConfig(
        num_tasks=TASKS, num_ranks=2, num_virtual_tokens=TOKENS, task_type=kind, **options
    )
    wrapped = peft.get_peft_model(tiny_model(architecture), config).eval()
    with torch.no_grad():
        for parameter in wrapped.prompt_encoder.parameters():
            parameter.normal_()
    wrapped.save_pretrained(tmp_path)
    loaded = Subject(architecture, zoo.load(tiny_model(architecture), tmp_path, trainable=True))
    assert not loaded.model.prompts["default"].is_merged
    ids = torch.cat([TEXT, TEXT, TEXT])
    logits = run_ours(loaded, ids, EVERY_TASK)
    assert_equal(logits, run_peft(wrapped, architecture, ids, EVERY_TASK), "our logits of PEFT's prompt")
    before = learned(loaded).cols.clone()
    loaded.train(1)
    assert not torch.equal(learned(loaded).cols, before)


def test_pefts_prompts_of_encoder_and_decoder_load_as_its_generate_uses_them(tmp_path):
    torch.manual_seed(0)
    config = MultitaskPromptTuningConfig(num_tasks=TASKS, num_virtual_tokens=TOKENS, task_type="SEQ_2_SEQ_LM")
    wrapped = peft.get_peft_model(tiny_model("t5"), config).eval()
    assert wrapped.prompt_encoder["default"].embedding.weight.shape == (2 * TOKENS, HIDDEN)
    with torch.no_grad():
        for parameter in wrapped.prompt_encoder.parameters():
            parameter.normal_(std=2)
    wrapped.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="tokens for the decoder too"):
        loaded = zoo.load(tiny_model("t5"), tmp_path)
    ids = torch.cat([TEXT, TEXT, TEXT])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "task_ids": EVERY_TASK}
    scores = {"output_scores": True, "return_dict_in_generate": True}
    ours = loaded.generate(ids, **options, **scores)
    theirs = wrapped.generate(input_ids=ids, **options, **scores)
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.scores, theirs.scores, strict=True):
        assert_equal(one, other, "scores")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"prefix_task_rows": None}, zoo.CheckpointError, "has no tensor 'prefix_task_rows'"),
        ({"prefix_task_cols": torch.zeros(3, 7, 1)}, zoo.CheckpointError, r"4 virtual tokens, .* \(3, 7, 1\)"),
        ({"prompt_embeddings": torch.zeros(4, 8)}, zoo.BackboneMismatchError, r"shape \(4, 8\)"),
        ({"prefix_task_rows": torch.zeros(2, 1, HIDDEN)}, zoo.BackboneMismatchError, r"rows \(2, 1, 32\)"),
        ({"base_model.score.weight": torch.zeros(2, 32)}, zoo.UnsupportedError, "carries a trained task head"),
    ],
)
def test_damaged_adapters(change, error, text, tmp_path):
    zoo.export(prompted().model, tmp_path)
    tensors = {**load_file(tmp_path / "adapter_model.safetensors"), **change}
    save_file({key: t for key, t in tensors.items() if t is not None}, tmp_path / "adapter_model.safetensors")
    model = tiny_model("llama")
    with pytest.raises(error, match=text) as raised:
        zoo.load(model, tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert not hasattr(model, "prompts")


# ---- several data sets


def rows_of(task, count):
    return [{"input_ids": text, "labels": text} for text in (random_text(6, 50 * task + i)[0] for i in range(count))]


def test_data_sets_are_put_together_with_their_task():
    mixed = MixedTasks([rows_of(0, 3), rows_of(1, 1), rows_of(2, 5)])
    assert len(mixed) == 9
    assert mixed.sizes == [3, 1, 5]
    assert [mixed[index]["task_ids"] for index in range(9)] == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert torch.equal(mixed[5]["input_ids"], rows_of(2, 5)[1]["input_ids"])
    for index in (9, -1):
        with pytest.raises(IndexError):
            mixed[index]
    for wrong, text in (([], "no data sets"), ([rows_of(0, 1), []], "the data set of task 1 is empty")):
        with pytest.raises(ValueError, match=text):
            MixedTasks(wrong)


def test_batches_draw_tasks_in_proportion_to_their_sizes():
    sizes = [400, 100, 100]
    sampler = TaskSampler(sizes, 8, seed=1)
    order = [index for _ in range(10) for index in sampler]
    assert len(order) == 10 * len(sampler) == 6000
    tasks = torch.bucketize(torch.tensor(order), torch.tensor([400, 500]), right=True)
    counts = [len(set(batch.tolist())) for batch in tasks.view(-1, 8)]
    assert set(counts) == {1, 2, 3}
    shares = torch.bincount(tasks).double() / len(order)
    assert shares[0] > 0.55
    assert abs(shares[1] - shares[2]) < 0.03
    everything = TaskSampler(sizes, 8, min_tasks=3, seed=1)
    tasks = torch.tensor([index for _ in range(10) for index in everything])
    shares = (torch.bincount(torch.bucketize(tasks, torch.tensor([400, 500]), right=True)) / len(tasks)).tolist()
    assert shares == pytest.approx([4 / 6, 1 / 6, 1 / 6], abs=0.02)


def test_no_row_comes_twice_before_all_of_its_task_have_come():
    order = list(TaskSampler([7, 50], 5, min_tasks=2))
    first = [index for index in order if index < 7]
    for start in range(0, len(first) - 6, 7):
        assert sorted(first[start : start + 7]) == list(range(7))
    second = [index for index in order if index >= 7]
    assert len(set(second[:50])) == len(second[:50])


def test_epochs_differ_and_come_again():
    sampler = TaskSampler([9, 9], 4, seed=3)
    first, second = list(sampler), list(sampler)
    assert first != second
    sampler.set_epoch(1)
    assert list(sampler) == second
    assert list(TaskSampler([9, 9], 4, seed=3)) == first
    assert list(TaskSampler([9, 9], 4, seed=4)) != first
    for options in ({"batch_size": 0}, {"batch_size": 2, "min_tasks": 0}):
        with pytest.raises(ValueError, match="is 0"):
            TaskSampler([1], **options)


def test_a_loader_trains_the_tasks_of_its_rows():
    mixed = MixedTasks([rows_of(task, 6) for task in range(TASKS)])
    subject = training(prompted())
    optimizer = torch.optim.AdamW(subject.model.prompts.parameter_groups(1e-2))
    losses = []
    for _ in range(5):
        for batch in DataLoader(mixed, batch_size=6, sampler=TaskSampler(mixed.sizes, 6)):
            assert batch["task_ids"].shape == (6,)
            loss = subject.model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_trainer_keeps_the_column_of_tasks(tmp_path):
    mixed = MixedTasks([rows_of(task, 4) for task in range(TASKS)])
    subject = prompted()
    before = learned(subject).cols.clone()
    arguments = zoo.get_method("mpt").training_arguments(
        str(tmp_path), max_steps=3, use_cpu=True, per_device_train_batch_size=4, save_strategy="no", disable_tqdm=True
    )
    Trainer(subject.model, arguments, train_dataset=mixed).train()
    assert ((learned(subject).cols - before).abs().flatten(1).amax(1) > 0).all()
