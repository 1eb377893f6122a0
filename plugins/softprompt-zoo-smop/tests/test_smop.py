"""SMoP against its equation, by hand and through the frozen model."""

import math
from types import SimpleNamespace

import pytest
import softprompt_zoo_smop as smop
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXTS = [torch.tensor([[4, 9, 30, 7, 55, 12]]), torch.tensor([[8, 3, 17]])]
TOKENS, HIDDEN, PROMPTS = 3, 32, 4
OPTIONS = {"num_virtual_tokens": TOKENS, "num_prompts": PROMPTS}


def attach(architecture="llama", **options):
    torch.manual_seed(0)
    model = zoo.get_method("smop")(tiny_model(architecture), **{**OPTIONS, **options})
    with torch.no_grad():
        for parameter in learned(model).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def learned(model):
    return model.prompts["default"].learned


def of_two_features(**options):
    """Return parameters of two one-token prompts, (1, 10) and (100, 1000), each for the texts of one feature."""
    config = smop.Config(num_virtual_tokens=1, num_prompts=2, **options)
    parameters = smop.Parameters(config, SimpleNamespace(hidden_size=2, dtype=torch.float32, device="cpu"))
    with torch.no_grad():
        parameters.prompts.copy_(torch.tensor([[[1.0, 10.0]], [[100.0, 1000.0]]]))
        parameters.router.copy_(torch.eye(2))
    return parameters.eval()


def text_of_means(*means):
    """Return texts of two tokens, one on each side of the mean, with padding between them."""
    means = torch.tensor(means)[:, None]
    embeddings = torch.cat([means + 1, torch.full_like(means, 1e6), means - 1], dim=1)
    return SimpleNamespace(embeddings=embeddings, mask=torch.tensor([[True, False, True]]).repeat(len(means), 1))


# The equation


def test_the_route_by_hand():
    """Scores (log 3, 0) and (0, log 9): probabilities 3/4 of the first prompt, 9/10 of the second."""
    tokens = of_two_features()(text_of_means([math.log(3), 0.0], [0.0, math.log(9)]))
    assert torch.allclose(tokens, torch.tensor([[[0.75, 7.5]], [[90.0, 900.0]]]))


def test_two_chosen_prompts_are_summed():
    tokens = of_two_features(num_chosen=2)(text_of_means([math.log(3), 0.0]))
    assert torch.allclose(tokens, torch.tensor([[[25.75, 257.5]]]))


def test_the_noise_is_a_share_of_each_score_and_for_training_alone():
    parameters, text = of_two_features(noise=0.5), text_of_means([math.log(3), 2.0])
    parameters.train()
    torch.manual_seed(3)
    found = parameters.probabilities(text)
    torch.manual_seed(3)
    scores = torch.tensor([[math.log(3), 2.0]]) * (1 + 0.5 * torch.randn(1, 2))
    assert torch.allclose(found, scores.exp() / scores.exp().sum())
    expected = torch.tensor([[3.0, math.exp(2)]])
    assert torch.allclose(parameters.eval().probabilities(text), expected / expected.sum())


def test_a_row_without_text_finds_the_router_undecided():
    text = text_of_means([math.log(3), 2.0])
    text.mask[:] = False
    assert torch.equal(of_two_features().probabilities(text), torch.full((1, 2), 0.5))


def test_gradients_reach_the_chosen_prompt_and_the_router():
    parameters = of_two_features()
    parameters(text_of_means([math.log(3), 0.0])).sum().backward()
    assert torch.allclose(parameters.prompts.grad[:, 0], torch.tensor([[0.75, 0.75], [0.0, 0.0]]))
    # d p0 / d scores = (p0 p1, -p0 p1); times the mean (log 3, 0), and the sum 11 of the prompt
    slope = 11 * 0.75 * 0.25 * math.log(3)
    assert torch.allclose(parameters.router.grad, torch.tensor([[slope, 0.0], [-slope, 0.0]]))


# Through the frozen model


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
@torch.no_grad()
def test_the_model_reads_what_the_equation_makes(architecture):
    """Against the base model after the tokens; the texts take different prompts."""
    model, base = attach(architecture), tiny_model(architecture)
    prompts, router = (learned(model).state_dict()[name] for name in ("prompts", "router"))
    decoder = {"decoder_input_ids": TEXTS[1]} if architecture == "t5" else {}
    taken = []
    for seed in range(6):
        text = torch.randint(3, 60, (1, 5), generator=torch.Generator().manual_seed(seed))
        words = base.get_input_embeddings()(text)
        probabilities = torch.softmax(router @ words[0].mean(dim=0), dim=0)
        taken.append(int(probabilities.argmax()))
        tokens = probabilities.max() * prompts[taken[-1]]
        expected = base(inputs_embeds=torch.cat([tokens[None], words], dim=1), **decoder).logits
        found = model(input_ids=text, **decoder).logits
        assert torch.allclose(found, expected if decoder else expected[:, TOKENS:], atol=1e-4)
    assert len(set(taken)) > 1


# The start


def test_it_starts_as_long_as_words_are_where_the_router_is_undecided():
    torch.manual_seed(0)
    model = zoo.get_method("smop")(tiny_model("gpt2"), **OPTIONS)
    table = model.get_input_embeddings().weight
    for row in learned(model).prompts.flatten(0, 1) / PROMPTS:
        assert (table == row).all(dim=1).any()
    router = learned(model).router
    assert torch.allclose(router @ router.T, torch.eye(PROMPTS), atol=1e-5)
    assert model.prompts["default"].num_parameters == PROMPTS * (TOKENS + 1) * HIDDEN


def test_it_starts_from_another_prompt():
    plain = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS).prompts["default"]
    model = zoo.get_method("smop")(tiny_model("llama"), **OPTIONS, init=plain)
    for prompt in learned(model).prompts:
        assert torch.equal(prompt, PROMPTS * plain.learned.embeddings)
    prefix = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=TOKENS).prompts["default"]
    with pytest.raises(zoo.UnsupportedError, match="smop cannot start from keys and values"):
        zoo.get_method("smop")(tiny_model("llama"), **OPTIONS, init=prefix)


# What is refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"num_chosen": 0}, "num_chosen is 0"),
        ({"num_chosen": 5}, "num_chosen is 5, but there are 4 prompts; choose at most that many"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"init": "words"}, "init is 'words'; expected one of 'sampled', 'random'"),
    ],
)
def test_bad_options_change_nothing(options, reason):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=reason):
        zoo.get_method("smop")(model, **{**OPTIONS, **options})
    assert not hasattr(model, "prompts")
    assert all(parameter.requires_grad for parameter in model.parameters())
