"""Training runs that share batches: each gives what transformers' Trainer gives for it alone."""

import math

import pytest
import torch
from helpers.tiny_runs import save_tiny, write_rows
from transformers import TrainerCallback, set_seed

import softprompt_zoo as zoo
from softprompt_zoo.examples import read_examples
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.training.base import Base
from softprompt_zoo.training.evaluation import Evaluator
from softprompt_zoo.training.objectives.writing import Writing
from softprompt_zoo.training.together.training import train_together
from softprompt_zoo.training.trainer import RunTrainer


class Data:
    """Rows for a tiny model, and an evaluator for validation."""

    def __init__(self, folder, architecture="llama"):
        save_tiny(folder / "model", architecture)
        base = Base(str(folder / "model"))
        objective = Writing(base, "{input} :")
        self.folder, self.architecture = folder, architecture
        self.rows = objective.rows(read_examples(write_rows(folder / "train.jsonl", 10)))
        self.evaluator = Evaluator(read_examples(write_rows(folder / "validation.jsonl", 3, seed=1)), objective, 1)

    def runs(self, method, changes):
        """Return the options and the training arguments of each run, by name."""
        chosen = {"max_steps": 6, "per_device_train_batch_size": 4, "eval_strategy": "steps", "eval_steps": 3}
        fixed = {"save_strategy": "no", "logging_steps": 1, "logging_nan_inf_filter": False}
        fixed |= {"remove_unused_columns": False, "dataloader_pin_memory": False, "disable_tqdm": True}
        runs = {}
        for index, (options, changed) in enumerate(changes):
            folder = str(self.folder / "together")
            arguments = zoo.get_method(method).training_arguments(folder, **{**fixed, **chosen, **changed})
            runs[f"run{index}"] = {"num_virtual_tokens": 3, **options}, arguments
        return runs

    def model(self):
        """Return the tiny model without dropout, whose random numbers would differ between runs together and alone."""
        model = tiny_model(self.architecture)
        for name in vars(model.config):
            if "dropout" in name:
                setattr(model.config, name, 0.0)
        without = type(model)(model.config)
        without.load_state_dict(model.state_dict())
        return without.eval()

    def alone(self, method, run, callbacks=()):
        """Return the learned tensors and the history of a run by itself."""
        options, arguments = run
        model = self.model()
        set_seed(arguments.seed)
        zoo.get_method(method)(model, **options)
        trainer = RunTrainer(
            self.evaluator,
            model=model,
            args=arguments,
            train_dataset=self.rows,
            eval_dataset=self.rows,
            data_collator=self.evaluator.objective.collate,
            callbacks=list(callbacks),
        )
        trainer.train()
        return learned(model, "default"), [entry for entry in trainer.state.log_history if "train_loss" not in entry]

    def together(self, method, runs, **options):
        model = self.model()
        for name, (own, arguments) in runs.items():
            set_seed(arguments.seed)
            zoo.get_method(method)(model, name=name, **own)
        arguments = {name: own for name, (_, own) in runs.items()}
        collate, validate = self.evaluator.objective.collate, self.evaluator.loss
        histories = train_together(model, arguments, self.rows, collate, validate=validate, **options)
        return {name: (learned(model, name), histories[name]) for name in runs}


def learned(model, name):
    return {key: tensor.detach().clone() for key, tensor in model.prompts[name].learned.state_dict().items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Data(tmp_path_factory.mktemp("data"))


def assert_same(together, alone):
    (tensors, history), (expected, log) = together, alone
    for key, tensor in expected.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=0, atol=1e-5, equal_nan=True)
    assert len(history) == len(log)
    for entry, other in zip(history, log, strict=True):
        assert entry == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)


RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
TRIALS = {
    "eight rates": ("prompt", [({}, {"learning_rate": rate}) for rate in RATES]),
    "lengths, starts and seeds": (
        "prompt",
        [
            ({"num_virtual_tokens": 2}, {}),
            ({"num_virtual_tokens": 7}, {"seed": 3}),
            ({"num_virtual_tokens": 4, "init": "random"}, {"seed": 5, "learning_rate": 0.05}),
        ],
    ),
    "prefixes": ("prefix", [({"num_virtual_tokens": count}, {"seed": count}) for count in (2, 5)]),
    "recomputed": ("prompt", [({}, {"learning_rate": rate, "gradient_checkpointing": True}) for rate in (0.01, 0.1)]),
    "reparameterized": ("p-tuning", [({"num_virtual_tokens": count}, {"seed": count}) for count in (3, 4)]),
}


@pytest.mark.parametrize("trials", TRIALS)
def test_each_becomes_what_it_becomes_alone(data, trials):
    method, changes = TRIALS[trials]
    runs = data.runs(method, changes)
    together = data.together(method, runs)
    for name, run in runs.items():
        assert_same(together[name], data.alone(method, run))


def test_an_encoder_decoder_whose_loss_is_taken_of_its_logits(tmp_path):
    data = Data(tmp_path, "t5")
    runs = data.runs("prompt", [({}, {"learning_rate": 0.01}), ({}, {"learning_rate": 0.03, "seed": 2})])
    together = data.together("prompt", runs)
    for name, run in runs.items():
        assert_same(together[name], data.alone("prompt", run))


class Overflow(TrainerCallback):
    """A callback that makes a prompt infinite after a step."""

    def __init__(self, name, step=2):
        self.name, self.step = name, step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                for parameter in model.prompts[self.name].parameters():
                    parameter.fill_(math.inf)


def test_one_that_diverges_does_not_touch_the_others(data):
    runs = data.runs("prefix", [({}, {"learning_rate": rate, "max_steps": 5}) for rate in (1e-3, 1e-2, 1e-1)])
    together = data.together("prefix", runs, callbacks=[Overflow("run1")])
    for name in ("run0", "run2"):
        assert_same(together[name], data.alone("prefix", runs[name]))
    tensors, log = data.alone("prefix", runs["run1"], [Overflow("default")])
    assert all(bool(tensor.isnan().all()) for tensor in tensors.values())
    losses = [[entry.get("loss", entry.get("eval_loss")) for entry in one] for one in (together["run1"][1], log)]
    torch.testing.assert_close(*map(torch.tensor, losses), equal_nan=True)
    assert all(bool(tensor.isnan().all()) for tensor in together["run1"][0].values())


def test_a_stopped_training_goes_on_as_if_it_had_not_been(data, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    runs = data.runs("prompt", [({}, {"learning_rate": rate, "seed": 1, **saving}) for rate in (1e-3, 0.1)])
    for _, arguments in runs.values():
        arguments.output_dir = str(tmp_path)
    whole = data.together("prompt", runs)
    resumed = data.together("prompt", runs, checkpoint=tmp_path / "checkpoint-4")
    for name in runs:
        assert resumed[name][1] == whole[name][1]
        for key, tensor in whole[name][0].items():
            assert torch.equal(resumed[name][0][key], tensor)


REFUSED = {
    "draws random numbers": ("prefix", [({"dropout": 0.5}, {})] * 2),
    "run0 and run1 cannot be trained together: their max_steps is 6 and 5": (
        "prompt",
        [({}, {}), ({}, {"max_steps": 5})],
    ),
    "gradient_accumulation_steps is 2; shared batches need": ("prompt", [({}, {"gradient_accumulation_steps": 2})]),
    "max_steps of run0 is -1; set the number of": ("prompt", [({}, {"max_steps": -1, "num_train_epochs": 1})]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_another_training_is_refused(data, message):
    method, changes = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        data.together(method, data.runs(method, changes))


def test_arguments_of_other_prompts_are_refused(data):
    model = zoo.get_method("prompt")(data.model(), num_virtual_tokens=2)
    with pytest.raises(ValueError, match="arguments has nothing, but the model has the prompts default"):
        train_together(model, {}, data.rows, data.evaluator.objective.collate)
