"""How many rows `prompts`, `task_ids` and `text_mask` may have: those of the text, however a model is called."""

import pytest
import torch
from helpers.text_methods import Reads, ReadsInto, registered

import softprompt_zoo as zoo
from softprompt_zoo.sites.request import Request
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal

ROWS = 4
IDS = torch.randint(5, 90, (ROWS, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
WRITING = {"max_new_tokens": 2, "do_sample": False}
STACKS = {
    "an encoder inside its model": lambda: tasked(tiny_model("t5")).get_encoder(),
    "a causal stack": lambda: tasked(tiny_model("llama").base_model),
    "an encoder": lambda: tasked(tiny_model("bert").base_model),
}


def tasked(model):
    torch.manual_seed(0)
    prompted = zoo.get_method("mpt")(model, num_virtual_tokens=3, num_tasks=3).eval()
    with torch.no_grad():
        for parameter in prompted.prompts.parameters():
            parameter.add_(torch.randn_like(parameter))
    return prompted


# ---- a stack by itself


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("prompts", [None, "default", ["default"] * ROWS])
@torch.no_grad()
def test_one_task_is_that_of_all_rows_of_a_stack(make, prompts):
    stack = make()
    given = stack(input_ids=IDS, prompts=prompts, task_ids=[1]).last_hidden_state
    assert_equal(given, stack(input_ids=IDS, task_ids=[1] * ROWS).last_hidden_state, "states")
    assert not torch.allclose(given, stack(input_ids=IDS, task_ids=[2]).last_hidden_state, atol=1e-3)


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task_ids": [0, 1, 2]}, "task_ids has 3 entries for a batch of 4 rows"),
        ({"task_ids": [0, 1]}, "task_ids has 2 entries for a batch of 4 rows"),
        ({"task_ids": [0] * 8}, "task_ids has 8 entries for a batch of 4 rows"),
        ({"task_ids": [0, 1], "prompts": ["default"] * ROWS}, "task_ids has 2 entries for a batch of 4 rows"),
        ({"task_ids": [0], "prompts": ["default", None]}, "prompts has 2 entries for a batch of 4 rows"),
        ({"task_ids": [0], "prompts": ["default"]}, "prompts has 1 entries for a batch of 4 rows"),
    ],
)
def test_a_stack_names_the_argument_that_has_other_rows(make, given, message):
    stack = make()
    with pytest.raises(ValueError, match=message):
        stack(input_ids=IDS, **given)


@pytest.mark.slow
@pytest.mark.parametrize("make", list(STACKS.values())[1:], ids=list(STACKS)[1:])
@torch.no_grad()
def test_a_compiled_stack_takes_one_task(make):
    stack = make()
    expected = stack(input_ids=IDS, task_ids=[1]).last_hidden_state
    compiled = torch.compile(stack, backend="eager")
    assert_equal(compiled(input_ids=IDS, task_ids=torch.tensor([1])).last_hidden_state, expected, "states")


# ---- a text that is given as an encoder's states


def of_sites(architecture):
    model = zoo.get_method("prefix_tuning")(tiny_model(architecture), "a", num_virtual_tokens=3, sites=("decoder",))
    model.prompts.add("b", "prefix_tuning", num_virtual_tokens=2, sites=("decoder",))
    model.prompts.add("tasks", "mpt", num_virtual_tokens=2, num_tasks=3)
    return model.eval()


def decode(model, states, **given):
    return model(encoder_outputs=states, decoder_input_ids=IDS, **given).logits


def decode_labels(model, states, **given):
    return model(encoder_outputs=states, labels=IDS, **given).logits


def decode_tuple(model, states, **given):
    return decode(model, tuple(states.values()), **given)


def write(model, states, **given):
    return model.generate(encoder_outputs=states, **WRITING, **given)


def write_beams(model, states, **given):
    return write(model, states, num_beams=2, num_return_sequences=2, **given)


RUNS = [decode, decode_labels, decode_tuple, write, write_beams]


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_states_have_rows(architecture, run):
    model = of_sites(architecture)
    states = model.get_encoder()(input_ids=IDS)
    for count in (0, 1, 2, 3, 5, 8):
        with pytest.raises(ValueError, match=f"prompts has {count} entries for a batch of 4 rows"):
            run(model, states, prompts=["a", "b", "a", "b", "a", "b", "a", "b"][:count])
    found = run(model, states, prompts=["a", "b", "b", "a"])
    alone = [run(model, model.get_encoder()(input_ids=IDS), prompts=name) for name in ("a", "b")]
    many = len(found) // ROWS
    for row, index in enumerate([0, 1, 1, 0]):
        own = slice(row * many, (row + 1) * many)
        assert_equal(found[own].float(), alone[index][own].float(), f"row {row}")


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_tasks_of_states(architecture, run):
    model = of_sites(architecture)
    given = {"attention_mask": MASK, "prompts": "tasks"}
    states = model.get_encoder()(input_ids=IDS, prompts="tasks", task_ids=[1])
    for count in (2, 3, 5, 8):
        with pytest.raises(ValueError, match=f"task_ids has {count} entries for a batch of 4 rows"):
            run(model, states, task_ids=[1] * count, **given)
    again = model.get_encoder()(input_ids=IDS, prompts="tasks", task_ids=[1])  # beams repeat the given ones in place
    assert torch.equal(run(model, states, task_ids=[1], **given), run(model, again, task_ids=[1] * ROWS, **given))


# ---- generate


@pytest.mark.parametrize(("plugin", "architecture"), [(Reads, "llama"), (ReadsInto, "gpt2"), (ReadsInto, "t5")])
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_takes_a_text_mask_of_its_text(plugin, architecture, beams):
    with registered(reading=plugin()):
        model = zoo.get_method("reading")(tiny_model(architecture)).eval()
        given = {"attention_mask": MASK, "num_beams": beams, **WRITING}
        for rows in (0, 1, 2, 3, 5, 8):
            with pytest.raises(ValueError, match=rf"text_mask has shape \({rows}, 6\) for a text of 4 rows"):
                model.generate(IDS, text_mask=torch.ones(rows, 6, dtype=torch.long), **given)
        with pytest.raises(ValueError, match=r"text_mask has shape \(\d, 5\) for \d rows of 6 tokens"):
            model.generate(IDS, text_mask=MASK[:, :5], **given)
        assert torch.equal(model.generate(IDS, text_mask=MASK, **given), model.generate(IDS, **given))


@pytest.mark.parametrize("architecture", ["llama", "t5"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": ["default", None]}, "prompts has 2 entries for a batch of 4 rows"),
        ({"task_ids": [0, 1]}, "task_ids has 2 entries for a batch of 4 rows"),
        ({"text_mask": MASK[:2, :1]}, r"text_mask has shape \(2, 1\) for a text of 4 rows"),
    ],
)
def test_generate_without_a_text_has_the_rows_that_transformers_starts(architecture, given, message):
    model = tasked(tiny_model(architecture))
    given = {"task_ids": [0], **given}
    with pytest.raises(ValueError, match=message):
        model.generate(attention_mask=MASK[:, :1], bos_token_id=1, **WRITING, **given)
    right = {"prompts": ["default", None] * 2, "task_ids": [0, 1, 2, 0], "text_mask": MASK[:, :1]}
    assert len(model.generate(attention_mask=MASK[:, :1], bos_token_id=1, **WRITING, **right)) == ROWS


ARGUMENTS = {
    "prompts": lambda rows: ["default", None, *["default"] * rows][:rows],
    "task_ids": lambda rows: torch.arange(rows),
    "soft_slots": lambda rows: torch.arange(rows)[:, None],
    "text_mask": lambda rows: torch.arange(rows)[:, None],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_only_whole_rows_are_repeated(name):
    for rows in (0, 3, 8):
        with pytest.raises(ValueError, match=f"{name} has {rows} entries for a batch of 4 rows"):
            Request.read({name: ARGUMENTS[name](rows)}, ["default"]).repeated(4)
    for rows in (1, 2, 4):
        repeated = Request.read({name: ARGUMENTS[name](rows)}, ["default"]).repeated(4)
        found = repeated.selection.rows if name == "prompts" else getattr(repeated, name)
        expected = torch.arange(rows).repeat_interleave(4 // rows)
        assert torch.equal(found.flatten(), expected.clamp(max=1) * (expected < 2) if name == "prompts" else expected)
