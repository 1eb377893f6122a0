"""A weight per prompt at run time: a factor on its tokens' share of attention."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TOKENS = 4
TEXT = torch.arange(3, 12)[None]
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
ABOVE_ONE = 2.0


def prompted(architecture, method, **options):
    torch.manual_seed(0)
    model = zoo.get_method(method)(tiny_model(architecture), "a", num_virtual_tokens=TOKENS, **options).eval()
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def add_doubled(model):
    """Add a prefix with the tokens of prompt "a", each of them twice."""
    doubled = model.prompts.add("doubled", "prefix_tuning", num_virtual_tokens=2 * TOKENS, **_sites(model))
    own = dict(model.prompts["a"].learned.named_parameters())
    with torch.no_grad():
        for name, parameter in doubled.learned.named_parameters():
            token_axis = next(axis for axis, size in enumerate(parameter.shape) if size == 2 * TOKENS)
            parameter.copy_(torch.cat([own[name], own[name]], dim=token_axis))


def _sites(model):
    return {"sites": model.prompts["a"].config.sites} if model.config.is_encoder_decoder else {}


def run(model, **arguments):
    if model.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = TEXT[:, :5]
    with torch.no_grad():
        output = model(input_ids=TEXT, **arguments)
    return output.logits if "logits" in output else output.last_hidden_state


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "opt"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_prefix_of_weight_two_is_every_token_twice(architecture, implementation):
    model = prompted(architecture, "prefix_tuning")
    model.set_attn_implementation(implementation)
    add_doubled(model)
    positions = torch.arange(TEXT.shape[1])[None]
    # There, the text comes after twice as many tokens, so its positions are moved back by hand.
    expected = run(model, prompts="doubled", position_ids=positions - TOKENS)
    unweighted = run(model, position_ids=positions)
    model.prompts.set_weight("a", ABOVE_ONE)
    actual = run(model, position_ids=positions)
    close(actual, expected)
    assert (actual - unweighted).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_weight_holds_in_every_dtype(dtype):
    model = prompted("llama", "prefix_tuning").to(dtype)
    add_doubled(model)
    positions = torch.arange(TEXT.shape[1])[None]
    expected = run(model, prompts="doubled", position_ids=positions - TOKENS)
    model.prompts.set_weight("a", ABOVE_ONE)
    actual = run(model, position_ids=positions)
    torch.testing.assert_close(actual, expected, atol=10 * torch.finfo(dtype).eps * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_a_prompt_of_weight_zero_is_unseen_and_keeps_its_positions(architecture, method):
    base = tiny_model(architecture)
    positions = (MASK.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = base(input_ids=TEXT, attention_mask=MASK, position_ids=positions + TOKENS).logits
    model = prompted(architecture, method)
    model.prompts.set_weight("a", 0)
    close(run(model, attention_mask=MASK)[MASK.bool()], expected[MASK.bool()])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prompt_of_weight_zero_predicts_no_first_label(architecture):
    positions = torch.arange(TEXT.shape[1])[None] + TOKENS
    with torch.no_grad():
        expected = tiny_model(architecture)(input_ids=TEXT, labels=TEXT, position_ids=positions).loss
    model = prompted(architecture, "prompt_tuning")
    model.prompts.add("b", "prompt_tuning", num_virtual_tokens=TOKENS)
    with torch.no_grad():
        seen = model(input_ids=TEXT, labels=TEXT).loss
    model.prompts.set_weight("a", 0)
    with torch.no_grad():
        close(model(input_ids=TEXT, labels=TEXT).loss, expected)
        rows = model(input_ids=TEXT.repeat(2, 1), labels=TEXT.repeat(2, 1), prompts=["a", "b"]).loss
        other = model(input_ids=TEXT, labels=TEXT, prompts=["b"]).loss
    count = TEXT.shape[1]
    close(rows, ((count - 1) * expected + count * other) / (2 * count - 1))
    assert (seen - expected).abs() > 1e-3


def test_weights_between_give_a_share_between():
    """The share of attention of one layer's prompt, by hand: w * p / (w * p + 1 - p)."""
    model = prompted("llama", "prefix_tuning")
    model.set_attn_implementation("eager")

    def own_share():
        with torch.no_grad():
            weights = model(input_ids=TEXT, output_attentions=True).attentions[0]
        return 1 - weights.sum(-1)

    whole = own_share()
    model.prompts.set_weight("a", 0.25)
    close(own_share(), 0.25 * whole / (0.25 * whole + 1 - whole))


def test_cross_attention_and_encoders_are_weighed():
    positions = {"position_ids": torch.arange(TEXT.shape[1])[None]}
    moved = {"position_ids": positions["position_ids"] - TOKENS}
    for architecture, options, own, doubled in (
        ("t5", {"sites": ("cross",)}, {}, {}),
        ("bert", {}, positions, moved),
    ):
        model = prompted(architecture, "prefix_tuning", **options)
        add_doubled(model)
        expected = run(model, prompts="doubled", **doubled)
        unweighted = run(model, **own)
        model.prompts.set_weight("a", ABOVE_ONE)
        close(run(model, **own), expected)
        assert (unweighted - expected).abs().max() > 1e-3


def test_rows_keep_their_own_weights_and_generation_sees_them():
    model = prompted("llama", "prompt_tuning")
    model.prompts.add("b", "prefix_tuning", num_virtual_tokens=6)
    model.prompts.set_weight("b", 0.3)
    ids = torch.cat([TEXT, TEXT])
    with torch.no_grad():
        both = model(input_ids=ids, prompts=["a", "b"]).logits
        alone = [model(input_ids=TEXT, prompts=[name]).logits[0] for name in "ab"]
        model.prompts.set_weight("b", 1)
        plain = model(input_ids=TEXT, prompts=["b"]).logits[0]
    close(both, torch.stack(alone))
    assert (plain - alone[1]).abs().max() > 1e-3
    model.prompts.activate("a", "b")
    model.prompts.set_weight("b", 0.3)
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    generated = model.generate(TEXT, attention_mask=torch.ones_like(TEXT), **options)
    with torch.no_grad():
        whole = model(input_ids=generated.sequences[:, :-1]).logits[:, TEXT.shape[1] - 1 :]
    close(torch.stack(generated.logits, dim=1), whole)


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_a_later_input_level_prompt_sees_a_prompt_by_its_weight(method):
    model = prompted("llama", method)
    model.prompts.add("later", "prompt_tuning", num_virtual_tokens=3)
    ids = torch.arange(20, 23)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
        next(iter(model.prompts["later"].learned.parameters())).copy_(embeddings)
    model.prompts.set_weight("a", 0.3)
    with torch.no_grad():
        expected = model(input_ids=torch.cat([ids[None], TEXT], dim=1), prompts="a").logits[:, 3:]
    # Real tokens in front of the text see the prompt with the same weight as virtual tokens do.
    model.prompts.activate("a", "later")
    close(run(model), expected)


def test_a_weight_is_saved_and_loaded(tmp_path):
    model = prompted("llama", "prefix_tuning")
    model.prompts.set_weight("a", 0.4)
    expected = run(model)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists(), "PEFT cannot hold the weight"
    loaded = zoo.load(tiny_model("llama"), tmp_path)
    assert loaded.prompts["a"].weight == 0.4
    assert torch.equal(run(loaded), expected)
    assert torch.equal(run(zoo.merge(loaded)), expected)
    with pytest.raises(zoo.UnsupportedError, match="which a PEFT adapter cannot hold"):
        zoo.export(model, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 1e39, 65505, "1", None])
def test_a_wrong_weight_is_refused(weight):
    model = prompted("llama", "prefix_tuning")
    with pytest.raises((ValueError, TypeError), match="the weight of prompt 'a'"):
        model.prompts.set_weight("a", weight)
    assert model.prompts["a"].weight == 1.0
    with pytest.raises(zoo.UnknownPromptError):
        model.prompts.set_weight("b", 1)


@pytest.mark.parametrize(
    ("architecture", "method", "message"),
    [
        ("bert", "prompt_tuning", "real positions"),
        ("t5", "prompt_tuning", "real positions"),
        ("bloom", "prefix_tuning", "through its cache only"),
    ],
)
def test_where_there_is_no_place_for_weights_they_are_refused(architecture, method, message):
    model = prompted(architecture, method)
    expected = run(model)
    with pytest.raises(zoo.UnsupportedError, match=message):
        model.prompts.set_weight("a", 0.5)
    assert model.prompts["a"].weight == 1.0
    assert torch.equal(run(model), expected)


def test_soft_slots_refuse_weights():
    model = prompted("llama", "prompt_tuning")
    model.prompts.set_weight("a", 0.5)
    slots = torch.full_like(TEXT, -1)
    slots[0, 2] = 0
    with pytest.raises(zoo.UnsupportedError, match="soft slots"):
        model(input_ids=TEXT, soft_slots=slots)


def test_what_has_no_place_for_a_weight_refuses_it(tmp_path):
    model = prompted("llama", "prompt_tuning")
    model.prompts.set_weight("a", 0.5)
    own = model.prompts["a"]
    with pytest.raises(zoo.UnsupportedError, match="which a plain prefix cannot hold"):
        zoo.fold(model)
    with pytest.raises(zoo.UnsupportedError, match="which a blend cannot hold"):
        zoo.blend([own, own])
    with pytest.raises(zoo.UnsupportedError, match="which to='embeddings' cannot hold"):
        zoo.export(model, tmp_path / "embeddings", to="embeddings")
    with pytest.raises(zoo.UnsupportedError, match="which a bank cannot hold"):
        zoo.PromptBank(tmp_path / "bank", model).add("a", own)
    assert list(model.prompts) == ["a"]
    assert not (tmp_path / "embeddings").exists()
