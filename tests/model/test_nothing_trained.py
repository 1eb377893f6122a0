"""A run that would train nothing is reported at its first step or earlier; other runs are not."""

import contextlib
import re
import warnings

import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from transformers import Trainer, TrainingArguments

import softprompt_zoo as zoo
from softprompt_zoo.model import untrained
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.training.trainer import PromptTrainer

IDS = torch.arange(4, 10).repeat(4, 1)
FROZEN = r"nothing is trained: .*'default' frozen; load them with zoo\.load\(…, trainable=True\)"


@pytest.fixture(autouse=True)
def nobody_else():
    untrained._UNTRAINED.clear()


@pytest.fixture
def frozen(tmp_path, request):
    """Return a function that loads a frozen prompt of a given method onto a given architecture."""

    def load(architecture="llama", method="prompt_tuning", **options):
        zoo.get_method(method)(tiny_model(architecture), num_virtual_tokens=3).save_pretrained(tmp_path / "saved")
        return zoo.load(tiny_model(architecture), tmp_path / "saved", **options)

    return load


def train(model, folder, trainer=Trainer, **options):
    arguments = TrainingArguments(folder, max_steps=2, report_to="none", use_cpu=True, save_strategy="no", **options)
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    trainer(model=model, args=arguments, train_dataset=rows).train()


def is_told(run, message=FROZEN, error=(zoo.UnsupportedError, RuntimeError)):
    """Check that a run fails, and that a warning or its error says why."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(error) as raised:
            run()
    said = "\n".join([str(raised.value), *(str(warning.message) for warning in said)])
    assert re.search(message, said), said


def step_by_hand(model, checkpointing=False, labels=True):
    """Take one step in a hand-written loop, over all parameters."""
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    output = model(input_ids=IDS, **({"labels": IDS} if labels else {}))
    (output.loss if labels else output.logits.sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("trainer", [Trainer, PromptTrainer])
@pytest.mark.parametrize(("architecture", "method"), [("llama", "prompt_tuning"), ("t5", "prefix_tuning")])
def test_trainer_with_a_frozen_prompt_is_told(frozen, architecture, method, trainer, checkpointing, tmp_path):
    model = frozen(architecture, method)
    is_told(lambda: train(model, tmp_path / "run", trainer, gradient_checkpointing=checkpointing))


@pytest.mark.parametrize("labels", [True, False])
def test_a_loop_of_ones_own_is_told(frozen, labels):
    is_told(lambda: step_by_hand(frozen(), checkpointing=True, labels=labels), error=zoo.UnsupportedError)
    is_told(lambda: step_by_hand(frozen()))


def test_a_trained_prompt_that_is_not_active_is_told(frozen, tmp_path):
    model = frozen()
    model.prompts.add("second", "prompt_tuning")
    message = "'second' can be trained but is not used"
    is_told(lambda: train(model, tmp_path / "run", gradient_checkpointing=True), message)
    model.prompts.activate("second")
    train(model, tmp_path / "run", gradient_checkpointing=True)


def test_no_active_prompt_is_told(tmp_path):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"))
    model.prompts.activate()
    message = "none active; 'default' can be trained"
    is_told(lambda: train(model, tmp_path / "run", gradient_checkpointing=True), message)


def test_without_the_look_nothing_is_told(frozen, monkeypatch, tmp_path):
    monkeypatch.setattr("softprompt_zoo.model.forward.note_training", lambda *args: None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        is_told(lambda: train(frozen(), tmp_path / "run", gradient_checkpointing=True))


def unfreeze_the_norm(model):
    model.model.norm.weight.requires_grad_(True)


def put_on_an_adapter(model):
    peft = pytest.importorskip("peft")
    needs_accepted_peft()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))


@pytest.mark.parametrize("beside", [unfreeze_the_norm, put_on_an_adapter])
def test_what_is_trained_beside_a_frozen_prompt_is_trained(frozen, beside):
    model = frozen()
    beside(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_by_hand(model)


@pytest.mark.parametrize("kind", ["no_grad", "no labels", "eval", "bare rows", "trainable", "disabled"])
def test_what_trains_nothing_on_purpose_hears_nothing(frozen, kind):
    model = frozen(trainable=kind == "trainable").train(kind != "eval")
    arguments = {"bare rows": {"prompts": [None] * len(IDS), "labels": IDS}, "no labels": {}}.get(kind, {"labels": IDS})
    contexts = {"no_grad": torch.no_grad(), "disabled": model.prompts.disabled()}
    with warnings.catch_warnings(), contexts.get(kind, contextlib.nullcontext()):
        warnings.simplefilter("error")
        model(input_ids=IDS, **arguments)


def test_another_models_optimizer_is_left_alone(frozen):
    other = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    frozen().train()(input_ids=IDS)
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.step(lambda: 0.0)
