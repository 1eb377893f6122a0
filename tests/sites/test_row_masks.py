"""Masks of rows: a row that does not see some tokens of a prompt is like one whose prompt lacks them."""

import pytest
import torch
from helpers.masked_method import PLUGIN, TOKENS, add_kept, attach, set_mask
from helpers.products import in_turns

import softprompt_zoo as zoo
from softprompt_zoo.sites.reach import attention_interface
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.checks import greedy, turn_checkpointing_on, without_dropout
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.flex import FLEX, uncompiled_flex
from softprompt_zoo.testing.subject import Subject, pad, random_text

LENGTH = 7
TEXT = torch.cat([random_text(LENGTH, seed) for seed in range(3)])
DECODER = random_text(5, 4)
MASK = torch.tensor([[True, False, True, True, False], [False, False, False, True, False], [True] * 5])


@pytest.fixture(autouse=True)
def masked():
    zoo.register(PLUGIN)
    yield
    zoo.unregister("masked_test")


def run(model, ids, names, more=0, **arguments):
    """Run rows, with the positions of their text increased by `more`."""
    if model.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = DECODER.expand(len(ids), -1)
    elif "deberta" not in model.config.model_type:  # DeBERTa's positions are relative
        arguments["position_ids"] = (torch.arange(LENGTH) + more)[None]
    with torch.no_grad():
        return model(input_ids=ids, prompts=names, **arguments).logits


EVERYWHERE = [
    ("llama", {}),
    ("gpt2", {}),
    ("gemma3", {}),
    ("bert", {}),
    ("deberta_v2", {}),
    ("t5", {"sites": ("encoder", "cross")}),
]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("architecture", "options"), EVERYWHERE)
def test_a_row_is_as_with_a_prompt_that_lacks_what_it_does_not_see(architecture, implementation, options):
    model = attach(architecture, implementation, **options)
    whole = run(model, TEXT, ["default"] * 3)
    set_mask(model, MASK)
    batch = run(model, TEXT, ["default"] * 3)
    assert torch.equal(run(model, TEXT, "default"), batch)
    for row, seen in enumerate(MASK):
        name = f"kept_{row}"
        add_kept(model, seen, name)
        expected = run(model, TEXT[row : row + 1], name, more=TOKENS - int(seen.sum()))[0]
        assert_equal(batch[row], expected, f"row {row}")
    assert (whole[:2] - batch[:2]).abs().max() > 1e-2
    set_mask(model, MASK[:1])
    for row in range(3):
        expected = run(model, TEXT[row : row + 1], "kept_0", more=TOKENS - int(MASK[0].sum()))[0]
        assert_equal(run(model, TEXT, "default")[row], expected, "one mask for all rows")


@in_turns(architecture=["llama", "gemma3", "bert", "t5"], implementation=["sdpa", "eager"])
def test_rows_with_several_prompts_are_as_alone(architecture, implementation):
    subject = Subject(architecture, attach(architecture, implementation))
    model = subject.model
    model.prompts.add("second", "masked_test", num_virtual_tokens=2)
    model.prompts.add("plain", "prefix_tuning", num_virtual_tokens=3, init="random")
    model.prompts.set_weight("plain", 0.5)
    rows = [["default", "plain"], None, ["plain", "second", "default"], "second", "default"]
    texts = [random_text(length, length) for length in (9, 4, 7, 5, 9)]
    of_default, of_second = MASK[[0, 1, 0, 2, 1]], MASK[:, :2][[2, 2, 0, 0, 1]]
    ids, mask = pad(texts, "left", extra=1)

    def with_masks(first, second, *arguments, **options):
        set_mask(model, first)
        set_mask(model, second, "second")
        return subject.logits(*arguments, **options)

    batch = with_masks(of_default, of_second, ids, mask, prompts=rows)
    for row, (text, names) in enumerate(zip(texts, rows, strict=True)):
        own = of_default[row : row + 1], of_second[row : row + 1]
        alone = with_masks(*own, text, torch.ones_like(text), prompts=[names])[0]
        found = batch[row] if subject.is_encoder_decoder else batch[row][mask[row].bool()]
        assert_equal(found, alone, f"row {row} with {names}")


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_generation_and_beams_keep_the_mask_of_their_row(architecture):
    subject = Subject(architecture, attach(architecture))
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        set_mask(subject.model, MASK)
        text, _ = greedy(subject, TEXT, **options)
        copies = options.get("num_return_sequences", 1)
        for row in range(3):
            set_mask(subject.model, MASK[row : row + 1])
            alone, _ = greedy(subject, TEXT[row : row + 1], **options)
            assert torch.equal(text[row * copies : (row + 1) * copies], alone), f"row {row}, {options}"


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(use_reentrant):
    subject = Subject("llama", attach())
    set_mask(subject.model, MASK)
    subject.model.train()
    without_dropout(subject)

    def gradients():
        subject.model(input_ids=TEXT, prompts=["default", None, "default"]).logits.pow(2).sum().backward()
        return subject.gradients()

    plain = gradients()
    assert plain["prompts.default.learned.tensors.decoder_0_keys"][:, 1].abs().max() > 0, "the last row sees it"
    turn_checkpointing_on(subject.model, use_reentrant)
    for name, gradient in gradients().items():
        assert_equal(gradient, plain[name], name)


def test_flex_attention_hides_them_too():
    expected = attach()
    set_mask(expected, MASK)
    with uncompiled_flex():
        model = attach(implementation=FLEX)
        set_mask(model, MASK)
        assert_equal(run(model, TEXT, "default"), run(expected, TEXT, "default"), "flex attention")


def test_another_number_of_rows_is_refused():
    model = attach()
    set_mask(model, MASK[:2])
    with pytest.raises(ValueError, match="a prompt's mask has 2 rows for a batch of 3; expected one for each row of"):
        run(model, TEXT, "default")


def test_a_prompt_at_the_input_behind_a_mask_is_refused():
    model = attach()
    set_mask(model, MASK)
    model.prompts.add("later", "prompt_tuning", num_virtual_tokens=2)
    with pytest.raises(zoo.UnsupportedError, match="'later' is at the input embeddings, and the prompt before it"):
        run(model, TEXT, [["default", "later"]] * 3)
    run(model, TEXT, [["later", "default"]] * 3)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (MASK.long(), r"a mask of shape \(3, 5\) and dtype torch.int64; expected booleans of shape \(rows, 5\)"),
        (MASK[:, 1:], r"a mask of shape \(3, 4\) and dtype torch.bool; expected booleans of shape \(rows, 5\)"),
        (MASK[0], r"a mask of shape \(5,\) and dtype torch.bool; expected booleans of shape \(rows, 5\)"),
        ("no mask", r"a mask of 'no mask'; expected booleans of shape \(rows, 5\)"),
    ],
)
def test_a_mask_of_another_form_is_refused(mask, reason):
    model = attach()
    set_mask(model, mask)
    with pytest.raises(zoo.PluginError, match=rf"^method 'masked_test' \(zoo.register\), hook 'inject', .*{reason}"):
        run(model, TEXT, "default")


@pytest.mark.parametrize(
    ("tokens", "where"),
    [
        (lambda backbone: zoo.InputTokens(torch.zeros(TOKENS, backbone.hidden_size)), "input embeddings"),
        (
            lambda backbone: zoo.LayerTokens({"decoder": gated(backbone.layers["decoder"])}),
            "keys and values of decoder",
        ),
    ],
)
def test_a_mask_of_tokens_that_have_no_share_of_the_text_s_softmax_is_refused(tokens, where):
    wrong = type(PLUGIN)(**{**vars(PLUGIN), "NAME": "wrong_test"})
    wrong.build_virtual_tokens = zoo.hookimpl(specname="build_virtual_tokens")(lambda backbone: tokens(backbone))
    wrong.inject = zoo.hookimpl(specname="inject")(lambda tokens: zoo.Placement(tokens, mask=MASK))
    zoo.register(wrong)
    model = tiny_model("llama")
    try:
        with pytest.raises(zoo.UnsupportedError, match=f"returned a mask for virtual tokens at {where}"):
            zoo.get_method("wrong_test")(model, num_virtual_tokens=TOKENS)
    finally:
        zoo.unregister("wrong_test")
    assert not hasattr(model, "prompts")


def gated(shapes):
    keys = tuple(torch.zeros(shape.kv_heads, TOKENS, shape.head_dim) for shape in shapes)
    return zoo.SiteTokens(keys, keys, tuple(torch.zeros(1) for _ in shapes))


def test_it_is_refused_where_the_cache_is_the_only_way_in():
    model = attach("bloom")
    set_mask(model, MASK)
    with pytest.raises(
        zoo.UnsupportedError, match="which does not support a mask of rows; choose a method without a mas"
    ):
        run(model, TEXT, "default")


@pytest.mark.slow
def test_compiles_into_one_graph():
    model = attach()
    set_mask(model, MASK)
    rows = ["default", None, "default"]
    expected = run(model, TEXT, rows)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    actual = compiled(TEXT, prompts=rows, position_ids=torch.arange(LENGTH)[None]).logits
    assert_equal(actual, expected, "compiled logits")


def of_the_first_row(mask, state, rows):
    return mask[0, :1].expand(rows, -1)[:, None, None]


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (test_a_row_is_as_with_a_prompt_that_lacks_what_it_does_not_see, ("llama", "sdpa", {})),
        (test_generation_and_beams_keep_the_mask_of_their_row, ("llama",)),
    ],
)
def test_the_oracle_notices_the_mask_of_another_row(check, arguments, monkeypatch):
    monkeypatch.setattr(attention_interface, "seen_by_rows", of_the_first_row)
    with pytest.raises(AssertionError):
        check(*arguments)
