"""Parts of the model that PEFT saves beside a prompt: heads, and embedding tables after a resize of the vocabulary."""

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.classifiers import CONFIGS
from helpers.peft_prompts_moved import move_what_is_saved
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

import softprompt_zoo as zoo
from softprompt_zoo.files import peft_modules
from softprompt_zoo.model import head_per_row
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import random_text

TEXT = random_text(7, 3)
TOKENS = 4
KINDS = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
HEADS = {"llama": "lm_head", "gpt2": "lm_head", "t5": "lm_head", "bert": "cls"}


def base(architecture):
    """Build a model that predicts words."""
    if architecture in ("llama", "gpt2"):
        return tiny_model(architecture)
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if architecture == "bert" else AutoModelForSeq2SeqLM
    return auto.from_config(CONFIGS[architecture]()).eval()


def run(model, **more):
    inputs = {"input_ids": TEXT, "attention_mask": torch.ones_like(TEXT), **more}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = TEXT
    with torch.no_grad():
        return model(**inputs).logits[:, -TEXT.shape[1] :]


def trained_in_peft(model, kind, modules, **options):
    """Put PEFT's prompt on a model, and change every number in it and in the saved modules."""
    seq2seq = model.config.is_encoder_decoder
    task = "SEQ_2_SEQ_LM" if seq2seq else "FEATURE_EXTRACTION" if model.config.model_type == "bert" else "CAUSAL_LM"
    config = KINDS[kind](num_virtual_tokens=TOKENS, task_type=task, modules_to_save=modules, **options)
    wrapped = peft.get_peft_model(model, config).eval()
    move_what_is_saved(wrapped)
    return wrapped


def check_head(architecture, kind, folder):
    wrapped = trained_in_peft(base(architecture), kind, [HEADS[architecture]])
    wrapped.save_pretrained(folder)
    expected = run(wrapped)
    model = zoo.load(base(architecture), folder)
    assert_equal(run(model), expected, "PEFT's logits")
    return model, expected


@EVERY_KIND
@pytest.mark.parametrize("architecture", HEADS)
def test_a_trained_head_over_words_comes_along(architecture, kind, tmp_path):
    model, expected = check_head(architecture, kind, tmp_path / "theirs")
    with model.prompts.disabled():
        assert torch.equal(run(model), run(base(architecture)))
    model.save_pretrained(tmp_path / "ours")
    assert_equal(run(zoo.load(base(architecture), tmp_path / "ours")), expected, "saved and loaded")
    model.prompts.add("copy", model.prompts["default"])
    assert_equal(run(model, prompts="copy"), expected, "a copy")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_row_has_its_own_head_and_generate_too(architecture, tmp_path):
    needs_accepted_peft()
    model, expected = check_head(architecture, "prefix", tmp_path / "theirs")
    bank = zoo.PromptBank(f"memory://words-{architecture}", model)
    bank.add("stored", model.prompts["default"])
    model.prompts.bank = bank
    rows = {"input_ids": TEXT.repeat(3, 1), "prompts": ["default", None, "stored"]}
    found = model(**rows).logits
    assert_equal(found[0], expected[0], "the prompt's row")
    assert_equal(found[1], run(base(architecture))[0], "a bare row")
    assert_equal(found[2], expected[0], "the bank's row")
    wrapped = peft.PeftModel.from_pretrained(base(architecture), tmp_path / "theirs")
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(TEXT)}
    assert torch.equal(model.generate(TEXT, **options), wrapped.generate(input_ids=TEXT, **options))


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_a_head_over_words_goes_back_to_peft(architecture, tmp_path):
    options = {"num_layers": 4} if architecture == "t5" else {}  # with fewer, PEFT gives two layers the same prefix
    wrapped = trained_in_peft(base(architecture), "prefix", ["lm_head"], **options)
    wrapped.save_pretrained(tmp_path / "theirs")
    expected = run(wrapped)
    zoo.export(zoo.load(base(architecture), tmp_path / "theirs"), tmp_path / "back")
    again = peft.PeftModel.from_pretrained(base(architecture), tmp_path / "back").eval()
    assert_equal(run(again), expected, "PEFT's logits")


def test_the_head_trains_on(tmp_path):
    trained_in_peft(base("llama"), "prompt", ["lm_head"]).save_pretrained(tmp_path)
    model = zoo.load(base("llama"), tmp_path, trainable=True)
    before = model.prompts["default"].head["lm_head"].weight.clone()
    model.train()(input_ids=TEXT, labels=TEXT).loss.backward()
    torch.optim.SGD(model.prompts.parameters(), lr=0.1).step()
    assert not torch.equal(model.prompts["default"].head["lm_head"].weight, before)
    assert torch.equal(model.lm_head.weight, base("llama").lm_head.weight)


@pytest.mark.parametrize("undone", ["the call", "the file"])
def test_the_check_notices_a_head_that_is_left_out(undone, tmp_path, monkeypatch):
    if undone == "the call":
        monkeypatch.setattr("softprompt_zoo.model.forward.with_heads", lambda model, heads, rows: model)
    else:
        monkeypatch.setattr(peft_modules, "_is_same", lambda own, tensor: True)
    with pytest.raises(AssertionError):
        check_head("llama", "prefix", tmp_path)


def resized(folder, seed=0):
    """Load a saved base model and add a padding token to its vocabulary, which PEFT notices."""
    model = type(base("llama")).from_pretrained(folder).eval()
    torch.manual_seed(seed)
    model.resize_token_embeddings(model.config.vocab_size + 1, mean_resizing=False)
    return model


@EVERY_KIND
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_tables_of_a_resized_vocabulary_that_the_model_has_too_are_not_needed(architecture, kind, tmp_path):
    plain = base(architecture)
    plain.save_pretrained(tmp_path / "base")

    def fresh():
        model = type(plain).from_pretrained(tmp_path / "base").eval()
        torch.manual_seed(0)
        model.resize_token_embeddings(102)
        return model

    wrapped = trained_in_peft(fresh(), kind, None)
    wrapped.save_pretrained(tmp_path / "theirs")
    assert len(load_file(tmp_path / "theirs" / "adapter_model.safetensors")) > 1
    model = zoo.load(fresh(), tmp_path / "theirs")
    assert_equal(run(model), run(wrapped), "PEFT's logits")
    assert model.prompts["default"].head is None
    bank = zoo.PromptBank(f"memory://resized-{architecture}-{kind}", fresh())
    assert bank.import_folder(tmp_path / "theirs") == ["default"]


def test_other_weights_of_the_model_are_refused_with_what_to_do(tmp_path):
    base("llama").save_pretrained(tmp_path / "base")
    trained_in_peft(resized(tmp_path / "base"), "prompt", None).save_pretrained(tmp_path / "theirs")
    trained_in_peft(base("llama"), "prompt", ["embed_tokens"]).save_pretrained(tmp_path / "table")
    trained_in_peft(base("llama"), "prefix", ["q_proj"]).save_pretrained(tmp_path / "layers")
    for model, folder, reason in (
        (base("llama"), "theirs", r"'model.embed_tokens.weight' \(102, 32\).*model.resize_token_embeddings\(102\)"),
        (resized(tmp_path / "base", seed=5), "theirs", "with values that differ from this model's.*get_parameter"),
        (base("llama"), "table", "'model.embed_tokens.weight' of the model it was trained on"),
        (base("llama"), "layers", "'model.layers.0.self_attn.q_proj.weight' of the model it was trained on"),
    ):
        before = run(model)
        with pytest.raises(zoo.BackboneMismatchError, match=reason):
            zoo.load(model, tmp_path / folder)
        assert not hasattr(model, "prompts")
        assert torch.equal(run(model), before)


@pytest.mark.parametrize("name", ["embed_tokens", "q_proj"])
def test_the_advice_of_the_refusal_gives_pefts_numbers(name, tmp_path):
    wrapped = trained_in_peft(base("llama"), "prefix", [name])
    wrapped.save_pretrained(tmp_path)
    model = base("llama")
    for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        if key.startswith("base_model."):
            model.get_parameter(key.removeprefix("base_model.")).data.copy_(tensor)
    assert_equal(run(zoo.load(model, tmp_path)), run(wrapped), "PEFT's logits")


def test_a_vocabulary_is_not_resized_under_a_head_over_words(tmp_path):
    model, expected = check_head("llama", "prefix", tmp_path)
    with pytest.raises(zoo.UnsupportedError, match="prompt 'default' has a trained task head 'lm_head'"):
        model.resize_token_embeddings(110)
    assert_equal(run(model), expected, "after the refusal")


def test_a_single_head_shows_its_own_numbers():
    own, copied = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    assert head_per_row._HeadPerRow(own, [copied], None).weight is copied.weight
