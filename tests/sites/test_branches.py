"""Branches parallel to attention, against the base model with an attention function that adds the same by hand."""

import copy
import dataclasses
import functools
import pickle
import threading

import pytest
import torch
from helpers.branch_method import PLUGIN, READING, added, attach
from helpers.products import in_turns
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import softprompt_zoo as zoo
from softprompt_zoo.backbone.eval_mode import attention_configs
from softprompt_zoo.sites import branches, checkpointing
from softprompt_zoo.sites.reach import attention_interface
from softprompt_zoo.sites.reach.implementations import eager_function
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.checks import BASE_DEPENDS_ON_PADDING, greedy, turn_checkpointing_on, without_dropout
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text

TEXTS = [random_text(length, length) for length in (9, 4, 7)]
METHODS = ["branch_test", "reading_test"]
ARCHITECTURES = ["llama", "gpt2", "gemma3", "bert", "t5", "bart"]


@pytest.fixture(autouse=True)
def registered():
    zoo.register(PLUGIN)
    zoo.register(READING)
    yield
    zoo.unregister("branch_test")
    zoo.unregister("reading_test")


def by_hand(architecture, model, implementation="sdpa", weight=1.0):
    """Return the base model, whose attention function adds in every row what a model's prompt "default" would."""
    base = tiny_model(architecture, implementation=implementation)
    learned, reads = model.prompts["default"].learned, model.prompts["default"].method == "reading_test"
    places, hidden = {}, {}
    for site, names in model.prompts.backbone.module_names.items():
        for layer, name in enumerate(names):
            module = base.get_submodule(name)
            places[id(module)] = f"{site}_{layer}"
            module.register_forward_pre_hook(functools.partial(note, hidden), with_kwargs=True)

    def attention(module, query, key, value, mask, **kwargs):
        base_function = sdpa_attention_forward if implementation == "sdpa" else eager_function(module)
        output, weights = base_function(module, query, key, value, mask, **kwargs)
        place = places[id(module)]
        more = added(learned, place, query, output)
        if reads:
            more = (hidden[id(module)] @ learned.gates[place]).sigmoid()[..., None, None] * more
        return output + weight * more, weights

    AttentionInterface.register("by_hand", attention)
    AttentionMaskInterface.register("by_hand", ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    for config in attention_configs(base):
        config._attn_implementation_internal = "by_hand"
    return Subject(architecture, base)


def note(hidden, module, args, kwargs):
    hidden[id(module)] = args[0] if args else kwargs["hidden_states"]


@in_turns(architecture=ARCHITECTURES, method=METHODS, implementation=["sdpa", "eager"])
def test_a_branch_is_added_in_the_rows_that_have_it(architecture, method, implementation):
    subject = Subject(architecture, attach(architecture, method, implementation))
    with torch.no_grad():
        expected = by_hand(architecture, subject.model, implementation)
        bare = Subject(architecture, tiny_model(architecture, implementation=implementation))
        ids, mask = pad(TEXTS, "right", extra=1)
        batch = subject.logits(ids, mask, prompts=["default", None, "default"])
        for row, model in enumerate((expected, bare, expected)):
            found = batch[row] if subject.is_encoder_decoder else batch[row, : TEXTS[row].shape[1]]
            assert_equal(found, model.logits(TEXTS[row], torch.ones_like(TEXTS[row]))[0], f"row {row}")
        assert (expected.logits(TEXTS[0]) - bare.logits(TEXTS[0])).abs().max() > 1e-2


@in_turns(
    architecture=["llama", "gpt2", "gemma3", "bert", "modernbert", "deberta_v2", "mpnet", "t5"], side=["left", "right"]
)
def test_a_row_is_as_alone(architecture, side):
    subject = Subject(architecture, attach(architecture, "reading_test"))
    subject.model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=3, init="random")
    subject.model.prompts.add("second", "branch_test")
    rows = [["default", "prefix"], "second", ["prefix", "second", "default"], None]
    texts = [*TEXTS, random_text(5, 5)]
    ids, mask = pad(texts, side, extra=1)
    batch = subject.logits(ids, mask, prompts=rows)
    for row, (text, names) in enumerate(zip(texts, rows, strict=True)):
        alone = subject.logits(text, torch.ones_like(text), prompts=[names])[0]
        if (architecture, side) in BASE_DEPENDS_ON_PADDING and "prefix" not in (names or ()):
            continue
        found = batch[row] if subject.is_encoder_decoder else batch[row][mask[row].bool()]
        assert_equal(found, alone, f"row {row} with {names}")


@pytest.mark.parametrize("architecture", ["deberta_v2", "mpnet"])
def test_where_attention_is_replaced_it_is_added_in_front_of_the_projection(architecture):
    model = attach(architecture, "reading_test")
    learned, base = model.prompts["default"].learned, tiny_model(architecture)
    for layer, block in enumerate(base.base_model.encoder.layer):
        attention = getattr(block.attention, "self", None) or block.attention.attn
        project = getattr(attention, "query_proj", None) or attention.q
        output = getattr(attention, "o", None) or block.attention.output.dense
        hidden = []
        attention.register_forward_pre_hook(
            lambda module, args, kwargs, hidden=hidden: hidden.append((args or [kwargs["hidden_states"]])[0]),
            with_kwargs=True,
        )

        def add(module, args, layer=layer, project=project, hidden=hidden):
            place = f"encoder_{layer}"
            query = project(hidden[-1]).unflatten(-1, (4, -1)).transpose(1, 2)
            more = added(learned, place, query, args[0].unflatten(-1, (4, -1)))
            gate = (hidden[-1] @ learned.gates[place]).sigmoid()[..., None, None]
            return (args[0] + (gate * more).flatten(2),)

        output.register_forward_pre_hook(add)
    assert_equal(model(TEXTS[0]).logits, base(TEXTS[0]).logits, architecture)


def test_a_weight_multiplies_it_and_branches_of_a_row_are_summed():
    model = attach("llama")
    model.prompts.set_weight("default", 0.5)
    subject = Subject("llama", model)
    assert_equal(subject.logits(TEXTS[0]), by_hand("llama", model, weight=0.5).logits(TEXTS[0]), "half of it")
    model.prompts.add("same", "branch_test")
    model.prompts["same"].learned.load_state_dict(model.prompts["default"].learned.state_dict())
    model.prompts.set_weight("same", 0.25)
    expected = by_hand("llama", model, weight=0.75).logits(TEXTS[0])
    assert_equal(subject.logits(TEXTS[0], prompts=[["default", "same"]]), expected, "half and a quarter")


@in_turns(architecture=["llama", "gpt2", "t5"], method=METHODS)
def test_generation_step_by_step_and_with_beams(architecture, method):
    subject = Subject(architecture, attach(architecture, method))
    expected = by_hand(architecture, subject.model)
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        text, logits = greedy(subject, TEXTS[2], **options)
        by_hands, expected_logits = greedy(expected, TEXTS[2], **options)
        assert torch.equal(text, by_hands), options
        assert_equal(logits, expected_logits, f"{options}")


@in_turns(architecture=["llama", "bert", "t5", "deberta_v2"], with_prefix=[False, True], use_reentrant=[False, True])
def test_checkpointing_gives_the_same_gradients(architecture, with_prefix, use_reentrant):
    subject = Subject(architecture, attach(architecture, "reading_test"))
    rows = ["default", None, "default"]
    if with_prefix:
        subject.model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=2)
        rows = [["default", "prefix"], None, ["prefix"]]
    subject.model.train()
    without_dropout(subject)
    ids, mask = pad(TEXTS, "right")
    inputs = {"decoder_input_ids": random_text(5, 4).expand(3, -1)} if subject.is_encoder_decoder else {}

    # Embeddings that require no gradient: transformers makes those it computes from ids require one.
    inputs["inputs_embeds"] = subject.model.get_input_embeddings()(ids).detach()

    def gradients():
        logits = subject.model(attention_mask=mask, prompts=rows, **inputs).logits
        logits.pow(2).mean().backward()
        return subject.gradients()

    plain = gradients()
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    turn_checkpointing_on(subject.model, use_reentrant)
    for name, gradient in gradients().items():
        assert_equal(gradient, plain[name], name)


def test_threads_do_not_see_each_other_s():
    model = attach("llama", "reading_test")
    model.prompts.add("second", "reading_test")
    ids = TEXTS[0]
    expected = {name: model(ids, prompts=name).logits for name in ("default", "second")}
    found = {name: [] for name in expected}

    def run(name):
        with torch.no_grad():
            found[name] += [model(ids, prompts=name).logits for _ in range(15)]

    threads = [threading.Thread(target=run, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, all_logits in found.items():
        assert len(all_logits) == 15
        for logits in all_logits:
            assert_equal(logits, expected[name], name)


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_hidden_states_cost_a_hook_while_a_prompt_wants_them():
    model = attach("llama")
    without = hooks_of(model)
    model.prompts.add("reading", "reading_test")
    assert hooks_of(model) == without + 2
    expected = model(TEXTS[0], prompts="reading").logits
    model.prompts.add("more", "reading_test")
    model.prompts.remove("more")
    assert_equal(model(TEXTS[0], prompts="reading").logits, expected, "one of two is left")
    model.prompts.remove("reading")
    assert hooks_of(model) == without
    model.prompts.add("again", "reading_test")
    zoo.detach(model)
    assert hooks_of(model) == 0
    bare = tiny_model("llama")
    assert torch.equal(model(TEXTS[0]).logits, bare(TEXTS[0]).logits)


def test_a_copy_of_a_model_shows_hidden_states_to_its_own_prompts():
    model = attach("llama", "reading_test")
    expected = model(TEXTS[0]).logits
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(copied(TEXTS[0]).logits, expected, "a copy")
        copied.prompts.remove("default")
        assert_equal(model(TEXTS[0]).logits, expected, "the original")
        copied.prompts.add("default", "reading_test")
        copied(TEXTS[0], prompts="default")


def test_it_is_saved_and_loaded(tmp_path):
    model = attach("gpt2", "reading_test")
    expected = model(TEXTS[0]).logits
    model.save_pretrained(tmp_path)
    assert_equal(zoo.load(tiny_model("gpt2"), tmp_path)(TEXTS[0]).logits, expected, "loaded")
    with pytest.raises(zoo.UnsupportedError, match="through its cache only, so nothing can be added to its output"):
        zoo.load(tiny_model("bloom"), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("bloom", "reached through its cache only, so nothing can be added to its output; choose a method without att"),
        (
            "falcon",
            "reached through its cache only, so nothing can be added to its output; choose a method without att",
        ),
        (
            "longt5",
            "nothing can be added to the output of this model's attention: .*; choose a method at the input emb",
        ),
    ],
)
def test_it_is_refused_where_attention_is_not_reached(architecture, reason):
    model = tiny_model(architecture)
    with pytest.raises(zoo.UnsupportedError, match=reason):
        zoo.get_method("branch_test")(model)
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda output: output.double(), r"\(1, 3, 4, 8\) of torch.float64 .*expected \(1, 3, 4, 8\) of torch.float32"),
        (lambda output: output.transpose(1, 2), r"returned \(1, 4, 3, 8\) of torch.float32 for 'decoder' layer 0"),
        (lambda output: 1.0, "returned float for 'decoder' layer 0; expected"),
    ],
)
def test_an_answer_of_another_form_is_refused_before_anything_is_changed(answer, reason):
    wrong = type(PLUGIN)(**{**vars(PLUGIN), "NAME": "wrong_test"})
    wrong.attend = zoo.hookimpl(specname="attend")(lambda output: answer(output))
    zoo.register(wrong)
    model = tiny_model("llama")
    try:
        with pytest.raises(zoo.ShapeError, match=rf"^method 'wrong_test' \(zoo.register\), hook 'attend', .*{reason}"):
            zoo.get_method("wrong_test")(model)
    finally:
        zoo.unregister("wrong_test")
    assert not hasattr(model, "prompts")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compiles_into_one_graph(method):
    model = attach("llama", method)
    model.prompts.add("second", "branch_test")
    rows = [["default", "second"], None, "second"]
    ids = TEXTS[0].expand(3, -1)
    expected = model(ids, prompts=rows).logits.detach()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_equal(compiled(ids, prompts=rows).logits, expected, "compiled logits")


def add_in_every_row(added_branches, rows, *rest):
    everywhere = [dataclasses.replace(own, combinations=None) for own in added_branches]
    return branches.add_branches(everywhere, rows, *rest)


@pytest.mark.parametrize("instead", [add_in_every_row, lambda *args: args[-1]])
def test_the_oracle_notices_other_rows(instead, monkeypatch):
    monkeypatch.setattr(attention_interface, "add_branches", instead)
    with pytest.raises(AssertionError):
        test_a_branch_is_added_in_the_rows_that_have_it("llama", "branch_test", "sdpa")


def test_the_oracle_notices_gradients_that_recomputed_layers_lose(monkeypatch):
    monkeypatch.setattr(checkpointing, "_of_nothing", lambda: ([], []))
    with pytest.raises((AssertionError, RuntimeError, UserWarning)):
        test_checkpointing_gives_the_same_gradients("llama", with_prefix=False, use_reentrant=True)
