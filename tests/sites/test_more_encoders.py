"""Special cases of more encoders and encoder-decoders; test_conformance.py checks their promises."""

import pytest
import torch
import transformers
from helpers.classifiers import BERT, CONFIGS, TASKS, classifier, disturb, logits, texts
from helpers.products import in_turns
from transformers import MPNetConfig, WhisperConfig, WhisperForConditionalGeneration

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.encoder_decoders import ENCODER_DECODERS
from softprompt_zoo.testing.encoders import ENCODERS
from softprompt_zoo.testing.real_tokens import expected_logits, make_of_real_tokens
from softprompt_zoo.testing.sizes import ROTARY
from softprompt_zoo.testing.subject import Subject, pad, random_text

OFF_INTERFACE = ("longt5", "led")
TEXTS = [random_text(length, seed) for seed, length in enumerate((9, 4, 7))]


@pytest.mark.parametrize("architecture", [name for name in (*ENCODERS, *ENCODER_DECODERS) if name != "whisper"])
def test_real_tokens_at_the_input_embeddings(architecture):
    base = Subject(architecture, tiny_model(architecture))
    subject = Subject.prompted(architecture, "prompt_tuning", {"num_virtual_tokens": 5})
    tokens = make_of_real_tokens(subject, base, TEXTS[0])
    assert_equal(subject.logits(TEXTS[0]), expected_logits(base, tokens, TEXTS[0]), "logits")


@pytest.mark.parametrize("architecture", ["mbart", "pegasus", "marian", "mt5"])
def test_real_tokens_in_the_decoder(architecture):
    """The decoder's text comes after them, by whatever position table or bias the model has."""
    base = Subject(architecture, tiny_model(architecture))
    subject = Subject.prompted(architecture, "prefix_tuning", {"num_virtual_tokens": 5})
    tokens = make_of_real_tokens(subject, base, TEXTS[0])
    assert_equal(subject.logits(TEXTS[0]), expected_logits(base, tokens, TEXTS[0]), "logits")


@pytest.mark.parametrize("architecture", ["marian", "pegasus"])
def test_peft_does_not_scale_what_the_model_scales(architecture, tmp_path):
    subject = Subject.prompted(architecture, "prompt_tuning", {"num_virtual_tokens": 5})
    with pytest.raises(zoo.UnsupportedError, match="does not scale"):
        zoo.export(subject.model, tmp_path, to="peft")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", OFF_INTERFACE)
def test_attention_off_the_interface_takes_prompts_at_the_input_embeddings_only(architecture):
    base = tiny_model(architecture)
    before = type(base)
    with pytest.raises(zoo.UnsupportedError, match="input embeddings"):
        zoo.get_method("prefix_tuning")(base, num_virtual_tokens=5)
    assert type(base) is before
    subject = Subject.prompted(architecture, "prompt_tuning", {"num_virtual_tokens": 5})
    with pytest.raises(zoo.UnsupportedError, match="output_attentions"):
        subject.run(TEXTS[0], output_attentions=True)
    ids, mask = pad(TEXTS, "right")
    rows = ["default", None, "default"]
    together = subject.model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, prompts=rows)
    for row, name in enumerate(rows):
        alone = subject.model.generate(TEXTS[row], max_new_tokens=4, do_sample=False, prompts=[name])
        assert torch.equal(together[row], alone[0])


def test_longformers_global_attention_is_that_of_the_text():
    """Virtual tokens attend locally; the text's first token globally, as in the base model reading real tokens."""
    base = Subject("led", tiny_model("led"))
    subject = Subject.prompted("led", "prompt_tuning", {"num_virtual_tokens": 5})
    tokens = make_of_real_tokens(subject, base, TEXTS[0])
    everywhere = torch.zeros(1, 14, dtype=torch.long)
    everywhere[:, 5] = 1
    both = torch.cat([tokens.ids, TEXTS[0]], dim=1)
    expected = base.logits(both, global_attention_mask=everywhere)
    assert_equal(subject.logits(TEXTS[0], global_attention_mask=everywhere[:, 5:]), expected, "logits")
    assert not torch.allclose(expected, base.logits(both), atol=1e-3)


def test_an_argument_with_entries_per_token_that_is_not_known_is_refused():
    subject = Subject.prompted("roberta", "prompt_tuning", {"num_virtual_tokens": 5})
    with pytest.raises(zoo.UnsupportedError, match="shape_ids"):
        subject.run(TEXTS[0], shape_ids=torch.zeros(1, 9, dtype=torch.long))


def test_an_encoder_without_token_embeddings_is_refused():
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 101, "pad_token_id": 0}
    sizes |= {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (
        ("attention_heads", 4), ("ffn_dim", 48))}  # fmt: skip
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, bos_token_id=1, eos_token_id=2))
    with pytest.raises(zoo.UnsupportedError, match="reads sound and no tokens"):
        zoo.get_method("prompt_tuning")(model)
    assert not hasattr(model, "prompts")


HEADS = ["bert", "roberta", "electra", "distilbert", "modernbert", "albert", "deberta_v2", "mpnet"]
CONFIGS.setdefault("mpnet", lambda: MPNetConfig(**BERT))


@in_turns(task=TASKS, architecture=HEADS, method=["prompt_tuning", "prefix_tuning"])
def test_heads_read_the_text_alone(task, architecture, method):
    """Padding on the right changes nothing, the output is as long as the input, and detached is the base model."""
    model = classifier(task, architecture)
    ids = texts(task)
    expected = logits(model, ids)
    zoo.get_method(method)(model, num_virtual_tokens=4)
    disturb(model)
    alone = logits(model, ids)
    assert alone.shape == expected.shape
    assert not torch.allclose(alone, expected, atol=1e-4)
    longer = torch.nn.functional.pad(ids, (0, 3))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 3))
    padded = logits(model, longer, attention_mask=mask)
    assert_equal(padded[:, : alone.shape[1]], alone, "padded")
    zoo.detach(model)
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("kind", ["OpenAIGPT", "XLNet", "XLM", "Deberta"])
def test_bare_models_without_a_cache_take_prompts_at_the_input_embeddings(kind):
    sizes = {
        "OpenAIGPT": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
        "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
        "Deberta": {**ROTARY},
    }[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**sizes, "vocab_size": 101})
    model = getattr(transformers, f"{kind}Model")(config).eval()
    words = torch.arange(31, 36)
    with torch.no_grad():
        expected = [model(torch.cat([words[None], text], dim=1))[0][0, 5:] for text in TEXTS]
        start = model.get_input_embeddings()(words)
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=5)
    model.prompts["default"].learned.embeddings.data.copy_(start)
    for side in ("left", "right"):
        ids, mask = pad(TEXTS, side)
        with torch.no_grad():
            states = model(ids, attention_mask=mask)[0]
        for row, keep, states_alone in zip(states, mask.bool(), expected, strict=True):
            assert_equal(row[keep], states_alone, f"{kind}, {side} padding")


@pytest.mark.parametrize("kind", ["OpenAIGPTLMHeadModel", "XLNetLMHeadModel", "XLMWithLMHeadModel"])
def test_models_that_write_without_a_cache_are_refused(kind):
    sizes = {"OpenAIGPT": {"n_embd": 32}, "XLNet": {"d_model": 32}, "XLM": {"emb_dim": 32}}
    heads = {"XLNet": {"n_layer": 2, "n_head": 4, "d_inner": 48}, "XLM": {"n_layers": 2, "n_heads": 4}}
    name = next(name for name in sizes if kind.startswith(name))
    more = heads.get(name, {"n_layer": 2, "n_head": 4})
    config = getattr(transformers, f"{name}Config")(vocab_size=101, **sizes[name], **more)
    model = getattr(transformers, kind)(config)
    with pytest.raises(zoo.UnsupportedError, match="attention interface"):
        zoo.get_method("prompt_tuning")(model)
    assert not hasattr(model, "prompts")
