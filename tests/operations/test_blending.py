"""Blends, shorter prompts and comparisons, held to arithmetic and to what the model gives."""

import copy
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional

import softprompt_zoo as zoo
from softprompt_zoo.operations.blends import BLENDS
from softprompt_zoo.prompt.prompt import PlainTokens
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import DECODER_LENGTH, LENGTHS, assert_equal, pad, random_text

ARCHITECTURES = ["llama", "gpt2", "bert", "t5"]
METHODS = ["prompt_tuning", "prefix_tuning"]
WEIGHTED = [how for how in BLENDS if how not in ("concatenate", "task_vectors")]

everywhere = pytest.mark.parametrize(("architecture", "method"), [(a, m) for a in ARCHITECTURES for m in METHODS])


def prompted(architecture, method, counts=(4, 4, 4), **options):
    """A model with the prompts "a", "b", "c" of one method, of the given lengths."""
    torch.manual_seed(3)
    model = tiny_model(architecture)
    for name, count in zip("abc", counts, strict=True):
        if hasattr(model, "prompts"):
            model.prompts.add(name, method, num_virtual_tokens=count, **options)
        else:
            model = zoo.get_method(method)(model, name, num_virtual_tokens=count, **options)
        disturb(model.prompts[name])
    return model


def disturb(prompt):
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def batch(model, side="left"):
    ids, mask = pad([random_text(length, seed) for seed, length in enumerate(LENGTHS)], side)
    decoder = {"decoder_input_ids": random_text(DECODER_LENGTH, 77).expand(len(LENGTHS), -1)}
    is_second = model.prompts.backbone.family == "encoder_decoder"
    return {"input_ids": ids, "attention_mask": mask, **(decoder if is_second else {})}


def logits(model, *names):
    with torch.no_grad():
        return model(**batch(model), prompts=[list(names)] * len(LENGTHS)).logits


def tensors(prompt, model):
    """The plain numbers of a prompt, `(tokens, features)` each, by the tests' own reading."""
    tokens = prompt.merged_tokens(model.prompts.backbone)
    if isinstance(tokens, zoo.InputTokens):
        return {"embeddings": tokens.embeddings}
    return {site: zoo.flatten_layers(of_site) for site, of_site in tokens.sites.items()}


def assert_numbers(prompt, expected, model):
    found = tensors(prompt, model)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


@everywhere
@pytest.mark.parametrize("how", WEIGHTED)
def test_a_prompt_blended_with_itself_is_itself(architecture, method, how):
    model = prompted(architecture, method)
    a = model.prompts["a"]
    assert_numbers(zoo.blend([a, a], [0.25, 0.75], how=how), tensors(a, model), model)


@everywhere
@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("mean", None, lambda a, b, c: (a + b + c) / 3),
        ("mean", [2, 1, 1], lambda a, b, c: a / 2 + b / 4 + c / 4),
        ("sum", None, lambda a, b, c: a + b + c),
        ("sum", [0.5, -2.0, 0.0], lambda a, b, c: 0.5 * a - 2 * b),
    ],
)
def test_weights_are_what_they_say(architecture, method, how, weights, expected):
    model = prompted(architecture, method)
    parts = [tensors(model.prompts[name], model) for name in "abc"]
    blended = zoo.blend(list(model.prompts.values()), weights, how=how)
    assert_numbers(blended, {name: expected(*(part[name] for part in parts)) for name in parts[0]}, model)


@pytest.mark.parametrize(
    "weights",
    [
        np.array([2, 1, 1]),
        np.array([2, 1, 1], dtype=np.float32),
        [np.float32(2), np.int64(1), Fraction(1)],
        torch.tensor([2.0, 1.0, 1.0]),
        (torch.tensor(2.0), 1, 1.0),
    ],
    ids=["integers", "floats", "scalars", "tensor", "mixed"],
)
def test_weights_may_be_any_sequence_of_real_numbers(weights):
    model = prompted("llama", "prompt_tuning")
    a, b, c = (tensors(model.prompts[name], model) for name in "abc")
    blended = zoo.blend(list(model.prompts.values()), weights)
    assert_numbers(blended, {name: a[name] / 2 + b[name] / 4 + c[name] / 4 for name in a}, model)


@everywhere
def test_task_vectors_are_added_and_taken_away(architecture, method):
    model = prompted(architecture, method)
    a, b, base = (tensors(model.prompts[name], model) for name in "abc")
    options = {"how": "task_vectors", "initial": model.prompts["c"]}
    found = zoo.blend([model.prompts["a"], model.prompts["b"]], [2.0, -0.5], **options)
    expected = {name: base[name] + 2 * (a[name] - base[name]) - 0.5 * (b[name] - base[name]) for name in base}
    assert_numbers(found, expected, model)
    assert_numbers(zoo.blend([model.prompts["a"]], **options), a, model)


@everywhere
def test_slerp_ends_at_both_prompts(architecture, method):
    model = prompted(architecture, method)
    a, b = model.prompts["a"], model.prompts["b"]
    assert_numbers(zoo.blend([a, b], [1, 0], how="slerp"), tensors(a, model), model)
    assert_numbers(zoo.blend([a, b], [0, 1], how="slerp"), tensors(b, model), model)


def plain(model, name, rows):
    """Replace a prompt at the input embeddings by the given vectors, filled up with zeros."""
    embeddings = torch.zeros(len(rows), model.config.hidden_size)
    for row, values in zip(embeddings, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    model.prompts[name].learned = PlainTokens({"embeddings": embeddings})
    return model.prompts[name]


def test_slerp_turns_evenly_and_stretches_evenly():
    model = prompted("llama", "prompt_tuning", (3, 3, 3))
    one = plain(model, "a", [(1.0, 0.0), (2.0, 0.0), (0.0,)])
    other = plain(model, "b", [(0.0, 1.0), (4.0, 0.0), (6.0, 0.0)])
    third = zoo.blend([one, other], [2, 1], how="slerp")
    found = tensors(third, model)["embeddings"][:, :2]
    angle = math.pi / 6
    expected = [[math.cos(angle), math.sin(angle)], [2 * 2 / 3 + 4 / 3, 0.0], [2.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_slerp_refuses_opposite_directions():
    model = prompted("llama", "prompt_tuning", (1, 1, 1))
    one, other = plain(model, "a", [(1.0, 2.0)]), plain(model, "b", [(-2.0, -4.0)])
    with pytest.raises(zoo.UnsupportedError, match="opposite directions"):
        zoo.blend([one, other], how="slerp")


@everywhere
def test_concatenated_prompts_give_what_both_give(architecture, method):
    model = prompted(architecture, method, (4, 2, 3))
    model.prompts.add("ab", zoo.blend([model.prompts["a"], model.prompts["b"]], how="concatenate"))
    assert model.prompts["ab"].num_virtual_tokens == 6
    assert_equal(logits(model, "ab"), logits(model, "a", "b"), "concatenated")
    assert not torch.equal(logits(model, "ab"), logits(model, "b", "a"))


@everywhere
def test_originals_stay_bit_for_bit_and_get_no_gradients(architecture, method):
    model = prompted(architecture, method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = batch(model)
    for how in BLENDS:
        extra = {"initial": model.prompts["c"]} if how == "task_vectors" else {}
        blended = zoo.blend([model.prompts["a"], model.prompts["b"]], how=how, **extra)
        added = model.prompts.add(how, blended)
        assert all(parameter.requires_grad for parameter in blended.parameters())
        model(**text, prompts=[[how]] * len(LENGTHS)).logits.sum().backward()
        assert all(parameter.grad is not None for parameter in added.parameters())
        with torch.no_grad():
            for parameter in added.parameters():
                parameter.zero_()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    originals = [parameter for name in "abc" for parameter in model.prompts[name].parameters()]
    assert all(parameter.grad is None for parameter in originals)


def test_methods_may_be_mixed_and_the_blend_is_plain():
    model = prompted("llama", "prompt_tuning")
    model.prompts.add("recurrent", "p_tuning", num_virtual_tokens=4)
    model.prompts.add("net", "prefix_tuning", num_virtual_tokens=4, reparameterization="mlp")
    model.prompts.add("direct", "prefix_tuning", num_virtual_tokens=4)
    for pair in (("a", "recurrent"), ("net", "direct")):
        parts = [tensors(model.prompts[name], model) for name in pair]
        blended = zoo.blend([model.prompts[name] for name in pair])
        assert blended.is_merged
        assert_numbers(blended, {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}, model)


def test_a_blend_is_saved_loaded_exported_and_a_start(tmp_path):
    model = prompted("llama", "prefix_tuning", dropout=0.1, always_visible=True)
    blended = zoo.blend([model.prompts["a"], model.prompts["b"]])
    model.prompts.add("blend", blended)
    model.prompts.activate("blend")
    model.save_pretrained(tmp_path / "all")
    loaded = zoo.load(tiny_model("llama"), tmp_path / "all")
    assert torch.equal(logits(loaded, "blend"), logits(model, "blend"))
    assert loaded.prompts["blend"].config.dropout == 0.1
    assert loaded.prompts["blend"].config.always_visible is True
    model.prompts.add("more", "prefix_tuning", num_virtual_tokens=4, init=blended)
    assert_numbers(model.prompts["more"], tensors(blended, model), model)


def test_folders_are_blended_like_the_prompts_in_them(tmp_path):
    model = prompted("gpt2", "prompt_tuning")
    for name in "ab":
        zoo.export(model, tmp_path / name, name=name)
    folders = [tmp_path / "a", str(tmp_path / "b")]
    expected = tensors(zoo.blend([model.prompts["a"], model.prompts["b"]]), model)
    assert_numbers(zoo.blend(folders, model=model), expected, model)
    assert_numbers(zoo.blend([folders[0], model.prompts["b"]]), expected, model)
    bare = tiny_model("gpt2")
    started = zoo.get_method("prompt_tuning")(bare, num_virtual_tokens=4, init=zoo.blend(folders, model=bare))
    assert_numbers(started.prompts["default"], expected, started)
    with pytest.raises(ValueError, match="none of the prompts is on a model"):
        zoo.blend(folders)


def test_gated_prompts_are_blended_with_their_gates(llama_adapter):
    model = prompted("llama", "llama_adapter")
    prompts = [model.prompts["a"], model.prompts["b"]]
    parts = [prompt.merged_tokens(model.prompts.backbone).sites["decoder"] for prompt in prompts]
    blended = zoo.blend(prompts).merged_tokens(model.prompts.backbone).sites["decoder"]
    for kind in ("keys", "values", "gates"):
        for found, one, other in zip(getattr(blended, kind), *(getattr(part, kind) for part in parts), strict=True):
            torch.testing.assert_close(found, (one + other) / 2)
    with pytest.raises(zoo.UnsupportedError, match="a softmax each"):
        zoo.blend(prompts, how="concatenate")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"how": "median"}, ValueError, "how is 'median'; expected one of 'mean'"),
        ({"weights": [1.0]}, ValueError, "expected 2 numbers, one for each prompt"),
        ({"weights": [1.0, math.nan]}, ValueError, "weights has nan; expected finite"),
        ({"weights": [1.0, math.inf], "how": "sum"}, ValueError, "weights has inf"),
        ({"weights": [1.0, "2"]}, TypeError, r"weights has '2' \(str\)"),
        ({"weights": [1.0, True]}, TypeError, r"weights has True"),
        ({"weights": np.ones((2, 2))}, TypeError, r"weights has \[1.0, 1.0\] \(list\); expected real numbers"),
        ({"weights": np.array([True, False])}, TypeError, r"weights has True"),
        ({"weights": [1.0, 1j]}, TypeError, r"weights has 1j \(complex\)"),
        ({"weights": [1.0, -1.0]}, ValueError, "at least 0"),
        ({"weights": [0.0, 0.0]}, ValueError, "not all 0"),
        ({"weights": [1.0, 1.0], "how": "concatenate"}, ValueError, "how='concatenate' takes none"),
        ({"how": "task_vectors"}, ValueError, "initial is missing"),
        ({"names": "a"}, ValueError, "was given 1 prompts; expected at least two"),
        ({"names": "abc", "how": "slerp"}, ValueError, "was given 3 prompts; expected two"),
        ({"names": "ac"}, zoo.UnsupportedError, r"prompts\[1\] has 3 virtual tokens, prompts\[0\] has 4"),
        ({"names": "ap"}, zoo.UnsupportedError, r"prompts\[1\] is at the keys and values of decoder"),
        ({"names": "pd"}, zoo.UnsupportedError, r"prompts\[1\] has dropout=0.5, prompts\[0\] has 0.0"),
        ({"names": "am"}, zoo.UnsupportedError, r"prompts\[1\] is a prompt with 2 tasks"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    model = prompted("llama", "prompt_tuning", (4, 4, 3))
    model.prompts.add("p", "prefix_tuning", num_virtual_tokens=4)
    model.prompts.add("d", "prefix_tuning", num_virtual_tokens=4, dropout=0.5)
    model.prompts.add("m", "multitask_prompt_tuning", num_virtual_tokens=4, num_tasks=2)
    names = arguments.pop("names", "ab") if "names" in arguments else "ab"
    options = {key: value for key, value in arguments.items() if key != "names"}
    with pytest.raises(error, match=message):
        zoo.blend([model.prompts[name] for name in names], **options)


def test_other_refusals(tmp_path):
    model = prompted("llama", "prompt_tuning")
    a = model.prompts["a"]
    with pytest.raises(TypeError, match="prompts is str; expected a list"):
        zoo.blend("a")
    with pytest.raises(TypeError, match=r"prompts\[1\] is int; expected model.prompts\[name\]"):
        zoo.blend([a, 3])
    with pytest.raises(zoo.CheckpointError, match="is not a folder"):
        zoo.blend([a, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="initial was given with how='mean'"):
        zoo.blend([a, a], initial=a)
    with pytest.raises(zoo.UnsupportedError, match="leaves no room for text"):
        zoo.blend([a] * 16, how="concatenate")
    other = prompted("gpt_neox", "prefix_tuning").prompts["a"]
    with pytest.raises(zoo.BackboneMismatchError, match=r"prompts\[1\] was made for a model with layers"):
        zoo.blend([prompted("llama", "prefix_tuning").prompts["a"], other])


def test_trained_heads_are_not_blended_silently():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=101, num_labels=3, **sizes)).eval()
    model = zoo.get_method("p_tuning_v2")(model, "a", num_virtual_tokens=3)
    model.prompts.add("b", "p_tuning_v2", num_virtual_tokens=3)
    prompts = [model.prompts["a"], model.prompts["b"]]
    with pytest.raises(zoo.UnsupportedError, match=r"prompts\[0\] has a trained task head"):
        zoo.blend(prompts)
    assert zoo.blend(prompts, drop_heads=True).head is None
    disturb(prompts[0])
    shorter = zoo.truncate(prompts[0], 3)
    model.prompts.add("same", shorter)
    text = {"input_ids": random_text(6, 1)}
    assert torch.equal(model(**text, prompts=["same"]).logits, model(**text, prompts=["a"]).logits)
    small = BertForSequenceClassification(BertConfig(vocab_size=101, num_labels=2, **sizes))
    small = zoo.get_method("prefix_tuning")(small, num_virtual_tokens=3)
    with pytest.raises(zoo.BackboneMismatchError, match="trained task head"):
        small.prompts.add("a", shorter)


# Adding ready prompts


@everywhere
def test_a_ready_prompt_is_added_as_a_copy(architecture, method):
    model, other = prompted(architecture, method), prompted(architecture, "prompt_tuning")
    added = other.prompts.add("theirs", model.prompts["a"])
    assert added is other.prompts["theirs"]
    assert_equal(logits(other, "theirs"), logits(model, "a"), "the copy")
    disturb(added)
    assert not torch.equal(logits(other, "theirs"), logits(model, "a"))


def test_what_cannot_be_added_changes_nothing():
    model = prompted("llama", "prompt_tuning")
    a = model.prompts["a"]
    with pytest.raises(TypeError, match="option 'num_virtual_tokens' was given with a ready prompt"):
        model.prompts.add("more", a, num_virtual_tokens=4)
    with pytest.raises(zoo.PromptExistsError):
        model.prompts.add("a", a)
    narrow = prompted("opt_narrow", "prompt_tuning")
    with pytest.raises(zoo.BackboneMismatchError, match="hidden_size"):
        narrow.prompts.add("more", a)
    alone = copy.deepcopy(a)  # belongs to no model, so its own sizes must tell
    assert alone.backbone is None
    with pytest.raises(zoo.BackboneMismatchError, match=r"\(4, 32\)"):
        narrow.prompts.add("more", alone)
    assert narrow.prompts.keys() == ["a", "b", "c"]
    assert model.prompts.keys() == ["a", "b", "c"]


def test_prompts_know_the_model_they_are_copied_with():
    model = prompted("llama", "prompt_tuning")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.prompts["a"].backbone is other.prompts.backbone
        assert zoo.similarity(other.prompts["a"], other.prompts["b"]) == zoo.similarity(
            model.prompts["a"], model.prompts["b"]
        )


# Shorter prompts


@everywhere
def test_truncation_keeps_the_longest_tokens_in_order(architecture, method):
    model = prompted(architecture, method)
    expected = tensors(model.prompts["a"], model)
    scale = torch.tensor([1.0, 50.0, 2.0, 100.0])[:, None]
    grown = {name: part * scale for name, part in expected.items()}
    model.prompts["a"].learned = PlainTokens(grown)
    shorter = zoo.truncate(model.prompts["a"], 2)
    assert_numbers(shorter, {name: part[[1, 3]] for name, part in grown.items()}, model)
    same = zoo.truncate(model.prompts["a"], 4)
    assert_numbers(same, grown, model)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_truncation_keeps_the_weight(method):
    model = prompted("llama", method).eval()
    text = random_text(9, 1)
    model.prompts.set_weight("a", 0.25)
    model.prompts.add("same", zoo.truncate(model.prompts["a"], 4))
    assert torch.equal(model(text, prompts="same").logits, model(text, prompts="a").logits)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_truncation_keeps_the_tokens_that_carry_the_attention(architecture):
    """The order is that of `inspect`, whose numbers test_inspection.py holds to the base model's."""
    model = prompted(architecture, "prefix_tuning", (5, 1, 1))
    states = model.prompts["a"].merged_tokens(model.prompts.backbone)
    text = batch(model)
    shares = zoo.inspect(model, "a", inputs=text)["a"].attention.tokens
    order = torch.cat(list(shares.values())).mean(dim=0).argsort(descending=True)[:2].sort().values
    shorter = zoo.truncate(model.prompts["a"], 2, inputs=text, model=model)
    flat = {site: zoo.flatten_layers(of_site) for site, of_site in states.sites.items()}
    assert_numbers(shorter, {site: part[order] for site, part in flat.items()}, model)


def test_truncation_keeps_planted_tokens():
    """Two tokens whose keys are the mean query of the text, large; the others' are zero."""
    model = prompted("llama", "prefix_tuning", (5, 1, 1))
    text = batch(model, "right")
    site = model.prompts["a"].merged_tokens(model.prompts.backbone).sites["decoder"]
    best, best_share = None, 0.0
    for sign in (1, -1):
        keys = [torch.zeros_like(layer) for layer in site.keys]
        for layer in keys:
            layer[:, [1, 4]] = sign * 20.0
        model.prompts["a"].learned = PlainTokens(
            {"decoder": zoo.flatten_layers(zoo.SiteTokens(tuple(keys), site.values))}
        )
        with torch.no_grad():
            model.set_attn_implementation("eager")
            weights = model(**text, prompts=["a"] * 3, output_attentions=True).attentions
        share = float(1 - torch.stack(weights).sum(-1).mean())
        if share > best_share:
            best, best_share = model.prompts["a"].learned, share
    model.prompts["a"].learned = best
    expected = tensors(model.prompts["a"], model)["decoder"][[1, 4]]
    assert_numbers(zoo.truncate(model.prompts["a"], 2, inputs=text, model=model), {"decoder": expected}, model)


def test_truncation_refuses(llama_adapter):
    model = prompted("llama", "prompt_tuning")
    a = model.prompts["a"]
    text = batch(model)
    for arguments, error, message in [
        ({"num_virtual_tokens": 0}, ValueError, "at least 1"),
        ({"num_virtual_tokens": 5}, ValueError, "num_virtual_tokens is 5; the prompt has 4 tokens"),
        ({"by": "luck"}, ValueError, "by is 'luck'"),
        ({"by": "attention"}, ValueError, "by='attention' needs inputs"),
        ({"by": "norm", "inputs": text}, ValueError, "by='norm' takes no inputs"),
        ({"inputs": text}, ValueError, "model=…"),
        ({"inputs": text, "model": prompted("llama", "prompt_tuning")}, ValueError, "none of the model's prompts"),
    ]:
        with pytest.raises(error, match=message):
            zoo.truncate(a, **{"num_virtual_tokens": 2, **arguments})
    gated = prompted("llama", "llama_adapter")
    with pytest.raises(zoo.UnsupportedError, match="it is gated"):
        zoo.truncate(gated.prompts["a"], 2, inputs=text, model=gated)
    assert zoo.truncate(gated.prompts["a"], 2).num_virtual_tokens == 2


# Comparisons


def test_similarity_is_the_papers():
    model = prompted("llama", "prompt_tuning", (2, 3, 1))
    a = plain(model, "a", [(1.0, 0.0), (0.0, 3.0)])
    b = plain(model, "b", [(1.0, 1.0), (2.0, 0.0), (0.0, -1.0)])
    half = 1 / math.sqrt(2)
    assert zoo.similarity(a, b, "tokens") == pytest.approx((half + 1 + 0 + half + 0 - 1) / 6, abs=1e-6)
    assert zoo.similarity(a, b) == pytest.approx(
        float(functional.cosine_similarity(torch.tensor([0.5, 1.5]), torch.tensor([1.0, 0.0]), dim=0)), abs=1e-6
    )
    assert zoo.similarity(a, a) == pytest.approx(1, abs=1e-6)
    for seed in range(20):  # rounding may not lead beyond
        rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(seed)).tolist()
        one = plain(model, "a", rows)
        assert 0.999 < zoo.similarity(one, one) <= 1
    with pytest.raises(ValueError, match="how is 'max'"):
        zoo.similarity(a, b, "max")


@everywhere
def test_the_nearest_prompt_comes_first(architecture, method, tmp_path):
    model = prompted(architecture, method)
    near = zoo.blend([model.prompts["a"], model.prompts["b"]], [0.95, 0.05])
    model.prompts.add("near", near)
    ranked = zoo.most_similar(model.prompts["a"], model.prompts)
    assert ranked[0][0] == "near"
    assert sorted(name for name, _ in ranked) == ["b", "c", "near"]
    assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)
    with pytest.raises(ValueError, match="no prompt but the given one"):
        zoo.most_similar(near, {"self": near})
    with pytest.raises(TypeError, match="give prompts by name"):
        zoo.most_similar(near, [near])
    model.prompts.activate("near")
    model.save_pretrained(tmp_path / "one")
    with pytest.raises(zoo.CheckpointError, match="is not a folder"):
        zoo.most_similar(near, [tmp_path / "two"])
    with pytest.raises(ValueError, match="no prompt but the given one"):
        zoo.most_similar(str(tmp_path / "one"), [tmp_path / "one"], model=model)
