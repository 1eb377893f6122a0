"""PEFT's adapters both ways: 20 random prompts for each method and model that PEFT runs, 2 of them in every run."""

import json
from pathlib import Path

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from safetensors.torch import load_file, save_file

import softprompt_zoo as zoo
from softprompt_zoo.testing import TINY_MODELS, tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, random_text

PLUGINS = Path(__file__).parents[2] / "plugins"
TOKENS = 5
TEXT = random_text(7, 3)
PEFT_RUNS = {
    "prompt_tuning": [name for name in TINY_MODELS if name != "distilbert"],
    "prefix_tuning": [name for name in TINY_MODELS if name not in ("distilbert", "modernbert")],
}
CASES = [(method, architecture) for method, names in PEFT_RUNS.items() for architecture in names]
everywhere = pytest.mark.parametrize(("method", "architecture"), CASES)
of_random_prompts = pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 20), marks=pytest.mark.slow)])


def prompted(architecture, method):
    options = {"num_virtual_tokens": TOKENS}
    if method == "prefix_tuning" and architecture in ("t5", "bart"):
        options["sites"] = ("decoder",)
    return Subject.prompted(architecture, method, options)


def run_peft(wrapped, base):
    with torch.no_grad():
        logits = wrapped(**base.inputs(TEXT, torch.ones_like(TEXT))).logits
    return logits if base.is_encoder_decoder else logits[:, -TEXT.shape[1] :]


def peft_tensor(wrapped):
    [parameter] = [p for n, p in wrapped.named_parameters() if n.startswith("prompt_encoder")]
    return parameter


@everywhere
@of_random_prompts
def test_peft_gives_our_logits(method, architecture, seeds, tmp_path):
    subject = prompted(architecture, method)
    base = Subject(architecture, tiny_model(architecture))
    plain = base.logits(TEXT)
    subject.model.save_pretrained(tmp_path)
    wrapped = peft.PeftModel.from_pretrained(base.model, tmp_path)
    for seed in seeds:
        torch.manual_seed(seed)
        for parameter in subject.model.prompts.parameters():
            torch.nn.init.normal_(parameter)
        subject.model.save_pretrained(tmp_path)
        peft.set_peft_model_state_dict(wrapped, load_file(tmp_path / "adapter_model.safetensors"))
        logits = run_peft(wrapped, base)
        assert_equal(logits, subject.logits(TEXT), f"PEFT's logits of prompt {seed}")
        assert not torch.allclose(logits, plain, atol=1e-2), "PEFT dropped the prompt"


@everywhere
@of_random_prompts
def test_we_give_pefts_logits(method, architecture, seeds, tmp_path):
    kind = {"prompt_tuning": peft.PromptTuningConfig, "prefix_tuning": peft.PrefixTuningConfig}[method]
    base = Subject(architecture, tiny_model(architecture))
    plain = base.logits(TEXT)
    options = {"num_virtual_tokens": TOKENS, "task_type": task(base)}
    if architecture == "t5" and method == "prefix_tuning":  # PEFT wrongly assumes that heads * d_kv is d_model
        options |= {"token_dim": 24, "num_attention_heads": 4}
    if architecture == "bart" and method == "prefix_tuning":  # PEFT counts the encoder's layers
        options["num_layers"] = base.model.config.decoder_layers
    wrapped = peft.get_peft_model(base.model, kind(**options)).eval()
    for seed in seeds:
        torch.manual_seed(seed)
        torch.nn.init.normal_(peft_tensor(wrapped))
        wrapped.save_pretrained(tmp_path)
        loaded = Subject(architecture, zoo.load(tiny_model(architecture), tmp_path))
        logits = loaded.logits(TEXT)
        assert_equal(logits, run_peft(wrapped, base), f"our logits of PEFT's prompt {seed}")
        assert not torch.allclose(logits, plain, atol=1e-2), "we dropped the prompt"


def task(base):
    if base.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if base.is_causal else "FEATURE_EXTRACTION"


def test_generation_in_peft_gives_our_text(tmp_path):
    needs_accepted_peft()
    subject = prompted("llama", "prefix_tuning")
    subject.model.save_pretrained(tmp_path)
    wrapped = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(TEXT)}
    ours = subject.model.generate(TEXT, **options)
    assert torch.equal(ours, wrapped.generate(input_ids=TEXT, **options))
    assert not torch.equal(ours, tiny_model("llama").generate(TEXT, **options))


def test_shared_rows_of_pefts_encoder_decoder_prefix_import(tmp_path):
    """If L is even, PEFT's layers l and l + L/2 share a prefix; the import reproduces that."""
    base = tiny_model("bart")
    config = peft.PrefixTuningConfig(num_virtual_tokens=TOKENS, task_type="SEQ_2_SEQ_LM", num_layers=4)
    peft.get_peft_model(base, config).save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("bart"), tmp_path)
    tokens = loaded.prompts["default"].place(loaded.prompts.backbone).tokens.sites["decoder"]
    assert torch.equal(tokens.keys[0], tokens.keys[2])
    assert not torch.equal(tokens.keys[0], tokens.keys[1])


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_imported_prompt_trains_on(method, tmp_path):
    subject = prompted("llama", method)
    subject.model.save_pretrained(tmp_path)
    for name in ("softprompt_zoo.json", "model.safetensors"):
        (tmp_path / name).unlink()
    loaded = Subject("llama", zoo.load(tiny_model("llama"), tmp_path, trainable=True))
    before = loaded.logits(TEXT)
    loaded.train(2)
    assert not torch.equal(loaded.logits(TEXT), before)
    with loaded.model.prompts.disabled():
        assert torch.equal(loaded.logits(TEXT), Subject("llama", tiny_model("llama")).logits(TEXT))


def test_export_refuses_what_peft_cannot_hold(tmp_path):
    three_sites = Subject.prompted("t5", "prefix_tuning", {"num_virtual_tokens": TOKENS}).model
    always = Subject.prompted("mistral", "prefix_tuning", {"num_virtual_tokens": TOKENS, "always_visible": True}).model
    no_cache = Subject.prompted("modernbert", "prefix_tuning", {"num_virtual_tokens": TOKENS}).model
    two = prompted("llama", "prompt_tuning").model
    two.prompts.add("second", "prompt", num_virtual_tokens=3)
    two.prompts.activate("default", "second")
    for model, reason in (
        (three_sites, "'encoder', 'cross'"),
        (always, "always_visible"),
        (no_cache, "past_key_values"),
        (two, "holds one prompt, but 2 are active"),
    ):
        folder = tmp_path / str(id(model))
        with pytest.raises(zoo.UnsupportedError, match=reason):
            zoo.export(model, folder, to="peft")
        assert not folder.exists()
    with pytest.raises(ValueError, match="to is 'onnx'; expected one of 'peft'"):
        zoo.export(two, tmp_path / "x", to="onnx")
    zoo.export(two, tmp_path / "one", to="peft", name="second")
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["num_virtual_tokens"] == 3


def test_encoder_heads_that_pool_refuse_input_prompts_and_warn_on_import(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=101
    )
    torch.manual_seed(0)
    model = zoo.get_method("prompt")(BertForSequenceClassification(config).eval(), num_virtual_tokens=TOKENS)
    with pytest.raises(zoo.UnsupportedError, match="pool or label a virtual token"):
        zoo.export(model, tmp_path, to="peft")
    zoo.detach(model)
    wrapped = peft.get_peft_model(model, peft.PromptTuningConfig(num_virtual_tokens=TOKENS, task_type="SEQ_CLS"))
    wrapped.save_pretrained(tmp_path)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="pools or labels a virtual token"):
        zoo.load(BertForSequenceClassification(config).eval(), tmp_path)


@pytest.mark.parametrize(
    ("peft_type", "package"),
    [("CARTRIDGE", "softprompt-zoo-cartridge"), ("ADAPTION_PROMPT", "softprompt-zoo-llama-adapter")],
)
def test_files_of_a_method_that_comes_in_a_package_say_which(peft_type, package, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_ZOO_PLUGINS", "")  # the package may be installed here
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type, "num_virtual_tokens": 2}))
    save_file({"prompt_embeddings": torch.zeros(2, 8)}, tmp_path / "adapter_model.safetensors")
    model = tiny_model("llama")
    with pytest.raises(
        zoo.UnknownMethodError, match=f"type '{peft_type}', whose method is not .* pip install {package}"
    ):
        zoo.load(model, tmp_path)
    assert not hasattr(model, "prompts")
    assert f'name = "{package}"' in (PLUGINS / package / "pyproject.toml").read_text()


def test_our_files_of_a_missing_method_say_which_package_wrote_them(tmp_path):
    """The files are as a third-party package exports them, with a type of its own."""
    zoo.export(prompted("llama", "prefix_tuning").model, tmp_path, to="peft")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "TELEPATHY"}))
    file = tmp_path / "adapter_model.safetensors"
    for version, remedy in (("2.1", r"run: pip install zoo-mind==2\.1"), ("", "registered by hand: zoo.register its")):
        origin = {"method": "telepathy", "distribution": "zoo-mind", "version": version}
        save_file(load_file(file), file, {"format": "pt", "softprompt_zoo": json.dumps(origin)})
        with pytest.raises(zoo.UnknownMethodError, match=f"needs the method 'telepathy', which is not ins.*{remedy}"):
            zoo.load(tiny_model("llama"), tmp_path)


def test_foreign_adapters_are_refused(tmp_path):
    model = tiny_model("llama")
    lora = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(zoo.CheckpointError, match="type 'LORA', which is not a prompt"):
        zoo.load(model, tmp_path / "lora")
    subject = prompted("gpt2", "prefix_tuning")
    zoo.export(subject.model, tmp_path / "gpt2", to="peft")
    with pytest.raises(zoo.BackboneMismatchError, match="load it onto the model it was made for"):
        zoo.load(model, tmp_path / "gpt2")
    config = json.loads((tmp_path / "gpt2" / "adapter_config.json").read_text())
    (tmp_path / "gpt2" / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "TELEPATHY"}))
    file = tmp_path / "gpt2" / "adapter_model.safetensors"
    save_file(load_file(file), file)  # as PEFT writes it
    with pytest.raises(zoo.UnsupportedError, match="no installed method loads PEFT's TELEPATHY"):
        zoo.load(tiny_model("gpt2"), tmp_path / "gpt2")
    (tmp_path / "gpt2" / "adapter_config.json").write_text(json.dumps(config))
    save_file({"other": torch.zeros(1)}, tmp_path / "gpt2" / "adapter_model.safetensors")
    with pytest.raises(zoo.CheckpointError, match="has no tensor 'prompt_embeddings'"):
        zoo.load(tiny_model("gpt2"), tmp_path / "gpt2")
    assert not hasattr(model, "prompts")
