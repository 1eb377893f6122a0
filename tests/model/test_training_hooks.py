"""Optional hooks: a method's own loss, a correction after an optimizer step, groups of parameters."""

import copy
import dataclasses
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

import softprompt_zoo as zoo
from softprompt_zoo.methods import prompt_tuning
from softprompt_zoo.model.language_head import predict
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.checks import without_dropout
from softprompt_zoo.testing.subject import Subject, random_text

CAUSAL = ["gpt2", "llama", "gemma3"]
SIZES = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


class Learner:
    """Prompt tuning that records what its optional hooks are given."""

    NAME = "learner"
    scale = 2.0

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(prompt_tuning.Config):
        """Options."""

    Parameters = prompt_tuning.Parameters

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters):
        return zoo.InputTokens(parameters.embeddings)

    @zoo.hookimpl
    def training_loss(self, step):
        self.steps.append(step)
        return step.loss * self.scale

    @zoo.hookimpl
    def after_step(self, parameters):
        parameters.embeddings.clamp_(-0.1, 0.1)

    @zoo.hookimpl
    def parameter_groups(self, parameters, learning_rate):
        return [{"params": [parameters.embeddings], "lr": learning_rate * 3}]


@pytest.fixture
def learner():
    plugin = Learner()
    plugin.steps = []
    zoo.register(plugin)
    yield plugin
    zoo.unregister("learner")


def trained(architecture, **options):
    subject = Subject.prompted(architecture, "learner", {"num_virtual_tokens": 4, **options})
    subject.model.train()
    without_dropout(subject)
    return subject


TEXT = random_text(7, 1)


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_the_loss_is_replaced_in_training_only(learner, architecture):
    subject = trained(architecture)
    loss = subject.loss(TEXT)
    [step] = learner.steps
    torch.testing.assert_close(loss, 2 * step.loss)
    loss.backward()
    assert subject.model.prompts["default"].learned.embeddings.grad.abs().max() > 0
    subject.model.eval()
    torch.testing.assert_close(subject.loss(TEXT), step.loss)
    assert len(learner.steps) == 1


def test_without_labels_there_is_no_loss_to_replace(learner):
    subject = trained("llama")
    with pytest.warns(UserWarning, match="it was given no labels"):
        assert subject.model(input_ids=TEXT).get("loss") is None
    assert not learner.steps


def test_a_frozen_prompt_leaves_the_loss_to_what_is_trained_beside_it(learner):
    subject = trained("llama")
    subject.model.prompts["default"].requires_grad_(False)
    subject.model.prompts.add("trained", "prefix_tuning", num_virtual_tokens=3)
    subject.model.prompts.activate("default", "trained")
    loss = subject.loss(TEXT)
    loss.backward()
    assert not learner.steps
    subject.model.eval()
    torch.testing.assert_close(loss, subject.loss(TEXT))
    trained_parameters = subject.model.prompts["trained"].parameters()
    assert all(parameter.grad.abs().max() > 0 for parameter in trained_parameters)


def test_hidden_states_are_shown_to_those_who_asked(learner):
    subject = trained("llama")
    shown = subject.model(input_ids=TEXT, labels=TEXT)
    assert shown.hidden_states is None
    assert subject.model(input_ids=TEXT, labels=TEXT, output_hidden_states=True).hidden_states is not None
    as_tuple = subject.model(input_ids=TEXT, labels=TEXT, return_dict=False)
    torch.testing.assert_close(as_tuple[0], shown.loss)
    assert as_tuple[1].shape == shown.logits.shape


@pytest.mark.parametrize("architecture", CAUSAL)
def test_virtual_logits_are_those_of_real_tokens(learner, architecture):
    base = Subject(architecture, tiny_model(architecture))
    subject = trained(architecture)
    ids = random_text(4, 2)
    with torch.no_grad():
        subject.model.prompts["default"].learned.embeddings.copy_(subject.model.prompts.backbone.embed(ids[0]))
    subject.loss(TEXT)
    logits = learner.steps[0].virtual_logits()
    expected = base.logits(torch.cat([ids, TEXT], dim=1))[0, :4]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    logits.sum().backward()
    assert subject.model.prompts["default"].learned.embeddings.grad.abs().max() > 0


@pytest.mark.parametrize(
    "model",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=0.5, **SIZES, **HEADS)),
        lambda: CohereForCausalLM(CohereConfig(logit_scale=0.3, **SIZES, num_attention_heads=4, num_key_value_heads=2)),
        lambda: GraniteForCausalLM(
            GraniteConfig(logits_scaling=7.0, **SIZES, num_attention_heads=4, num_key_value_heads=2)
        ),
    ],
    ids=["gemma2", "cohere", "granite"],
)
def test_heads_that_scale_their_logits(model):
    model = model().eval()
    with torch.no_grad():
        states = model.model(TEXT).last_hidden_state
        torch.testing.assert_close(predict(model, states), model(TEXT).logits)
        assert not torch.allclose(model.get_output_embeddings()(states), model(TEXT).logits)


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_the_model_runs_again_with_other_tokens(learner, architecture):
    base = Subject(architecture, tiny_model(architecture))
    subject = trained(architecture)
    subject.loss(TEXT)
    [step] = learner.steps
    labels = step.inputs["labels"]
    arguments = {"labels": labels} if subject.is_encoder_decoder else {}
    bare = step.run(None)
    torch.testing.assert_close(bare.logits, base.logits(TEXT, **arguments))
    assert not bare.logits.requires_grad
    torch.testing.assert_close(step.run(None, input_ids=TEXT + 1).logits, base.logits(TEXT + 1, **arguments))
    other = torch.randn(9, 32)
    zoo.get_method("prompt")(base.model, num_virtual_tokens=9)
    with torch.no_grad():
        base.model.prompts["default"].learned.embeddings.copy_(other)
    again = step.run(zoo.InputTokens(other))
    torch.testing.assert_close(again.logits, base.logits(TEXT, **arguments))
    states = again.decoder_hidden_states if subject.is_encoder_decoder else again.hidden_states
    assert len(states) == 3
    assert subject.model.training
    assert all(module.training for module in subject.model.modules())


def test_every_row_must_have_the_prompt(learner):
    subject = trained("llama")
    rows = torch.cat([TEXT, TEXT])
    with pytest.raises(zoo.UnsupportedError, match=r"prompt 'default' has its own training loss \(learner\)"):
        subject.model(input_ids=rows, labels=rows, prompts=["default", None])


@pytest.mark.parametrize("architecture", CAUSAL)
def test_virtual_logits_in_front_of_another_prompt(learner, architecture):
    base = Subject(architecture, tiny_model(architecture))
    subject = trained(architecture)
    subject.model.prompts.add("behind", "prompt", num_virtual_tokens=3)
    subject.model.prompts.add("prefix", "prefix", num_virtual_tokens=2)
    ids, more = random_text(4, 2), random_text(3, 3)
    with torch.no_grad():
        for name, words in (("default", ids), ("behind", more)):
            subject.model.prompts[name].learned.embeddings.copy_(subject.model.prompts.backbone.embed(words[0]))
    expected = base.logits(torch.cat([ids, more, TEXT], dim=1))[0]
    for active in (("default",), ("default", "behind"), ("default", "prefix"), ("default", "prefix", "behind")):
        subject.model.prompts.activate(*active)
        subject.loss(TEXT)
        step = learner.steps.pop()
        torch.testing.assert_close(step.virtual_logits(), expected[:4], rtol=1e-4, atol=1e-4)
        first = step.first_logits()
        if active == ("default",):
            torch.testing.assert_close(first, expected[3], rtol=1e-4, atol=1e-4)
        elif active == ("default", "behind"):
            torch.testing.assert_close(first, expected[6], rtol=1e-4, atol=1e-4)
        else:
            assert (first is None) == (active[-1] == "prefix")


def test_virtual_logits_are_those_of_every_row(learner):
    subject = trained("llama")
    subject.model.prompts.add("other", "prompt", num_virtual_tokens=2)
    rows = torch.cat([TEXT, TEXT])
    subject.model(input_ids=rows, labels=rows, prompts=["default", ["default", "other"]])
    for logits in (learner.steps[0].virtual_logits, learner.steps[0].first_logits):
        with pytest.raises(zoo.UnsupportedError, match="the same in every row"):
            logits()


@pytest.mark.parametrize("is_copied", [False, True])
def test_parameters_are_corrected_after_every_step(learner, is_copied):
    subject = trained("llama", init="random")
    other = trained("llama", init="random")
    if is_copied:
        subject.model = copy.deepcopy(subject.model)
    before = other.model.prompts["default"].learned.embeddings.clone()
    assert before.abs().max() > 0.1
    other.loss(TEXT)
    subject.train(1)
    assert subject.model.prompts["default"].learned.embeddings.abs().max() <= 0.1
    assert torch.equal(other.model.prompts["default"].learned.embeddings, before)


def test_groups_have_the_rates_that_methods_ask_for(learner):
    subject = trained("llama")
    subject.model.prompts.add("plain", "prefix", num_virtual_tokens=2)
    own, rest = subject.model.prompts.parameter_groups(0.5)
    assert own["lr"] == 1.5
    assert rest["lr"] == 0.5
    assert own["params"] == [subject.model.prompts["default"].learned.embeddings]
    assert rest["params"] == list(subject.model.prompts["plain"].parameters())
    subject.model.prompts["plain"].requires_grad_(False)
    assert len(subject.model.prompts.parameter_groups(0.5)) == 1


PARTS = {name: getattr(prompt_tuning, name) for name in ("Config", "Parameters", "build_virtual_tokens")}


def learning(**hooks):
    """Return a model in training mode whose prompt is prompt tuning with these optional hooks."""
    zoo.register(types.SimpleNamespace(**PARTS, **hooks), "learning")
    try:
        return zoo.get_method("learning")(tiny_model("llama"), num_virtual_tokens=4).train()
    finally:
        zoo.unregister("learning")


@pytest.mark.parametrize("make", [iter, tuple, lambda parameters: next(iter(parameters))])
def test_groups_may_hold_what_torch_takes_for_parameters(make):
    @zoo.hookimpl
    def parameter_groups(parameters, learning_rate):
        return [{"params": make(parameters.parameters()), "lr": learning_rate * 3}]

    model = learning(parameter_groups=parameter_groups)
    table = model.prompts["default"].learned.embeddings
    assert model.prompts.parameter_groups(0.5) == [{"params": [table], "lr": 1.5}]
    optimizer = torch.optim.SGD(model.prompts.parameter_groups(0.5))
    before = table.detach().clone()
    model(TEXT, labels=TEXT).loss.backward()
    optimizer.step()
    assert not torch.equal(table, before)


@pytest.mark.parametrize(
    ("result", "reason"),
    [({"params": []}, "a group that is str"), ([torch.ones(1)], "a group that is Tensor"), ([{"lr": 1}], "dict")],
)
def test_groups_that_are_none_are_told(result, reason):
    model = learning(parameter_groups=zoo.hookimpl(lambda: result))
    text = (
        rf"^method 'learning' \(zoo.register\), hook 'parameter_groups', returned .*{reason}; expected a list of dict"
    )
    with pytest.raises(zoo.PluginError, match=text):
        model.prompts.parameter_groups(0.5)


@pytest.mark.parametrize(
    ("result", "reason"),
    [(3.5, "float"), (torch.ones(2), r"a tensor of shape \(2,\)"), ((torch.ones(()), {}), "tuple")],
)
def test_a_loss_that_is_no_scalar_is_told(result, reason):
    model = learning(training_loss=zoo.hookimpl(lambda: result))
    text = rf"^method 'learning' \(zoo.register\), hook 'training_loss', returned {reason}; expected a scalar tensor"
    with pytest.raises(zoo.PluginError, match=text):
        model(TEXT, labels=TEXT)


def test_peft_files_of_another_type_are_told(tmp_path):
    model = learning(write_peft=zoo.hookimpl(lambda: {}))
    text = r"method 'learning' \(zoo.register\), hook 'write_peft', returned dict; expected a softprompt_zoo.PeftFiles"
    with pytest.raises(zoo.PluginError, match=rf"^{text}"):
        zoo.export(model, tmp_path / "peft", to="peft")
    with pytest.warns(UserWarning, match=text):
        model.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").exists()


def test_a_peft_prompt_of_another_type_is_told(tmp_path):
    zoo.export(zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=4), tmp_path, to="peft")
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace("PROMPT_TUNING", "LEARNING"))
    tensors = tmp_path / "adapter_model.safetensors"
    save_file(load_file(tensors), tensors)  # as PEFT writes it
    reader = types.SimpleNamespace(**PARTS, read_peft=zoo.hookimpl(lambda: {}), PEFT_TYPES=("LEARNING",))
    zoo.register(reader, "learning")
    try:
        with pytest.raises(zoo.PluginError, match="hook 'read_peft', returned dict; expected a "):
            zoo.load(tiny_model("llama"), tmp_path)
    finally:
        zoo.unregister("learning")
