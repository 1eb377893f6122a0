"""The class that PEFT wraps a model in, and how it reads a prefix: both follow the model, not the name of its class."""

import json

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.vision_models import MODELS as VISION
from helpers.vision_models import arguments, rows, vision_model
from transformers import (
    AutoModel,
    GPT2DoubleHeadsModel,
    MT5EncoderModel,
    T5EncoderModel,
    T5ForTokenClassification,
)

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.models import MORE_MODELS, TINY_MODELS
from softprompt_zoo.testing.subject import pad, random_text
from softprompt_zoo.trial.examination import examine

TEXT, ANSWER = random_text(7, 3), random_text(6, 4)
METHODS = ["prompt_tuning", "prefix_tuning"]
WORDLESS = ["gpt2", "llama", "bert", "t5", "bart", "marian"]
"""Tiny models that are also built without their language modeling heads."""


def alike(kind, architecture):
    """Build a model of another class with the config of a tiny model."""
    config = tiny_model(architecture).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.3)
    return model.eval()


BUILDERS = {
    **{name: (lambda name=name: vision_model(name)) for name in VISION},
    **{f"{name} without a head": (lambda name=name: alike(AutoModel.from_config, name)) for name in WORDLESS},
    "t5's encoder": lambda: alike(T5EncoderModel, "t5"),
    "mt5's encoder": lambda: alike(MT5EncoderModel, "mt5"),
    "two heads": lambda: alike(GPT2DoubleHeadsModel, "gpt2"),
    **{name: (lambda name=name: tiny_model(name)) for name in (*TINY_MODELS, *MORE_MODELS) if name != "whisper"},
}
REFUSED = {
    "prompt_tuning": ["marian without a head", "marian", "pegasus"],
    "prefix_tuning": ["distilbert", "modernbert", "albert", "deberta_v2", "mpnet", "eurobert", "longt5", "led"],
}
"""Models of which PEFT does not scale the text's embeddings, or to which no prefix can be passed, or that
discard it."""
REFUSED["prefix_tuning"] += ["t5's encoder", "mt5's encoder"]
EXPORTED = [(name, method) for method in METHODS for name in BUILDERS if name not in REFUSED[method]]


def states(model):
    """Run a model on a text, and return what it gives for each of the text's tokens, or of the decoder's."""
    inputs = {"input_ids": TEXT, "attention_mask": torch.ones_like(TEXT)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ANSWER
    with torch.no_grad():
        found = model(**inputs)
    found = found.logits if "logits" in found else found.last_hidden_state
    return found[..., -(ANSWER if model.config.is_encoder_decoder else TEXT).shape[1] :, :]


def prompted(base, method):
    options = {"sites": ("decoder",)} if method == "prefix_tuning" and base.config.is_encoder_decoder else {}
    model = zoo.get_method(method)(base, num_virtual_tokens=4, **options)
    torch.manual_seed(1)
    for parameter in model.prompts.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def check_export(name, method, folder):
    """Export a prompt, and compare PEFT's results, and those of the import, with ours."""
    model = prompted(BUILDERS[name](), method)
    expected = states(model)
    zoo.export(model, folder)
    needs_accepted_peft()
    wrapped = peft.PeftModel.from_pretrained(BUILDERS[name](), folder).eval()
    assert_equal(states(wrapped), expected, "PEFT's results")
    assert not torch.allclose(states(wrapped), states(BUILDERS[name]()), atol=1e-3), "PEFT dropped the prompt"
    assert torch.equal(states(zoo.load(BUILDERS[name](), folder)), expected)
    return model, wrapped


@pytest.mark.parametrize(("name", "method"), EXPORTED)
def test_an_export_gives_the_same_in_peft_and_loads_back(name, method, tmp_path):
    check_export(name, method, tmp_path)


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in METHODS for name in REFUSED[method]])
def test_what_peft_cannot_run_is_refused(method, name, tmp_path):
    with pytest.raises(zoo.UnsupportedError, match=r"PEFT (would pass|passes a prefix)|cannot be reached"):
        zoo.export(prompted(BUILDERS[name](), method), tmp_path)
    assert not list(tmp_path.iterdir())


ENCODERS = [name for name in BUILDERS if name.split()[0] in ("bert", "roberta", "electra") or "encoder" in name]
"""Encoders that have an argument for a cache."""


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_takes_a_cache_if_a_prefix_of_pefts_changes_what_it_gives(name):
    model = BUILDERS[name]()
    before = states(model)
    options = {"num_attention_heads": 4, "num_layers": 2, "token_dim": 32, "num_transformer_submodules": 1}
    config = peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="FEATURE_EXTRACTION", **options)
    is_changed = not torch.allclose(states(peft.get_peft_model(model, config).eval()), before, atol=1e-3)
    assert is_changed == (name not in REFUSED["prefix_tuning"])
    for _ in range(2):  # the second time, it is remembered
        assert examine(BUILDERS[name]())[0].takes_cache == is_changed
    changed = BUILDERS[name]()
    changed.get_input_embeddings().register_forward_hook(
        lambda module, args, output: None
    )  # of such a model nothing is remembered
    assert examine(changed)[0].takes_cache == is_changed
    with torch.device("meta"):
        assert examine(type(changed)(changed.config))[0].takes_cache == is_changed


@pytest.mark.parametrize("build", [BUILDERS["t5's encoder"], lambda: alike(T5ForTokenClassification, "t5")])
def test_no_copy_for_peft_of_a_prefix_that_the_encoder_discards(build, tmp_path):
    model = prompted(build(), "prefix_tuning")
    expected = states(model)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert torch.equal(states(zoo.load(build(), tmp_path)), expected)
    inputs = {"input_ids": TEXT, "attention_mask": torch.ones_like(TEXT)}
    assert zoo.inspect(model, inputs=inputs)["default"].attention is not None


@pytest.mark.parametrize("way", ["export", "save_pretrained"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("llava", "CAUSAL_LM"),
        ("qwen2_5_vl", "CAUSAL_LM"),
        ("two heads", "CAUSAL_LM"),
        ("t5", "SEQ_2_SEQ_LM"),
        ("t5 without a head", "FEATURE_EXTRACTION"),
        ("bart without a head", "FEATURE_EXTRACTION"),
        ("gpt2 without a head", "FEATURE_EXTRACTION"),
        ("bert", "FEATURE_EXTRACTION"),
    ],
)
def test_the_task_is_the_models(name, task, method, way, tmp_path):
    model = prompted(BUILDERS[name](), method)
    zoo.export(model, tmp_path) if way == "export" else model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["task_type"] == task
    is_doubled = method == "prefix_tuning" and model.config.is_encoder_decoder
    assert fields["num_transformer_submodules"] == (2 if is_doubled else 1)


def test_a_translation_model_is_a_sequence_to_sequence_model(tmp_path):
    """Marian's class is named after neither."""
    _, wrapped = check_export("marian", "prefix_tuning", tmp_path)
    assert isinstance(wrapped, peft.PeftModelForSeq2SeqLM)


@pytest.mark.parametrize("method", METHODS)
def test_peft_reads_an_image_and_writes_the_same(method, tmp_path):
    model, wrapped = check_export("llava", method, tmp_path)
    [text], images = rows("llava", [0])
    inputs = arguments("llava", text, images)
    with torch.no_grad():
        expected = model(**inputs).logits
        assert_equal(wrapped(**inputs).logits[:, -text.shape[1] :], expected, "PEFT's logits")
        options = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(wrapped.generate(**inputs, **options), model.generate(**inputs, **options))


@pytest.mark.parametrize("name", ["t5 without a head", "bart without a head"])
def test_peft_fails_under_padding_without_a_head(name, tmp_path):
    """The limit that `docs/how-to/peft.md` states: PEFT adds a decoder's prefix to the encoder's mask."""
    model, wrapped = check_export(name, "prefix_tuning", tmp_path)
    ids, mask = pad([TEXT, TEXT[:, :4]], "right")
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ANSWER.expand(2, -1)}
    with torch.no_grad():
        model(**inputs)
        with pytest.raises(RuntimeError, match="must match the size"):
            wrapped(**inputs)
