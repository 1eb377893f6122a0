"""TRL's trainers, used as they are: they train the prompt and nothing else, on the prompted model's loss."""

import pytest
import torch
from helpers.prompted import attached
from torch.nn import functional

from softprompt_zoo.testing import tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.slow
METHODS = ["prompt_tuning", "prefix_tuning"]
OPTIONS = {
    "max_steps": 2,
    "per_device_train_batch_size": 1,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def check_what_was_trained(model, before):
    backbone = tiny_model("llama").state_dict()
    for key, value in model.state_dict().items():
        if key.startswith("prompts."):
            assert not torch.equal(value, before[key]), key
        else:
            assert torch.equal(value, backbone[key]), key


def _loss_of_logits(logits, ids):
    """Return SFT's own loss, which has no label for what the last virtual token predicts."""
    return float(functional.cross_entropy(logits[0, :-1], ids[0, 1:]))


@pytest.mark.parametrize("method", METHODS)
def test_sft(method, tmp_path):
    model = attached("llama", method)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    text = "w5 w6 w7 w8 w9"
    ids = tiny_tokenizer()(text + " [eos]", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected, base = (_loss_of_logits(one(ids).logits, ids) for one in (model.eval(), tiny_model("llama")))
    assert abs(expected - base) > 1e-2
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(str(tmp_path), **OPTIONS),
        train_dataset=dataset([{"text": text}] * 4),
        processing_class=tiny_tokenizer(),
    )
    assert trainer.model is model
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, abs=1e-3)
    check_what_was_trained(model, before)


def _answer_likelihood(model, prompt, answer):
    """Return the log-likelihood of an answer and the end of the text after a prompt, as DPO sums it."""
    before = tiny_tokenizer()(prompt, return_tensors="pt")["input_ids"].shape[1]
    ids = tiny_tokenizer()(f"{prompt}{answer} [eos]", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logs = model(ids).logits[0, before - 1 : -1].log_softmax(-1)
    return float(logs.gather(1, ids[0, before:, None]).sum())


@pytest.mark.parametrize("method", METHODS)
def test_dpo(method, tmp_path):
    """The first loss is DPO's formula on our own forward passes; the reference is the model without its prompt."""
    model = attached("llama", method)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    row = {"prompt": "w5 w6", "chosen": " w7 w8", "rejected": " w9 w10 w11"}
    gaps = [
        _answer_likelihood(one, row["prompt"], row["chosen"]) - _answer_likelihood(one, row["prompt"], row["rejected"])
        for one in (model.eval(), tiny_model("llama"))
    ]
    assert abs(gaps[0] - gaps[1]) > 0.1
    arguments = trl.DPOConfig(str(tmp_path), **OPTIONS)
    expected = float(-functional.logsigmoid(torch.tensor(arguments.beta * (gaps[0] - gaps[1]))))
    trainer = trl.DPOTrainer(
        model,
        ref_model=tiny_model("llama"),
        args=arguments,
        train_dataset=dataset([row] * 4),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, abs=1e-3)
    assert expected != pytest.approx(0.6931, abs=2e-3), "this is the loss of two equal models"
    check_what_was_trained(model, before)
