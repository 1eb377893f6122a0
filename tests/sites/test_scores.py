"""Scores of virtual tokens: a factor on the share of each, head by head, against the same tokens repeated."""

import dataclasses

import pytest
import torch
from helpers.products import in_turns
from helpers.scored_method import PLUGIN, attach

import softprompt_zoo as zoo
from softprompt_zoo.sites.reach import attention_interface, masks
from softprompt_zoo.sites.state import SiteState
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.checks import turn_checkpointing_on, without_dropout
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.flex import FLEX, uncompiled_flex
from softprompt_zoo.testing.subject import Subject, pad, random_text

TEXT = random_text(7, 3)
DECODER = random_text(5, 4)
MORE = 3
"""The number of tokens that "repeated" has in addition to those of "default"."""


@pytest.fixture(autouse=True)
def scored():
    zoo.register(PLUGIN)
    yield
    zoo.unregister("scored_test")


def run(model, name, moved=0, **arguments):
    """Run a prompt on the text, with the positions of the text decreased by `moved`."""
    if model.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = DECODER
    elif "deberta" not in model.config.model_type:  # DeBERTa's positions are relative
        arguments["position_ids"] = torch.arange(TEXT.shape[1])[None] + MORE - moved
    with torch.no_grad():
        return model(input_ids=TEXT, prompts=name, **arguments).logits


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("gemma3", {}),
        ("bert", {}),
        ("deberta_v2", {}),
        ("t5", {"sites": ("encoder", "cross")}),
    ],
)
def test_the_logarithm_of_a_number_is_the_token_so_many_times(architecture, implementation, options):
    model = attach(architecture, implementation, **options)
    expected = run(model, "repeated", moved=MORE)
    assert_equal(run(model, "default"), expected, "scores")
    with torch.no_grad():
        for name, tensor in model.prompts["default"].learned.tensors.items():
            tensor.mul_(0.0 if name.endswith("scores") else 1.0)
    assert (run(model, "default") - expected).abs().max() > 1e-2, "without scores"


def test_a_weight_is_the_same_for_all_scores():
    model = attach()
    model.prompts.set_weight("default", 2)
    actual = run(model, "default")
    model.prompts.set_weight("default", 1)
    assert (run(model, "default") - actual).abs().max() > 1e-3
    with torch.no_grad():
        for name, tensor in model.prompts["default"].learned.tensors.items():
            tensor.add_(torch.tensor(2.0).log() if name.endswith("scores") else 0)
    assert_equal(run(model, "default"), actual, "a weight of two")


@in_turns(architecture=["llama", "gpt2", "gemma3", "bert", "t5"], implementation=["sdpa", "eager"])
def test_rows_with_several_prompts_are_as_alone(architecture, implementation):
    subject = Subject(architecture, attach(architecture, implementation))
    subject.model.prompts.add("plain", "prefix_tuning", num_virtual_tokens=2, init="random")
    subject.model.prompts.set_weight("plain", 0.5)
    rows = [["default", "plain"], None, "plain", ["plain", "repeated", "default"], "default"]
    texts = [random_text(length, length) for length in (9, 4, 7, 5, 9)]
    ids, mask = pad(texts, "left", extra=1)
    batch = subject.logits(ids, mask, prompts=rows)
    bare = Subject(architecture, tiny_model(architecture, implementation=implementation))
    for row, (text, names) in enumerate(zip(texts, rows, strict=True)):
        alone = subject.logits(text, torch.ones_like(text), prompts=[names])[0]
        found = batch[row] if subject.is_encoder_decoder else batch[row][mask[row].bool()]
        assert_equal(found, alone, f"row {row} with {names}")
        if names is None:
            assert_equal(alone, bare.logits(text, torch.ones_like(text))[0], "the row without a prompt")


def test_a_later_prompt_at_the_input_sees_a_prompt_by_its_scores():
    model = attach()
    model.prompts.add("later", "prompt_tuning", num_virtual_tokens=3)
    words = random_text(3, 8)
    with torch.no_grad():
        next(iter(model.prompts["later"].learned.parameters())).copy_(model.get_input_embeddings()(words)[0])
        expected = model(input_ids=torch.cat([words, TEXT], dim=1), prompts="default").logits[:, 3:]
        assert_equal(model(input_ids=TEXT, prompts=[["default", "later"]]).logits, expected, "the later prompt")


@in_turns(architecture=["llama", "bert", "t5", "deberta_v2"], implementation=["sdpa", "eager"])
def test_scores_have_the_gradient_of_small_steps(architecture, implementation):
    subject = Subject(architecture, attach(architecture, implementation).double())
    parameters = {n: p for n, p in subject.model.prompts["default"].learned.named_parameters() if n.endswith("scores")}

    def loss():
        inputs = {"decoder_input_ids": DECODER} if subject.is_encoder_decoder else {}
        return subject.model(input_ids=TEXT, prompts="default", **inputs).logits.pow(2).mean()

    loss().backward()
    for name, parameter in parameters.items():
        step = 1e-2 * torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            ahead, behind = [parameter.add_(move) is parameter and loss() for move in (step, -2 * step)]
            parameter.add_(step)
        torch.testing.assert_close((parameter.grad * step).sum(), (ahead - behind) / 2, rtol=1e-2, atol=1e-6, msg=name)


@in_turns(architecture=["llama", "bert", "t5", "gemma3"], use_reentrant=[False, True])
def test_checkpointing_gives_scores_the_same_gradient(architecture, use_reentrant):
    subject = Subject(architecture, attach(architecture).train())
    without_dropout(subject)
    ids, mask = pad([TEXT, random_text(4, 5), random_text(5, 6)], "right")
    inputs = {"decoder_input_ids": DECODER.expand(3, -1)} if subject.is_encoder_decoder else {}

    def gradients():
        rows = ["default", None, ["repeated", "default"]]
        subject.model(input_ids=ids, attention_mask=mask, prompts=rows, **inputs).logits.pow(2).sum().backward()
        return subject.gradients()

    plain = gradients()
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    turn_checkpointing_on(subject.model, use_reentrant)
    for name, gradient in gradients().items():
        assert_equal(gradient, plain[name], name)


def test_scores_are_saved_and_merged_and_blended(tmp_path):
    model = attach()
    expected = run(model, "default")
    model.save_pretrained(tmp_path / "whole", names="default")
    assert not list((tmp_path / "whole").rglob("adapter_config.json")), "PEFT cannot hold scores"
    again = zoo.load(tiny_model("llama"), tmp_path / "whole")
    assert torch.equal(run(again, "default"), expected)
    zoo.merge(again).save_pretrained(tmp_path / "merged")
    assert_equal(run(zoo.load(tiny_model("llama"), tmp_path / "merged"), "default"), expected, "merged")
    own = model.prompts["default"]
    for how in ("mean", "slerp"):
        model.prompts.add(how, zoo.blend([own, own], how=how))
        assert_equal(run(model, how), expected, how)
    twice = zoo.blend([own, own], how="concatenate")
    model.prompts.add("twice", twice)
    model.prompts.set_weight("twice", 0.5)
    assert_equal(run(model, "twice", moved=MORE), expected, "twice, of half the weight")
    model.prompts.add("short", zoo.truncate(twice, 3))
    assert model.prompts["short"].place(model.prompts.backbone).tokens.scores["decoder"][0].shape == (2, 3)
    bank = zoo.PromptBank(tmp_path / "bank", model)
    bank.add("stored", own)
    model.prompts.bank = bank
    assert_equal(run(model, "stored"), expected, "of a bank")


def test_what_cannot_hold_scores_refuses_them(tmp_path):
    model = attach()
    model.prompts.activate("default")
    lost = "has scores, which are not part of its keys and values and so would be lost in a prefix"
    for action in (
        lambda: zoo.fold(model),
        lambda: zoo.export(model, tmp_path / "peft"),
        lambda: zoo.export(model, tmp_path / "kv", to="kv"),
        lambda: zoo.PromptBank(tmp_path / "bank", model, as_prefix=True).add("a", model.prompts["default"]),
    ):
        with pytest.raises(zoo.UnsupportedError, match=lost):
            action()
    assert list(model.prompts) == ["default", "repeated"]
    assert not (tmp_path / "peft").exists()
    assert not (tmp_path / "kv").exists()
    with pytest.raises(zoo.UnsupportedError, match="have scores, which rows of keys and values alone cannot hold"):
        model.prompts.add("started", "prefix_tuning", num_virtual_tokens=3, init=model.prompts["default"])
    model.prompts.add("plain", "prefix_tuning", num_virtual_tokens=3)
    with pytest.raises(zoo.UnsupportedError, match="give prompts of one kind"):
        zoo.blend([model.prompts["default"], model.prompts["plain"]])


def test_flex_attention_has_no_place_for_scores():
    with uncompiled_flex():
        model = attach(implementation=FLEX)
    with (
        uncompiled_flex(),
        pytest.raises(zoo.UnsupportedError, match="flex attention cannot apply a prompt's scores; call model"),
    ):
        model(input_ids=TEXT, prompts="default")


@pytest.mark.parametrize("architecture", ["bloom", "falcon"])
def test_scores_are_refused_where_the_cache_is_the_only_way_in(architecture):
    model = tiny_model(architecture)
    with pytest.raises(zoo.UnsupportedError, match="which does not support scores; choose a method without scores"):
        zoo.get_method("scored_test")(model, num_virtual_tokens=3)
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        (lambda k, s: zoo.SiteTokens((k, k), (k, k), scores=(s,)), "scores for 1 layers of 'decoder'; expected 2"),
        (lambda k, s: zoo.SiteTokens((k, k), (k, k), scores=s), "scores for 3 layers of 'decoder'; expected 2"),
        (
            lambda k, s: zoo.SiteTokens((k, k), (k, k), scores=(s.T, s)),
            r"scores of 'decoder' layer 1 of shape \(3, 2\)",
        ),
        (lambda k, s: zoo.SiteTokens((k, k), (k, k), scores=(s.T, None)), "scores of 'decoder' layer 1 of shape None"),
        (
            lambda k, s: zoo.SiteTokens((k, k), (k, k), scores=(s.T.long(),) * 2),
            "layer 0 of dtype torch.int64; expected",
        ),
        (
            lambda k, s: zoo.SiteTokens((k, k), (k, k), (torch.zeros(1),) * 2, (s.T, s.T)),
            "gates at the site 'decoder' and scores at 'decoder'; a prompt has one or the other",
        ),
    ],
)
def test_scores_that_do_not_fit_are_refused(site, reason):
    backbone = zoo.get_method("scored_test")(tiny_model("llama"), num_virtual_tokens=3).prompts.backbone
    tokens = zoo.LayerTokens({"decoder": site(torch.zeros(2, 3, 8), torch.zeros(3, 2))})
    with pytest.raises(zoo.ShapeError, match=f"^hook returned .*{reason}"):
        tokens.check(backbone, 3, None, "hook")


@pytest.mark.slow
def test_compiles_into_one_graph():
    model = attach()
    rows = [["default", "repeated"], None, "default"]
    ids = TEXT.expand(3, -1)
    expected = model(ids, prompts=rows).logits.detach()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_equal(compiled(ids, prompts=rows).logits, expected, "compiled logits")


def share_the_first_heads(mask, scores, *rest):
    return ORIGINAL(mask, scores[:, :1].expand_as(scores), *rest)


def leave_them_out(mask, scores, *rest):
    return mask


ORIGINAL = masks.with_scores


@pytest.mark.parametrize("instead", [share_the_first_heads, leave_them_out])
def test_the_oracle_notices_other_scores(instead, monkeypatch):
    monkeypatch.setattr(attention_interface, "with_scores", instead)
    with pytest.raises(AssertionError):
        test_the_logarithm_of_a_number_is_the_token_so_many_times("llama", "sdpa", {})


def test_the_oracle_notices_gradients_that_recomputed_layers_lose(monkeypatch):
    original = SiteState.map

    def without_scores(self, change):
        return dataclasses.replace(original(self, change), scores=self.scores)

    monkeypatch.setattr(SiteState, "map", without_scores)
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        test_checkpointing_gives_scores_the_same_gradient("llama", use_reentrant=True)
