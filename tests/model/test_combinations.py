"""Any two methods on one model keep the promises: neighbors in the list take turns, all pairs are slow tests."""

import itertools
from types import MappingProxyType

import pytest
import torch
from transformers import GPT2LMHeadModel

import softprompt_zoo as zoo
from softprompt_zoo.testing import combination_suite, tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text

METHODS = zoo.list_methods()
NEIGHBORS = list(itertools.pairwise([*METHODS, METHODS[0]]))


def hold(suite, pair):
    """Let a suite check this pair of methods."""
    other = combination_suite(*pair)
    suite.method, suite.options, suite.longer = other.method, other.options, other.longer
    suite.subject_type = other.subject_type


class TestNeighbors(combination_suite(*NEIGHBORS[0], architectures=["llama"])):
    turns = 2
    in_turns = MappingProxyType({"_pair": NEIGHBORS})

    @pytest.fixture(autouse=True, params=NEIGHBORS, ids="-".join)
    def _pair(self, request):
        hold(self, request.param)


@pytest.mark.slow
class TestAllPairs(combination_suite(*NEIGHBORS[0])):
    @pytest.fixture(autouse=True, params=itertools.product(METHODS, METHODS), ids="-".join)
    def _pair(self, request):
        hold(self, request.param)


KINDS = {
    "prompt_tuning": (2, 5),
    "prefix_tuning": (1, 4, 6),
    "multitask_prompt_tuning": (3, 7),
    "p_tuning": (2, 3, 5, 8),
}
"""Methods to the lengths of their prompts, which include more than five different ones."""
ROWS = 16


def sixteen(architecture):
    """Return a model with sixteen different prompts of four methods, and their names."""
    torch.manual_seed(3)
    model = None
    names = []
    lengths = itertools.cycle((method, count) for method, counts in KINDS.items() for count in counts)
    for index, (method, count) in zip(range(ROWS), lengths, strict=False):
        options = {"num_virtual_tokens": count, **({"num_tasks": 2} if method.startswith("multi") else {})}
        if model is None:
            model = zoo.get_method(method)(tiny_model(architecture), f"p{index}", **options)
        else:
            model.prompts.add(f"p{index}", method, **options)
        names.append(f"p{index}")
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval(), names


def texts_of(lengths):
    """Return left-padded texts of these lengths, with their mask."""
    longest = max(lengths)
    ids, mask = torch.zeros(len(lengths), longest, dtype=torch.long), torch.zeros(len(lengths), longest)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = random_text(length, 40 + row)[0]
        mask[row, longest - length :] = 1
    return ids, mask.long()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_sixteen_rows_with_sixteen_prompts_are_sixteen_runs(architecture):
    model, names = sixteen(architecture)
    assert len({(model.prompts[n].method, model.prompts[n].num_virtual_tokens) for n in names}) > 10
    lengths = [4 + row % 5 for row in range(ROWS)]
    ids, mask = texts_of(lengths)
    tasks = torch.arange(ROWS) % 2
    weights = torch.linspace(0.5, 2, ROWS)
    model.double()

    def loss(logits, keep, weight):
        return (weight * (logits.pow(2).mean(-1) * keep).sum(-1)).sum()

    batch = model(input_ids=ids, attention_mask=mask, prompts=names, task_ids=tasks).logits
    loss(batch, mask, weights).backward()
    gradients = {name: p.grad.clone() for name, p in model.prompts.named_parameters()}
    for row, name in enumerate(names):
        for parameter in model.prompts[name].parameters():
            parameter.grad = None
        text = ids[row : row + 1, -lengths[row] :]
        alone = model(input_ids=text, prompts=[name], task_ids=tasks[row : row + 1]).logits
        assert_equal(batch[row, -lengths[row] :], alone[0], f"row {row}")
        loss(alone, torch.ones_like(text), weights[row]).backward()
        for key, parameter in model.prompts[name].named_parameters():
            assert_equal(gradients[f"{name}.{key}"], parameter.grad, f"gradient of {name}.{key}")


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_sixteen_rows_are_generated_as_sixteen_runs(cache):
    model, names = sixteen("llama")
    lengths = [4 + row % 5 for row in range(ROWS)]
    ids, mask = texts_of(lengths)
    tasks = torch.arange(ROWS) % 2
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    options |= {} if cache == "dynamic" else {"cache_implementation": cache}
    batch = model.generate(ids, attention_mask=mask, prompts=names, task_ids=tasks, **options)
    texts = []
    for row, name in enumerate(names):
        text = ids[row : row + 1, -lengths[row] :]
        seen = torch.ones_like(text)
        alone = model.generate(text, attention_mask=seen, prompts=[name], task_ids=tasks[row : row + 1], **options)
        assert torch.equal(batch.sequences[row, -6:], alone.sequences[0, -6:]), f"row {row}"
        assert_equal(torch.stack(batch.logits, 1)[row], torch.stack(alone.logits, 1)[0], f"logits of row {row}")
        texts.append(tuple(alone.sequences[0, -6:].tolist()))
    assert len(set(texts)) > ROWS // 2, "the prompts make little difference"


def long(method, name, count=40):
    return zoo.get_method(method).configure(name=name, num_virtual_tokens=count)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("methods", [("prompt_tuning", "prefix_tuning"), ("prefix_tuning", "prefix_tuning")])
def test_prompts_that_leave_no_room_together_are_refused_before_anything_changes(architecture, methods):
    model = tiny_model(architecture)
    pair = zoo.combine(*(long(method, name) for method, name in zip(methods, "ab", strict=True)))
    message = "virtual tokens of 'a', 'b' are 80, which leaves no room for text in the model's 64 positions"
    with pytest.raises(zoo.UnsupportedError, match=message):
        pair(model)
    assert not hasattr(model, "prompts")
    assert all(parameter.requires_grad for parameter in model.parameters())
    zoo.get_method("prompt_tuning")(model, "there", num_virtual_tokens=2)
    with pytest.raises(zoo.UnsupportedError, match=message):
        pair(model)
    assert (list(model.prompts), model.prompts.active) == (["there"], ("there",))
    for method, name in zip(methods, "ab", strict=True):
        model.prompts.add(name, method, num_virtual_tokens=40)
    with pytest.raises(zoo.UnsupportedError, match=message):
        model.prompts.activate("a", "b")
    assert model.prompts.active == ("there",)
    model.prompts.activate("a", "there")
    assert model(input_ids=random_text(22, 1)).logits.shape[1] == 22


def test_stacks_with_positions_of_their_own_do_not_add_up():
    model = zoo.combine(long("prompt_tuning", "a"), long("prefix_tuning", "b"))(tiny_model("bart"))
    text = random_text(24, 1)  # as long as fits in the encoder after one prompt, and in the decoder after the other
    assert model(input_ids=text, decoder_input_ids=text).logits.shape[1] == 24


def test_a_row_without_room_is_told_so():
    model = long("prompt_tuning", "a")(tiny_model("gpt2"))
    model.prompts.add("b", "prefix_tuning", num_virtual_tokens=40)
    text = random_text(5, 1).repeat(3, 1)
    with pytest.raises(ValueError, match="80 virtual tokens in front of a row leave no room for text"):
        model(input_ids=text, prompts=["a", ["a", "b"], None])
    with pytest.raises(ValueError, match="leave no room"):
        model(input_ids=text, prompts=[["b", "a"], "a", None])


def test_prompts_of_a_model_with_more_positions_are_not_loaded_into_fewer(tmp_path):
    config = tiny_model("gpt2").config
    config.n_positions = 128
    model = zoo.combine(long("prompt_tuning", "a"), long("prefix_tuning", "b"))(GPT2LMHeadModel(config))
    model.save_pretrained(tmp_path)
    base = tiny_model("gpt2")
    with pytest.raises(zoo.UnsupportedError, match="are 80, which leaves no room"):
        zoo.load(base, tmp_path)
    assert not hasattr(base, "prompts")
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_combining_nothing_is_refused():
    with pytest.raises(ValueError, match="combine was given no methods"):
        zoo.combine()
