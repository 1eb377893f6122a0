"""Base models quantized by transformers: prompts train on them with Trainer as on the dequantized weights."""

import functools

import pytest
import torch
from helpers.prompted import attached
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import softprompt_zoo as zoo
from softprompt_zoo.training.trainer import PromptTrainer

pytestmark = pytest.mark.slow
SIZES = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
IDS = torch.randint(3, 128, (8, 9), generator=torch.Generator().manual_seed(0))


def bitsandbytes(bits):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**{f"load_in_{bits}bit": True})


def torchao():
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def quanto():
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


KINDS = {
    "bitsandbytes8": ("bitsandbytes", lambda: bitsandbytes(8)),
    "bitsandbytes4": ("bitsandbytes", lambda: bitsandbytes(4)),
    "torchao": ("torchao.quantization", torchao),
    "quanto": ("optimum.quanto", quanto),
}


@pytest.fixture(params=KINDS)
def make_base(request, tmp_path):
    """Return a function that makes the same quantized base model each time."""
    package, config = KINDS[request.param]
    pytest.importorskip(package)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **SIZES)).save_pretrained(tmp_path / "base")

    def make():
        options = {"quantization_config": config(), "device_map": "cpu", "dtype": torch.float32}
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)

    return make


prompted = functools.partial(attached, method="prompt_tuning", init="random")


def train(model, folder, trainer=Trainer, steps=4, resume=False, **options):
    options = {"save_steps": 2, "learning_rate": 0.1, "per_device_train_batch_size": 2, **options}
    arguments = TrainingArguments(folder, max_steps=steps, report_to="none", use_cpu=True, disable_tqdm=True, **options)
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    trainer = trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return {name: tensor.clone() for name, tensor in model.prompts.state_dict().items()}


def dequantized(base):
    """Build a model with the same weights, dequantized."""
    plain = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **SIZES)).eval()
    eye = torch.eye(SIZES["hidden_size"])
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, torch.nn.Linear):
                layer = base.get_submodule(name).train()  # bitsandbytes packs no layer in training mode
                module.weight.copy_(layer(eye[None])[0].T)
                layer.eval()
            elif hasattr(module, "weight"):
                module.weight.copy_(base.get_submodule(name).weight)
    return plain


def gradients(model):
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.prompts.parameters()])


@pytest.mark.parametrize("trainer", [Trainer, PromptTrainer])
def test_trainer_trains_saves_and_resumes(make_base, trainer, tmp_path):
    model = prompted(make_base())
    start = {name: tensor.clone() for name, tensor in model.prompts.state_dict().items()}
    expected = train(model, tmp_path / "whole", trainer)
    assert not any(torch.equal(expected[name], start[name]) for name in start)
    resumed = train(prompted(make_base()), tmp_path / "whole", trainer, resume=tmp_path / "whole" / "checkpoint-2")
    for name in expected:
        assert torch.equal(resumed[name], expected[name])
    loaded = zoo.load(make_base(), tmp_path / "whole" / "checkpoint-4")
    for name, tensor in loaded.prompts.state_dict().items():
        assert torch.equal(tensor, expected[name])
    with torch.no_grad():  # on a CPU, bitsandbytes packs a frozen model, which rounds
        torch.testing.assert_close(loaded.eval()(IDS).logits, model.eval()(IDS).logits, rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_gradients_are_those_of_the_dequantized_model(make_base, method, tmp_path):
    model, plain = prompted(make_base(), method=method), prompted(dequantized(make_base()), method=method)
    plain.prompts.load_state_dict(model.prompts.state_dict())
    expected = gradients(plain.train())
    for _ in range(2):
        found = gradients(model.train())
        # In the forward pass, bitsandbytes' 8 bits also round the inputs.
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.99
        torch.testing.assert_close(found.norm(), expected.norm(), rtol=0.05, atol=0)
        with torch.no_grad():
            model.eval()(IDS)  # an evaluation in between changes nothing


def test_an_evaluation_leaves_the_training_as_it_is(make_base, tmp_path):
    expected = train(prompted(make_base()), tmp_path / "plain")
    found = train(prompted(make_base()), tmp_path / "evaluated", eval_strategy="steps", eval_steps=1)
    for name in expected:
        assert torch.equal(found[name], expected[name])
