"""Models made with `type(model)` of a prompted model, as EMA helpers and trainers with reference models do."""

import pytest
import torch

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import random_text

TEXT = random_text(6, 1)
ARCHITECTURES = ["llama", "bert", "t5", "bloom"]


def logits(model):
    inputs = {"decoder_input_ids": TEXT} if model.config.is_encoder_decoder else {}
    return model.eval()(input_ids=TEXT, **inputs)[0]


def check_made(architecture, folder):
    own = tiny_model(architecture)
    own.save_pretrained(folder)
    model = zoo.get_method("prefix_tuning")(tiny_model(architecture), num_virtual_tokens=3)
    for made in (
        type(model)(model.config),
        type(model)(config=model.config),
        type(model)._from_config(model.config),
        type(model).from_pretrained(folder),
    ):
        assert type(made) is type(own)
        assert not hasattr(made, "prompts")
        assert all(parameter.requires_grad for parameter in made.parameters())
        made.load_state_dict(own.state_dict())
        assert torch.allclose(logits(made), logits(own), atol=1e-6)
    assert isinstance(model, type(own))
    zoo.detach(zoo.get_method("prefix_tuning")(made, num_virtual_tokens=3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_class_of_a_prompted_model_makes_models_of_its_own(architecture, tmp_path):
    check_made(architecture, tmp_path)


def test_the_check_notices_a_class_that_makes_prompted_models(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "softprompt_zoo.model.prompted_model.PromptedModel.__new__", lambda cls, *_, **__: object.__new__(cls)
    )
    with pytest.raises(AttributeError, match="_keys_to_ignore_on_save"):
        check_made("llama", tmp_path)


def test_the_class_of_a_stack_with_attention_of_its_own_makes_plain_stacks():
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = DebertaV2ForSequenceClassification(DebertaV2Config(vocab_size=128, **sizes))
    own = type(model.deberta)
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=3)
    assert type(type(model.deberta)(model.config)) is own


def test_the_class_of_a_wrapper_makes_plain_wrappers():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(tiny_model("llama"), config)
    own = type(wrapped)
    zoo.get_method("prefix_tuning")(wrapped, num_virtual_tokens=3)
    assert type(type(wrapped)(tiny_model("llama"), config)) is own
