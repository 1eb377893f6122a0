"""Tasks of several prompts that one row sees."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.tokens.task_tokens import TaskTokens

IDS = torch.randint(5, 90, (2, 6), generator=torch.Generator().manual_seed(0))
COUNTS = {"one": 1, "three": 3, "five": 5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = zoo.get_method("prompt_tuning")(tiny_model("llama"), "plain", num_virtual_tokens=2)
    for name, count in COUNTS.items():
        made.prompts.add(name, "mpt", num_virtual_tokens=2, num_tasks=count)
    return made.eval()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("five", "prompt 'five' has 5 tasks and task_ids is missing; .*, an integer from 0 to 4$"),
        (["one", "five"], "prompt 'five' has 5 tasks .*, 0, which prompt 'one' in the same row has, too$"),
        (["five", "one"], "prompt 'five' has 5 tasks .*, 0, which prompt 'one' in the same row has, too$"),
        (["five", "three"], "prompt 'five' .*, an integer from 0 to 2, which prompt 'three' in the same row has, too$"),
        (["plain", "one", "three"], "prompt 'three' has 3 tasks .*, 0, which prompt 'one' in the same row has, too$"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_prompt_of_several_tasks_needs_one_beside_any_other(model, row, message, is_first):
    rows = [row, "one"] if is_first else [None, row]
    with pytest.raises(ValueError, match=message):
        model(IDS, prompts=rows)
    with pytest.raises(ValueError, match=message):
        model.generate(IDS, prompts=rows, max_new_tokens=1)
    assert model(IDS, prompts=rows, task_ids=[0, 0]).logits.isfinite().all()


@pytest.mark.parametrize("row", ["one", ["one", "plain"], ["plain", "one"]])
@torch.no_grad()
def test_a_single_task_needs_none(model, row):
    assert torch.equal(model(IDS, prompts=[row, None]).logits, model(IDS, prompts=[row, None], task_ids=[0]).logits)


@torch.no_grad()
def test_the_tokens_of_a_task_are_built_once(model, monkeypatch):
    rows, ids = ["five", ["five", "three"], ["three", "five"], "three"], [2, 2, 2, 1]
    text = torch.cat([IDS, IDS])
    alone = [model(text[row : row + 1], prompts=[rows[row]], task_ids=[ids[row]]).logits for row in range(4)]
    built, task = [], TaskTokens.task

    def counting(self, index):
        built.append((self.num_tasks, index))
        return task(self, index)

    monkeypatch.setattr(TaskTokens, "task", counting)
    together = model(text, prompts=rows, task_ids=ids).logits
    assert_equal(together, torch.cat(alone), "logits")
    assert sorted(built) == [(3, 1), (3, 2), (5, 2)]
