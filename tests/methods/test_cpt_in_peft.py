"""Context-aware prompts in PEFT's files and in ours."""

import json

import peft
import pytest
import torch
from helpers.contexts import CAUSAL, EXAMPLES, IDS, TEXT, TYPES, balls, batch, prompted, with_peft
from safetensors.torch import load_file, save_file

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.checks import without_dropout
from softprompt_zoo.testing.subject import Subject


@pytest.mark.parametrize("architecture", CAUSAL)
def test_peft_gives_our_logits_and_we_load_them_to_train_on(architecture, tmp_path):
    model = prompted(architecture, radius=30.0, format_radius=20.0, decay=0.7).eval()
    with torch.no_grad():
        expected = model(input_ids=TEXT).logits
        plain = tiny_model(architecture)(input_ids=TEXT).logits
    close = {"rtol": 1e-5, "atol": 1e-5 * max(1.0, expected.abs().max().item())}
    model.save_pretrained(tmp_path / "ours")
    zoo.export(model, tmp_path / "peft")
    fields = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert fields == json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert fields["peft_type"] == "CPT"
    wrapped = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "ours")
    config = wrapped.peft_config["default"]
    assert (config.cpt_token_ids, config.cpt_tokens_type_mask) == (IDS, TYPES)
    assert (config.opt_weighted_loss_type, config.opt_loss_decay_factor) == ("decay", 0.7)
    assert (config.opt_projection_epsilon, config.opt_projection_format_epsilon) == (30.0, 20.0)
    with torch.no_grad():
        found = wrapped(input_ids=TEXT, labels=None).logits[:, len(IDS) :]
        assert not torch.allclose(found, plain, atol=1e-2)
        torch.testing.assert_close(found, expected, **close)
        loaded = zoo.load(tiny_model(architecture), tmp_path / "peft", trainable=True)
        torch.testing.assert_close(loaded(input_ids=TEXT).logits, expected, **close)
    prompt = loaded.prompts["default"]
    assert prompt.method == "cpt"
    assert not prompt.is_merged
    assert torch.equal(prompt.learned.context, model.prompts["default"].learned.context)
    without_dropout(Subject(architecture, loaded))
    torch.testing.assert_close(loaded.train()(**batch()).loss, model.train()(**batch()).loss, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="the template is unknown"):
        prompt.config.encode(tiny_tokenizer(), "w5", "w6")


def test_a_merged_prompt_is_pefts_prompt_tuning(tmp_path):
    model = prompted().eval()
    expected = model(input_ids=TEXT).logits
    zoo.export(zoo.merge(model), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
    found = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path)(input_ids=TEXT).logits[:, len(IDS) :]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def trained_by_peft(directory, architecture="llama"):
    wrapped, encoder = with_peft(architecture, opt_weighted_loss_type="decay", opt_loss_decay_factor=0.9)
    optimizer = torch.optim.SGD([encoder.delta_embedding.weight], lr=1.0)
    data = batch()
    for _ in range(2):
        wrapped.train()(**data, input_type_mask=torch.where(data["labels"] == -100, 1, 4)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits = wrapped.eval()(input_ids=TEXT, labels=None).logits[:, len(IDS) :]
    wrapped.save_pretrained(directory)
    return logits


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_prompt_that_peft_trained_keeps_its_balls(architecture, tmp_path):
    expected = trained_by_peft(tmp_path, architecture)
    model = zoo.load(tiny_model(architecture), tmp_path, trainable=True)
    with torch.no_grad():
        found = model(input_ids=TEXT).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))
    prompt = model.prompts["default"]
    assert (prompt.config.radius, prompt.config.format_radius, prompt.config.decay) == (0.1, 0.1, 0.9)
    norms = prompt.learned.offsets.detach().norm(dim=1)
    torch.testing.assert_close(norms, balls(0.1, 0.1), rtol=1e-3, atol=1e-5)
    optimizer = torch.optim.SGD([prompt.learned.offsets], lr=1.0)
    model.train()(**batch()).loss.backward()
    optimizer.step()
    base = tiny_model(architecture).get_input_embeddings()(torch.tensor(IDS)).detach()
    moved = (prompt.merged_tokens(model.prompts.backbone).embeddings - base).norm(dim=1)
    assert (moved <= balls(0.1, 0.1) + 1e-5).all(), "the ball was granted again"


def test_a_prompt_of_another_base_loads_merged(tmp_path):
    trained_by_peft(tmp_path)
    tensor = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    model = zoo.load(tiny_model("llama", seed=1), tmp_path)
    assert model.prompts["default"].is_merged
    assert torch.equal(model.prompts["default"].merged_tokens(model.prompts.backbone).embeddings, tensor)
    other = peft.PeftModel.from_pretrained(tiny_model("llama", seed=1), tmp_path)
    with torch.no_grad():
        expected = other(input_ids=TEXT, labels=None).logits[:, len(IDS) :]
        torch.testing.assert_close(model(input_ids=TEXT).logits, expected, rtol=1e-5, atol=1e-4)


def test_pefts_default_types_load_merged(tmp_path):
    """All tokens have type 1, for which PEFT's own loss is NaN: the prompt can be used, but not trained."""
    config = peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[7, 8])
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    model = zoo.load(tiny_model("llama"), tmp_path)
    assert model.prompts["default"].is_merged
    with torch.no_grad():
        expected = tiny_model("llama")(input_ids=torch.cat([torch.tensor([[7, 8]]), TEXT], 1)).logits[:, 2:]
        torch.testing.assert_close(model(input_ids=TEXT).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "tensor", "error", "text"),
    [
        (
            {"cpt_token_ids": None},
            None,
            zoo.CheckpointError,
            "is inconsistent: there are 0 token_ids and 12 token_ty",
        ),
        ({"cpt_token_ids": [1.5] * 12}, None, zoo.CheckpointError, "is inconsistent: token_ids is"),
        ({"opt_projection_epsilon": -1}, None, zoo.CheckpointError, "is inconsistent: radius is -1"),
        ({}, (12, 8), zoo.BackboneMismatchError, r"prompt_embeddings of shape .*12, 8.*, expected \(12, 32\)"),
        ({}, (11, 32), zoo.BackboneMismatchError, r"prompt_embeddings of shape .*11, 32.*, expected \(12, 32\)"),
        ({}, (), zoo.BackboneMismatchError, "prompt_embeddings of shape None"),
    ],
)
def test_broken_adapters_are_refused(tmp_path, fields, tensor, error, text):
    trained_by_peft(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    if tensor is not None:
        name = "prompt_embeddings" if tensor else "other"
        save_file({name: torch.zeros(tensor or (12, 32))}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(error, match=text):
        zoo.load(tiny_model("llama"), tmp_path)


def test_an_adapter_for_another_family_is_refused(tmp_path):
    trained_by_peft(tmp_path)
    with pytest.raises(zoo.UnsupportedError, match="AutoModelForCausalLM"):
        zoo.load(tiny_model("bert"), tmp_path)


def test_a_saved_prompt_needs_no_tokenizer(tmp_path):
    model = prompted(decay=0.5, radius=3)
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("llama"), tmp_path, trainable=True).train()
    assert loaded.prompts["default"].config == model.prompts["default"].config
    assert loaded.prompts["default"].config.tokenizer is None
    assert loaded.prompts["default"].config.examples == tuple(EXAMPLES)
    assert torch.equal(loaded(**batch()).loss, model(**batch()).loss)
    row = loaded.prompts["default"].config.encode(tiny_tokenizer(), "w50", "w51 w52")
    assert row["input_ids"] == [5, 50, 6, 51, 52, 7]
    assert row["labels"] == [-100, -100, -100, 51, 52, -100]


def test_an_edited_table_does_not_move_a_saved_prompt(tmp_path):
    model = prompted().eval()
    model.save_pretrained(tmp_path)
    tokens = model.prompts["default"].merged_tokens(model.prompts.backbone).embeddings
    base = tiny_model("llama")
    with torch.no_grad():
        base.get_input_embeddings().weight.add_(1.0)
    loaded = zoo.load(base, tmp_path)
    assert torch.equal(loaded.prompts["default"].merged_tokens(loaded.prompts.backbone).embeddings, tokens)
