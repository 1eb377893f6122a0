"""Training multitask prompts: separate learning rates, several data sets, batches of tasks."""

import pytest
import torch
from helpers.multitask import TASKS, learned, prompted, training
from torch.utils.data import DataLoader
from transformers import Trainer

import softprompt_zoo as zoo
from softprompt_zoo.testing.subject import random_text
from softprompt_zoo.training import PromptTrainer
from softprompt_zoo.training.task_sampling import MixedTasks, TaskSampler

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


def one_step(trainer, folder):
    """Return how far Adam's first step moves each parameter: by its learning rate, whatever the gradient."""
    subject = prompted()
    before = {name: parameter.detach().clone() for name, parameter in learned(subject).named_parameters()}
    texts = [random_text(8, seed)[0] for seed in range(6)]
    rows = [{"input_ids": text, "labels": text, "task_ids": i % TASKS} for i, text in enumerate(texts)]
    arguments = zoo.get_method("mpt").training_arguments(
        str(folder),
        learning_rate=0.03,
        max_steps=1,
        warmup_steps=0,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer(model=subject.model, args=arguments, train_dataset=rows).train()
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in learned(subject).named_parameters()}
    return [moved[name] for name in ("shared", "cols", "rows")]


def test_the_prompt_trainer_uses_them(tmp_path, recwarn):
    assert one_step(PromptTrainer, tmp_path) == pytest.approx([0.03, 0.04, 0.04], rel=1e-3)
    assert not [warning for warning in recwarn if "learning rates" in str(warning.message)]


def test_another_trainer_says_that_it_does_not(tmp_path):
    with pytest.warns(
        UserWarning, match=r"asks for learning rates of 1, 1\.333 times the chosen one, but this opti"
    ) as told:
        assert one_step(Trainer, tmp_path) == pytest.approx([0.03, 0.03, 0.03], rel=1e-3)
    assert len([warning for warning in told if "learning rates" in str(warning.message)]) == 1


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


@pytest.mark.filterwarnings("ignore:a prompt of the method .* asks for learning rates:UserWarning")
def test_trainer_keeps_the_column_of_tasks(tmp_path):
    mixed = MixedTasks([rows_of(task, 4) for task in range(TASKS)])
    subject = prompted()
    before = learned(subject).cols.clone()
    arguments = zoo.get_method("mpt").training_arguments(
        str(tmp_path), max_steps=3, use_cpu=True, per_device_train_batch_size=4, save_strategy="no", disable_tqdm=True
    )
    Trainer(subject.model, arguments, train_dataset=mixed).train()
    assert ((learned(subject).cols - before).abs().flatten(1).amax(1) > 0).all()
