"""Trainings that share their batches: each becomes what transformers' Trainer makes of it alone."""

import math

import pytest
import torch
from helpers.tiny_runs import save_tiny, tiny_settings, write_rows
from transformers import TrainerCallback, set_seed

import softprompt_zoo as zoo
from softprompt_zoo.examples import read_examples
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.evaluation import Evaluator
from softprompt_zoo.training.objectives.writing import Writing
from softprompt_zoo.training.together.training import train_together
from softprompt_zoo.training.trainer import make_trainer


class Data:
    """Rows for a tiny model, and what validates on them."""

    def __init__(self, folder, architecture="llama"):
        save_tiny(folder / "model", architecture)
        base = Base(str(folder / "model"))
        objective = Writing(base.tokenizer, base.is_encoder_decoder, "{input} :")
        self.folder, self.architecture = folder, architecture
        self.rows = objective.rows(read_examples(write_rows(folder / "train.jsonl", 10)))
        self.evaluator = Evaluator(read_examples(write_rows(folder / "validation.jsonl", 3, seed=1)), objective, 1)

    def runs(self, method, changes):
        recipe = zoo.get_method(method).recipe
        common = {"options": {}, "steps": 6, "batch_size": 4, "method": method}
        settings = [tiny_settings(self.folder, self.folder / "out", **{**common, **own}) for own in changes]
        return {f"run{index}": own.with_recipe(method, recipe) for index, own in enumerate(settings)}

    def model(self):
        """Return the tiny model without dropout, which would draw others together than alone."""
        model = tiny_model(self.architecture)
        for name in vars(model.config):
            if "dropout" in name:
                setattr(model.config, name, 0.0)
        without = type(model)(model.config)
        without.load_state_dict(model.state_dict())
        return without.eval()

    def alone(self, method, settings, callbacks=()):
        """Return the learned tensors and the history of a run by itself."""
        model = self.model()
        set_seed(settings.seed)
        zoo.get_method(method)(model, **settings.options)
        trainer = make_trainer(model, zoo.get_method(method), settings, self.rows, self.evaluator, callbacks)
        trainer.train()
        return learned(model, "default"), trainer.state.log_history

    def together(self, method, runs, **options):
        model = self.model()
        histories = train_together(
            model, zoo.get_method(method), runs, self.rows, self.evaluator, self.folder / "together", **options
        )
        return {name: (learned(model, name), histories[name]) for name in runs}


def learned(model, name):
    return {key: tensor.detach().clone() for key, tensor in model.prompts[name].learned.state_dict().items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Data(tmp_path_factory.mktemp("data"))


def assert_same(together, alone):
    (tensors, history), (expected, log) = together, alone
    for key, tensor in expected.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    steps = [entry for entry in log if "loss" in entry or "eval_loss" in entry]
    assert [entry["step"] for entry in history] == [entry["step"] for entry in steps]
    for entry, other in zip(history, steps, strict=True):
        own = {key: value for key, value in other.items() if not key.startswith("eval_") or key == "eval_loss"}
        assert entry == pytest.approx(own, rel=1e-4, abs=1e-5)


RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
TRIALS = {
    "eight rates": ("prompt", [{"learning_rate": rate} for rate in RATES]),
    "lengths and seeds": (
        "prompt",
        [
            {"options": {"num_virtual_tokens": 2}},
            {"options": {"num_virtual_tokens": 7}, "seed": 3},
            {"options": {"num_virtual_tokens": 4, "init": "random"}, "seed": 5, "learning_rate": 0.05},
        ],
    ),
    "prefixes": ("prefix", [{"options": {"num_virtual_tokens": n}, "seed": n} for n in (2, 5)]),
    "reparameterized": ("p-tuning", [{"options": {"num_virtual_tokens": n}, "seed": n} for n in (3, 4)]),
}


@pytest.mark.parametrize("trials", TRIALS)
def test_each_becomes_what_it_becomes_alone(data, trials):
    method, changes = TRIALS[trials]
    runs = data.runs(method, changes)
    together = data.together(method, runs)
    for name, settings in runs.items():
        assert_same(together[name], data.alone(method, settings))


def test_an_encoder_decoder_whose_loss_is_taken_of_its_logits(tmp_path):
    data = Data(tmp_path, "t5")
    runs = data.runs("prompt", [{"learning_rate": 0.01}, {"learning_rate": 0.3, "seed": 2}])
    together = data.together("prompt", runs)
    for name, settings in runs.items():
        assert_same(together[name], data.alone("prompt", settings))


class Overflow(TrainerCallback):
    """Makes a prompt infinite after a step."""

    def __init__(self, name, step=2):
        self.name, self.step = name, step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                for parameter in model.prompts[self.name].parameters():
                    parameter.fill_(math.inf)


def test_one_that_diverges_does_not_touch_the_others(data):
    runs = data.runs("prefix", [{"learning_rate": rate, "steps": 5} for rate in (1e-3, 1e-2, 1e-1)])
    together = data.together("prefix", runs, callbacks=[Overflow("run1")])
    for name in ("run0", "run2"):
        assert_same(together[name], data.alone("prefix", runs[name]))
    _, alone = data.alone("prefix", runs["run1"], [Overflow("default")])
    logs = (together["run1"][1], alone[:-1])
    losses = [[entry.get("loss", entry.get("eval_loss")) for entry in log] for log in logs]
    assert any(map(math.isnan, losses[1]))
    torch.testing.assert_close(*map(torch.tensor, losses), equal_nan=True)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(data, tmp_path):
    runs = data.runs("prompt", [{"learning_rate": 1e-3}, {"learning_rate": 0.1, "seed": 1}])
    whole = data.together("prompt", runs)
    [checkpoint] = (data.folder / "together").glob("checkpoint-4")
    resumed = data.together("prompt", runs, checkpoint=checkpoint)
    for name in runs:
        assert resumed[name][1] == whole[name][1]
        for key, tensor in whole[name][0].items():
            assert torch.equal(resumed[name][0][key], tensor)


def test_what_would_be_another_training_is_refused(data):
    model = data.model()

    def together(method, runs):
        train_together(model, zoo.get_method(method), runs, data.rows, data.evaluator, data.folder / "refused")

    with pytest.raises(zoo.UnsupportedError, match="draws random numbers"):
        together("prefix", data.runs("prefix", [{"options": {"num_virtual_tokens": 2, "dropout": 0.5}}] * 2))
    with pytest.raises(ValueError, match="run0 and run1 cannot be trained together: their steps is 6 and 5"):
        together("prompt", data.runs("prompt", [{}, {"steps": 5}]))
    with pytest.raises(ValueError, match="nothing to train together"):
        together("prompt", {})
    assert type(model) is type(tiny_model("llama"))
    assert not hasattr(model, "prompts")
