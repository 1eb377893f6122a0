"""Multitask prompt tuning against Wang et al. 2023, PEFT's module and arithmetic by hand."""

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
from helpers.products import in_turns
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding, MultitaskPromptTuningConfig

import softprompt_zoo as zoo
from softprompt_zoo.sites import request
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text

pytestmark = pytest.mark.filterwarnings("ignore:a prompt of the method .* asks for learning rates:UserWarning")

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


@in_turns(architecture=["llama", "t5", "bert"], rank=[1, 2])
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


@in_turns(
    ids=str,
    options=[
        {},
        {"num_beams": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_return_sequences": 2},
    ],
    architecture=["llama", "t5"],
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
    task_ids = torch.tensor([2, -1, 4, 3, 99, 1])  # any value is allowed in rows without tasks
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


def test_a_prompt_with_one_task_says_which_it_has():
    with pytest.raises(ValueError, match=r"task_ids has 1 in row 0, where prompt 'default' has one task; expected 0$"):
        prompted(num_tasks=1).logits(TEXT, task_ids=[1])


def test_task_ids_may_be_narrow_integers_and_lists():
    subject = prompted()
    ids = torch.cat([TEXT, TEXT, TEXT])
    expected = subject.logits(ids, task_ids=torch.tensor([0, 1, 2]))
    for task_ids in ([0, 1, 2], (0, 1, 2), torch.tensor([0, 1, 2], dtype=torch.uint8)):
        assert torch.equal(subject.logits(ids, task_ids=task_ids), expected)


def check_one_task_for_all_rows(architecture):
    """Check that a single task id applies to all rows, as in PEFT."""
    subject, ids = prompted(architecture), torch.cat([TEXT, TEXT.flip(1)])
    alone = torch.cat([subject.logits(row[None], task_ids=[1]) for row in ids])
    for given in ([1], torch.tensor([1])):
        assert_equal(subject.logits(ids, task_ids=given), alone, "logits")
    if subject.can_generate:
        options = {"max_new_tokens": 3, "do_sample": False}
        texts = [subject.generate(row[None], task_ids=[1], **options) for row in ids]
        for beams in (1, 2):
            assert subject.generate(ids, task_ids=[1], num_beams=beams, **options).shape[0] == 2
        assert torch.equal(subject.generate(ids, task_ids=[1], **options), torch.cat(texts))


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_one_task_is_that_of_all_rows(architecture):
    check_one_task_for_all_rows(architecture)


def test_the_check_notices_another_task(monkeypatch):
    monkeypatch.setattr(request, "spread_task_ids", lambda ids, rows: ids if rows == 1 else ids.new_zeros(rows))
    with pytest.raises(AssertionError):
        check_one_task_for_all_rows("bert")


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
@pytest.mark.parametrize(
    ("task_ids", "error", "text"),
    [
        (None, ValueError, "prompt 'default' has 3 tasks and task_ids is missing"),
        ([0, 3], ValueError, "task_ids has 3 in row 1, where prompt 'default' has 3 tasks; .* from 0 to 2"),
        ([-1, 0], ValueError, "task_ids has -1 in row 0"),
        ([0.0, 1.0], ValueError, "dtype torch.float32; expected integers"),
        ([True, False], ValueError, "dtype torch.bool; expected integers"),
        ([], ValueError, r"task_ids has shape \(0,\) and dtype torch.float32"),
        ([0, 1, 2, 0], ValueError, "task_ids has 4 entries for a batch of 2 rows"),
        ([[0, 1]], ValueError, r"task_ids has shape \(1, 2\)"),
        (1, TypeError, r"task_ids is 1 \(int\)"),
        ("sst2", TypeError, r"task_ids is 'sst2' \(str\)"),
        ((None, 0), TypeError, r"task_ids is \(None, 0\); expected integers of shape \(rows,\), the task of every row"),
        (("sst2", "rte"), TypeError, r"task_ids is \('sst2', 'rte'\); expected integers"),
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


@pytest.mark.slow
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
    original = shared_pass.record_keys_values
    monkeypatch.setattr(shared_pass, "record_keys_values", lambda *args: passes.append(args) or original(*args))
    ids = torch.cat([TEXT, TEXT])
    prompted().model.generate(ids, task_ids=[2, 0], max_new_tokens=6, min_new_tokens=6)
    assert len(passes) == 1


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
    with pytest.raises(zoo.UnsupportedError, match="source_task is 'average', but the init prompt is merged"):
        prompted(init=start)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 2}, "rank is 2, but the init prompt has 1"),
        ({"source_task": 3}, "source_task is 3, but the init prompt has 3 tasks, counted from 0"),
        ({"source_task": "each", "num_tasks": 2}, "num_tasks is 2, but the init prompt has 3"),
        ({"num_virtual_tokens": 5}, "init is a prompt of 4 virtual tokens"),
    ],
)
def test_sources_that_do_not_fit(options, text):
    start = prompted().model.prompts["default"]
    with pytest.raises(ValueError, match=text):
        prompted(init=start, **options)


@pytest.mark.parametrize("source_task", [1, "each"])
def test_a_source_without_tasks_has_none_to_choose(source_task):
    start = zoo.get_method("prompt")(tiny_model("llama"), num_virtual_tokens=TOKENS).prompts["default"]
    with pytest.raises(ValueError, match=rf"source_task is {source_task!r}, but the init prompt has no tasks"):
        prompted(init=start, source_task=source_task)


def test_other_methods_do_not_start_from_all_tasks_at_once():
    model = tiny_model("llama")
    with pytest.raises(zoo.UnsupportedError, match="init is a prompt with 3 tasks, but 'prompt_tuning' has none"):
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
        (
            {"source_task": 0},
            ValueError,
            "source_task is 0, which chooses a part of another prompt, but init is 's",
        ),
        (
            {"source_task": "shared", "init": "random"},
            ValueError,
            "but init is 'random'; give a prompt or a saved fold",
        ),
        ({"teacher": "given"}, ValueError, "teacher is 'given', which only saved prompts may have"),
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
