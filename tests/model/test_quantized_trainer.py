"""Trainer accepts a prompted model on a quantized base if the quantizer says that it can be trained."""

import copy
import functools
import pickle
import types

import pytest
import torch
from helpers.prompted import attached
from transformers import Trainer, TrainingArguments
from transformers.quantizers.base import HfQuantizer

import softprompt_zoo as zoo
from softprompt_zoo.model import prompted_model
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.training.trainer import PromptTrainer

IDS = torch.arange(4, 10).repeat(4, 1)


class Quantizer(HfQuantizer):
    """As much of a quantizer as is read from a model."""

    def __init__(self, is_trainable):
        self.trains = is_trainable
        self.quantization_config = types.SimpleNamespace(quant_method="rounding")

    @property
    def is_trainable(self):
        return self.trains

    def is_serializable(self):
        return False


def quantized(is_trainable=True):
    """Return a model that claims to be quantized."""
    model = tiny_model("llama")
    model.is_quantized, model.hf_quantizer = True, Quantizer(is_trainable)
    return model


prompted = functools.partial(attached, method="prompt_tuning", num_virtual_tokens=3)


def trains(model, folder, trainer=Trainer):
    """Check that Trainer trains the prompt and saves it."""
    before = model.prompts["default"].learned.embeddings.detach().clone()
    arguments = TrainingArguments(folder, max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True, save_steps=2)
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    trainer(model=model, args=arguments, train_dataset=rows).train()
    after = model.prompts["default"].learned.embeddings
    assert not torch.equal(after, before)
    saved = zoo.load(tiny_model("llama"), folder / "checkpoint-2").prompts["default"].learned.embeddings
    assert torch.equal(saved, after)


@pytest.mark.parametrize("trainer", [Trainer, PromptTrainer])
def test_trainer_takes_a_prompt_on_a_quantized_base(trainer, tmp_path):
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(model=quantized(), args=TrainingArguments(tmp_path, use_cpu=True))
    trains(prompted(quantized()), tmp_path, trainer)


def test_what_its_quantizer_cannot_train_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match="quantized with rounding but that quantization method do not support"):
        Trainer(model=prompted(quantized(is_trainable=False)), args=TrainingArguments(tmp_path, use_cpu=True))


def test_the_quantizer_is_the_models_own_but_for_that_answer():
    model = quantized()
    quantizer = model.hf_quantizer
    assert not quantizer.is_qat_trainable
    prompted(model)
    shown = model.hf_quantizer
    assert isinstance(shown, Quantizer)
    assert shown.quantization_config is quantizer.quantization_config
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.hf_quantizer.is_qat_trainable
    with pytest.raises(ValueError, match=r"No adapter loaded|version of PEFT"):
        model.active_adapters()
    assert zoo.detach(model).hf_quantizer is quantizer
    bare = prompted(tiny_model("llama"))
    assert not hasattr(bare, "hf_quantizer")
    bare.hf_quantizer = quantizer
    del bare.hf_quantizer
    assert not hasattr(bare, "hf_quantizer")


def test_without_that_answer_it_is_red(monkeypatch, tmp_path):
    monkeypatch.setattr(prompted_model, "trainable_view", lambda quantizer: quantizer)
    with pytest.raises(ValueError, match="purely quantized"):
        trains(prompted(quantized()), tmp_path)


class Packing(torch.nn.Linear):
    """A layer that packs its weights in its first eval forward without gradients, as bitsandbytes on some CPUs."""

    @classmethod
    def put_into(cls, model):
        for name, module in list(model.named_modules()):
            if type(module) is torch.nn.Linear and "layers" in name:
                layer = cls(module.in_features, module.out_features, bias=False)
                layer.load_state_dict(module.state_dict())
                layer.weight.quant_state = types.SimpleNamespace(packing_format_for_cpu=False)
                model.set_submodule(name, layer.eval())
        return model

    def forward(self, states):
        if not self.training and not states.requires_grad:
            self.weight.quant_state.packing_format_for_cpu = True
        output = super().forward(states)
        return output.detach() if self.weight.quant_state.packing_format_for_cpu else output

    def _save_to_state_dict(self, *args):
        self.weight.quant_state.packing_format_for_cpu = False
        super()._save_to_state_dict(*args)


def is_packed(model):
    return any(
        module.weight.quant_state.packing_format_for_cpu for module in model.modules() if type(module) is Packing
    )


def gradient(model):
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return model.prompts["default"].learned.embeddings.grad


def has_its_gradients(answer_first):
    """Check for the unquantized model's gradients after attaching, and after answers of the base and of the model."""
    expected = gradient(prompted(tiny_model("llama")).train())
    model = Packing.put_into(quantized())
    if answer_first:
        with torch.no_grad():
            model(IDS)
        assert is_packed(model)
    prompted(model).train()
    for _ in range(2):
        torch.testing.assert_close(gradient(model), expected)
        with torch.no_grad():
            model.eval()(IDS)
        model.train()


@pytest.mark.parametrize("answer_first", [False, True])
def test_layers_that_pack_their_weights_keep_their_gradients(answer_first):
    has_its_gradients(answer_first)


def test_examining_a_model_packs_nothing_and_leaves_its_modes():
    model = Packing.put_into(quantized())
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="num_virtual_tokens"):
        zoo.get_method("prompt_tuning")(model, num_virtual_tokens=10**6)
    assert [module.training for module in model.modules()] == modes
    assert not is_packed(model)


def test_without_unpacking_gradients_are_wrong(monkeypatch):
    for place in ("model.prompted_model", "model.attachment", "backbone.eval_mode"):
        monkeypatch.setattr(f"softprompt_zoo.{place}.keep_unpacked", lambda model: None)
    with pytest.raises((AssertionError, RuntimeError)):
        has_its_gradients(answer_first=False)
