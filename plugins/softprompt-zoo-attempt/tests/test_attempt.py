"""ATTEMPT against its equation, and where its sources come from."""

import json
import math

import pytest
import torch
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXT = torch.tensor([[4, 9, 30, 7, 55, 12]])
TOKENS, HIDDEN = 3, 32


def sources(count=2, tokens=TOKENS, hidden=HIDDEN):
    return 0.4 * torch.randn(count, tokens, hidden, generator=torch.Generator().manual_seed(7))


def attach(architecture="llama", **options):
    torch.manual_seed(0)
    options = {"num_virtual_tokens": TOKENS, "sources": sources(), "bottleneck_size": 6, **options}
    return zoo.get_method("attempt")(tiny_model(architecture), **options)


def learned(model, name="default"):
    return model.prompts[name].learned


def built(model, name="default"):
    return model.prompts[name].place(model.prompts.backbone).tokens.embeddings


def disturb(prompt):
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def trained_prompts(count=2, method="prompt_tuning", **options):
    """Return a model with `count` plain prompts, named s0, s1, …"""
    torch.manual_seed(5)
    model = tiny_model("llama")
    for index in range(count):
        if hasattr(model, "prompts"):
            model.prompts.add(f"s{index}", method, num_virtual_tokens=TOKENS, **options)
        else:
            zoo.get_method(method)(model, f"s{index}", num_virtual_tokens=TOKENS, **options)
        disturb(model.prompts[f"s{index}"])
    return model


def test_the_mixture_by_hand():
    """Two sources of two tokens; the numbers of the attention are worked out in the comments."""
    given = torch.zeros(2, 2, HIDDEN)
    given[0, :, 0] = torch.tensor([1.0, 3.0])  # key: 3 at feature 0
    given[1, :, 1] = torch.tensor([2.0, -5.0])  # key: 2 at feature 1
    model = attach(num_virtual_tokens=2, sources=given, temperature=2.0)
    parameters = learned(model)
    with torch.no_grad():
        parameters.target.zero_()
        parameters.target[:, 0] = torch.tensor([-4.0, 1.0])  # key: 1 at feature 0
        parameters.norm.weight.zero_()  # so the query is the bias
        parameters.norm.bias.zero_()
        parameters.norm.bias[0] = 2 * math.log(2)  # scores / 2: 3 log 2, 0, 1 log 2
    expected = torch.tensor([8 / 11, 1 / 11, 2 / 11])
    assert torch.allclose(parameters.attention(), expected)
    tokens = built(model)
    # target + 8/11 source 0 + 1/11 source 1 + 2/11 target
    assert torch.allclose(tokens[:, 0], torch.tensor([-4 + 8 / 11 - 8 / 11, 1 + 24 / 11 + 2 / 11]))
    assert torch.allclose(tokens[:, 1], torch.tensor([2 / 11, -5 / 11]))
    assert not tokens[:, 2:].any()


@pytest.mark.parametrize("temperature", [None, 0.7])
@torch.no_grad()
def test_the_equation(temperature):
    """Computed with torch's own modules, one source after another."""
    model = attach(temperature=temperature)
    disturb(model.prompts["default"])
    state = learned(model).state_dict()
    hidden = state["up.weight"] @ nn.SiLU()(state["down.weight"] @ state["input"])
    query = nn.functional.layer_norm(hidden, (HIDDEN,), state["norm.weight"], state["norm.bias"])
    prompts = [*sources(), state["target"]]
    keys = [prompt.max(dim=0).values for prompt in prompts]
    if temperature is None:
        temperature = math.e * sum(float(key.norm()) for key in keys[:2]) / 2
    powers = [math.exp(float(key @ query) / temperature) for key in keys]
    expected = state["target"] + sum(power / sum(powers) * p for power, p in zip(powers, prompts, strict=True))
    assert torch.allclose(built(model), expected, atol=1e-6)
    assert max(powers) > 1.1 * min(powers)


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_gradients_reach_all_but_the_sources(architecture):
    model = attach(architecture).train()
    decoder = {"decoder_input_ids": TEXT} if architecture == "t5" else {}
    model(input_ids=TEXT, **decoder).logits.square().sum().backward()
    names = {"target", "input", "down.weight", "up.weight", "norm.weight", "norm.bias"}
    found = dict(learned(model).named_parameters())
    assert found.keys() == names
    for name, parameter in found.items():
        assert parameter.grad.abs().max() > 0, name
    assert not learned(model).sources.requires_grad
    hidden, bottleneck = HIDDEN, 6
    assert model.prompts["default"].num_parameters == TOKENS * hidden + 2 * hidden * bottleneck + 3 * hidden


def test_training_moves_the_attention_and_not_the_sources():
    model = attach().train()
    before, attention = learned(model).sources.clone(), learned(model).attention().detach()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=TEXT, labels=TEXT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(learned(model).sources, before)
    assert (learned(model).attention() - attention).abs().max() > 1e-2


def test_the_temperature_follows_the_scale_of_the_sources():
    """Embeddings ten times larger give the same attention; with a given temperature, they do not."""
    attentions = {}
    for temperature in (None, 1.0):
        for scale in (1.0, 10.0):
            model = attach(sources=scale * sources(), temperature=temperature)
            with torch.no_grad():
                learned(model).target.fill_(scale)
                learned(model).norm.weight.zero_()
                learned(model).norm.bias.copy_(torch.linspace(-1, 1, HIDDEN))
            attentions[temperature, scale] = learned(model).attention()
    assert torch.allclose(attentions[None, 1.0], attentions[None, 10.0], atol=1e-6)
    assert not torch.allclose(attentions[1.0, 1.0], attentions[1.0, 10.0], atol=1e-2)


def test_the_mean_start_is_the_mean_of_the_sources_where_attention_is_equal():
    model = attach(init="mean", sources=sources(3), temperature=1e6)
    assert torch.allclose(learned(model).attention(), torch.full((4,), 1 / 4), atol=1e-4)
    assert torch.allclose(built(model), sources(3).mean(dim=0), atol=1e-4)


def test_the_target_starts_from_words_or_from_another_prompt(tmp_path):
    model = attach("gpt2")
    table = model.get_input_embeddings().weight
    for row in learned(model).target:
        assert (table == row).all(dim=1).any()
    plain = trained_prompts(1)
    plain.save_pretrained(tmp_path)
    expected = plain.prompts["s0"].learned.embeddings
    for init in (plain.prompts["s0"], tmp_path):
        assert torch.equal(learned(attach(init=init)).target, expected)
    keys_and_values = trained_prompts(1, "prefix_tuning").prompts["s0"]
    with pytest.raises(zoo.UnsupportedError, match="attempt cannot start from keys and values"):
        attach(init=keys_and_values)


# Where sources come from


def test_prompts_folders_and_tensors_give_the_same_sources(tmp_path):
    model = trained_prompts()
    expected = torch.stack([model.prompts[name].learned.embeddings for name in ("s0", "s1")]).detach()
    zoo.export(model, tmp_path / "s0", to="peft", name="s0")
    model.prompts.activate("s1")
    model.save_pretrained(tmp_path / "s1")
    folders = [tmp_path / "s0", str(tmp_path / "s1")]
    for given in (list(model.prompts.values()), folders, expected):
        assert torch.equal(learned(attach(sources=given)).sources, expected)
    mixed = attach(sources=(model.prompts["s0"], folders[1]))
    assert torch.equal(learned(mixed).sources, expected)
    assert mixed.prompts["default"].config.num_sources == 2


def test_sources_are_copies_of_what_the_prompts_give():
    """Those of P-tuning come out of its network, and later training of a source does not reach the mixture."""
    model = trained_prompts(2, "p_tuning")
    expected = torch.stack([built(model, name) for name in ("s0", "s1")]).detach()
    model.prompts.add("mixture", "attempt", num_virtual_tokens=TOKENS, sources=[model.prompts[n] for n in ("s0", "s1")])
    disturb(model.prompts["s0"])
    assert torch.allclose(learned(model, "mixture").sources, expected, atol=1e-6)
    model.prompts.activate("mixture")
    zoo.merge(model)
    assert model.prompts["mixture"].is_merged


def test_sampled_sources_are_words():
    model = attach("gpt2", sources="sampled")
    found, table = learned(model).sources, model.get_input_embeddings().weight
    assert found.shape == (4, TOKENS, HIDDEN)
    assert all((table == row).all(dim=1).any() for row in found.flatten(0, 1))


def test_a_saved_mixture_needs_no_source_folders(tmp_path):
    """It is loaded with its sources, gives the same numbers, and continues training as the original does."""
    model = trained_prompts()
    folders = [tmp_path / "s0", tmp_path / "s1"]
    for folder in folders:
        model.prompts.activate(folder.name)
        model.save_pretrained(folder)
    mixed = attach(sources=folders)
    disturb(mixed.prompts["default"])
    mixed.save_pretrained(tmp_path / "mixture")
    for folder in folders:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    loaded = zoo.load(tiny_model("llama"), tmp_path / "mixture", trainable=True)
    assert torch.equal(torch.rand(1), drawn), "loading drew random numbers"
    assert torch.equal(learned(loaded).sources, learned(mixed).sources)
    for one in (mixed, loaded):
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            one(input_ids=TEXT, labels=TEXT).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(loaded(TEXT).logits, mixed(TEXT).logits)
    config = json.dumps(loaded.prompts["default"].config.to_dict())
    assert '"sources": "given"' in config
    assert '"num_sources": 2' in config


# Merged, and in PEFT


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_peft_gives_the_mixtures_logits_and_it_comes_back_plain(architecture, tmp_path):
    peft = pytest.importorskip("peft")
    model = attach(architecture)
    disturb(model.prompts["default"])
    labels = {"labels": TEXT} if architecture == "t5" else {}
    expected = model(input_ids=TEXT, **labels).logits
    zoo.export(model, tmp_path, to="peft")
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["num_virtual_tokens"]) == ("PROMPT_TUNING", TOKENS)
    base = tiny_model(architecture)
    bare = base(input_ids=TEXT, **labels).logits
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path)
    logits = wrapped(input_ids=TEXT, attention_mask=torch.ones_like(TEXT), **labels).logits
    logits = logits if architecture == "t5" else logits[:, TOKENS:]
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not torch.allclose(bare, expected, atol=1e-3)
    again = zoo.load(tiny_model(architecture), tmp_path)
    assert again.prompts["default"].method == "prompt_tuning"
    assert torch.allclose(again(input_ids=TEXT, **labels).logits, expected, atol=1e-5)


def test_merged_it_is_the_mixture_alone():
    model = attach()
    disturb(model.prompts["default"])
    tokens, expected = built(model).detach(), model(TEXT).logits
    zoo.merge(model)
    assert torch.equal(learned(model).tensors["embeddings"], tokens)
    assert model.prompts["default"].num_parameters == TOKENS * HIDDEN
    assert not list(learned(model).buffers())
    assert torch.allclose(model(TEXT).logits, expected, atol=1e-6)


def test_compiles_into_one_graph():
    model = attach()
    torch._dynamo.reset()
    logits = torch.compile(model, backend="aot_eager", fullgraph=True)(TEXT).logits
    assert torch.allclose(logits, model(TEXT).logits, atol=1e-5)


def test_a_model_without_weights_takes_it():
    with torch.device("meta"):
        model = type(tiny_model("llama"))(tiny_model("llama").config)
    zoo.get_method("attempt")(model, num_virtual_tokens=TOKENS, sources="sampled", bottleneck_size=5)
    assert learned(model).sources.shape == (4, TOKENS, HIDDEN)


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        (
            {"sources": None},
            ValueError,
            r"mixes frozen prompts, but none are given; expected sources=\[…\], a list of prompts",
        ),
        ({"sources": []}, ValueError, "sources is empty; expected"),
        ({"sources": "runs/a"}, ValueError, r"sources is 'runs/a'.*put a single folder into a list, too: \['runs/a'\]"),
        ({"sources": 3}, TypeError, "sources is int; expected"),
        ({"sources": ["runs/a", 3]}, TypeError, r"sources\[1\] is int; expected a prompt or a saved folder"),
        ({"sources": torch.ones(3, 32)}, ValueError, r"tensor of shape \(3, 32\); expected"),
        ({"sources": torch.ones(2, 3, 32).long()}, ValueError, "torch.int64 tensor"),
        ({"sources": sources(hidden=16)}, zoo.UnsupportedError, r"sources\[0\] has shape \(3, 16\).*= \(3, 32\)"),
        ({"sources": sources(tokens=4)}, zoo.UnsupportedError, r"sources\[0\] has shape \(4, 32\).*= \(3, 32\)"),
        (
            {"sources": sources() * torch.tensor([1, 0])[:, None, None]},
            ValueError,
            r"sources\[1\] contains .*only zeros",
        ),
        ({"sources": sources() / torch.tensor([1, 0])[:, None, None]}, ValueError, r"sources\[1\].*non-finite"),
        ({"sources": ["no/such/folder"]}, zoo.CheckpointError, "no/such/folder"),
        ({"sources": "given", "num_sources": 2}, ValueError, "sources is 'given', which only saved prompts may have"),
        ({"num_sources": 3}, ValueError, "num_sources is 3, but 2 sources are given"),
        ({"num_sources": 0}, ValueError, "num_sources is 0"),
        ({"temperature": 0}, ValueError, "temperature is 0; expected a number above 0"),
        ({"bottleneck_size": 0}, ValueError, "bottleneck_size is 0"),
        ({"init": "text"}, ValueError, "init is 'text'; expected one of 'sampled', 'mean'"),
    ],
)
def test_bad_options_change_nothing(options, error, reason):
    model = tiny_model("llama")
    with pytest.raises(error, match=reason):
        zoo.get_method("attempt")(model, **{"num_virtual_tokens": TOKENS, "sources": sources(), **options})
    assert not hasattr(model, "prompts")
    assert all(parameter.requires_grad for parameter in model.parameters())


def keys_and_values():
    return trained_prompts(1, "prefix_tuning").prompts["s0"]


def with_tasks():
    return trained_prompts(1, "multitask_prompt_tuning", num_tasks=2).prompts["s0"]


def longer():
    return zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=5).prompts["default"]


def weighed():
    model = trained_prompts(1)
    model.prompts.set_weight("s0", 0.5)
    return model.prompts["s0"]


def of_another_width():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    return zoo.get_method("prompt_tuning")(model, num_virtual_tokens=TOKENS).prompts["default"]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (keys_and_values, r"sources\[1\] is at keys and values; give prompts at the input embeddings"),
        (with_tasks, r"sources\[1\] is a prompt with 2 tasks; export the ones you want"),
        (longer, r"sources\[1\] has 5 virtual tokens, but num_virtual_tokens is 3"),
        (weighed, r"sources\[1\] has the weight 0.5"),
        (of_another_width, r"sources\[1\] was made for a model of different sizes"),
    ],
)
def test_prompts_that_cannot_be_sources_are_named(build, reason):
    good, bad = trained_prompts(1).prompts["s0"], build()
    model = tiny_model("llama")
    with pytest.raises(zoo.UnsupportedError, match=reason):
        zoo.get_method("attempt")(model, num_virtual_tokens=TOKENS, sources=[good, bad])
    assert not hasattr(model, "prompts")
