"""Problems with a model, its options or names are reported before anything changes."""

import pytest
import torch
from helpers.prompted import prompted
from transformers import (
    JambaConfig,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    ViTConfig,
    ViTModel,
)

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import Subject, pad, random_text

TEXT = random_text(9, 1)
METHODS = ["prompt_tuning", "prefix_tuning"]


def fingerprint(model):
    return (
        type(model),
        [(name, p.requires_grad, p._version) for name, p in model.named_parameters()],
        list(model.state_dict()),
        model.config._attn_implementation,
        [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        model.training,
    )


@pytest.fixture
def untouched():
    """Yield a model, and check afterwards that nothing about it has changed."""
    model = tiny_model("llama")
    logits = Subject("llama", model).logits(TEXT)
    before = fingerprint(model)
    yield model
    assert fingerprint(model) == before
    assert torch.equal(Subject("llama", model).logits(TEXT), logits)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0, ValueError, "num_virtual_tokens is 0; expected an integer of at least 1"),
        (-3, ValueError, "num_virtual_tokens is -3"),
        (2.5, TypeError, r"num_virtual_tokens is 2.5 \(float\)"),
        ("ten", TypeError, r"num_virtual_tokens is 'ten' \(str\)"),
        (True, TypeError, r"num_virtual_tokens is True \(bool\)"),
        (64, zoo.UnsupportedError, "leaves no room for text in the model's 64 positions; choose at most 63"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_bad_num_virtual_tokens(untouched, method, value, error, text):
    with pytest.raises(error, match=text):
        zoo.get_method(method)(untouched, num_virtual_tokens=value)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"tokens": 3}, TypeError, "unknown option 'tokens' for method 'prefix_tuning'; .*any of num_virtual_tokens"),
        (
            {"init": "magic"},
            ValueError,
            "init is 'magic'; expected one of 'sampled', 'text', 'random', 'zero', the folder",
        ),
        ({"init": 7}, TypeError, r"init is 7 \(int\); expected one of"),
        ({"init": "sampled", "init_text": "x"}, ValueError, "init_text is 'x', but init, which is 'sampled', does not"),
        ({"reparameterization_size": 8}, ValueError, "reparameterization_size is 8, the width of a network, but re"),
        ({"init": "given"}, ValueError, "init is 'given', which only saved prompts may have"),
        ({"init": "text"}, ValueError, "init='text' needs init_text"),
        ({"init": "text", "init_text": "x"}, ValueError, "needs tokenizer=…"),
        ({"reparameterization": "lstm"}, ValueError, "reparameterization is 'lstm'; expected one of None, 'mlp'"),
        ({"reparameterization_size": 0}, ValueError, "reparameterization_size is 0"),
        ({"dropout": 1.0}, ValueError, r"dropout is 1.0; expected a number in \[0, 1\)"),
        ({"dropout": "much"}, TypeError, "dropout is 'much'"),
        (
            {"sites": ("everywhere",)},
            ValueError,
            "sites is 'everywhere'; expected one of 'encoder', 'decoder', 'cross'",
        ),
        ({"sites": ()}, ValueError, r"sites is \(\); expected a tuple"),
        ({"sites": ("cross",)}, zoo.UnsupportedError, "this model has no site 'cross'; it has 'decoder'"),
        ({"name": "a.b"}, ValueError, "prompt name is 'a.b'; expected letters, digits"),
    ],
)
def test_bad_options(untouched, options, error, text):
    with pytest.raises(error, match=text):
        zoo.get_method("prefix")(untouched, **options)


def test_unknown_method_and_prompt_names():
    with pytest.raises(
        zoo.UnknownMethodError, match="no soft-prompt method 'prefix_tunning'; did you mean 'prefix_tuning'"
    ):
        zoo.get_method("prefix_tunning")
    subject = prompted()
    for wrong in ("alice", ["alice"]):
        with pytest.raises(zoo.UnknownPromptError, match="no prompt 'alice'"):
            subject.logits(TEXT, prompts=[wrong])
    with pytest.raises(zoo.UnknownPromptError, match="no prompt 'alice'; the model has 'default'"):
        subject.model.prompts["alice"]
    with pytest.raises(zoo.UnknownPromptError, match="no prompt 'alice'"):
        subject.model.prompts.activate("alice")
    assert subject.model.prompts.active == ("default",)
    with pytest.raises(zoo.UnknownPromptError, match="prompts has index 5; the model has 1 prompts"):
        subject.logits(TEXT, prompts=torch.tensor([5]))
    with pytest.raises(zoo.UnknownPromptError, match="no prompt 'alice'"):
        subject.model.generate(TEXT, prompts=["alice"], max_new_tokens=2)


def test_wrong_prompts_arguments():
    subject = prompted()
    ids, mask = pad([TEXT, TEXT], "right")
    with pytest.raises(ValueError, match="prompts has 3 entries for a batch of 2 rows"):
        subject.logits(ids, mask, prompts=["default", None, None])
    with pytest.raises(ValueError, match="prompts has 1 entries for a batch of 2 rows"):
        subject.model.generate(ids, attention_mask=mask, prompts=["default"], max_new_tokens=2)
    for wrong in ({"prompts": [None, "default"]}, {"prompts": []}, {"task_ids": [0, 0]}):
        with pytest.raises(ValueError, match=r"has [02] entries for a batch of 1 rows"):
            subject.model.generate(bos_token_id=1, max_new_tokens=2, **wrong)  # generate starts one row by itself
    with pytest.raises(ValueError, match="each prompt may occur in it only once"):
        subject.logits(TEXT, prompts=[["default", "default"]])
    with pytest.raises(TypeError, match="expected a prompt's name, a list of names, or None"):
        subject.logits(TEXT, prompts=[3])
    with pytest.raises(TypeError, match="expected integers of shape"):
        subject.logits(TEXT, prompts=torch.tensor([0.5]))
    with pytest.raises(TypeError, match="expected names, one by one: activate"):
        subject.model.prompts.activate(["default"])


def test_a_second_prompt_of_the_same_name():
    subject = prompted()
    expected = subject.logits(TEXT)
    with pytest.raises(zoo.PromptExistsError, match="already has a prompt 'default'; choose another name"):
        zoo.get_method("prompt")(subject.model)
    with pytest.raises(zoo.PromptExistsError, match="already has a prompt 'default'"):
        subject.model.prompts.add("default", "prompt")
    assert torch.equal(subject.logits(TEXT), expected)
    with pytest.raises(zoo.PromptExistsError, match="two prompts named 'prefix_tuning'"):
        zoo.combine("prefix", "prefix_tuning")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.nn.Linear(2, 2), "expected a transformers PreTrainedModel"),
        (
            lambda: ViTModel(
                ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
            ),
            "no token embeddings",
        ),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2)), "attention"),
        (
            lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=50, n_embd=16, n_layer=2, n_head=2)),
            "attention interface",
        ),
    ],
    ids=["no-transformer", "no-embeddings", "no-attention", "no-interface-and-no-cache"],
)
def test_models_that_no_prompt_can_enter(make, text):
    model = make()
    before = list(model.state_dict())
    with pytest.raises(zoo.UnsupportedError, match=text):
        zoo.get_method("prefix")(model)
    assert list(model.state_dict()) == before
    assert not hasattr(model, "prompts")


def test_recurrent_and_chunked_layers_are_refused():
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    chunked = Llama4TextConfig(**sizes, num_key_value_heads=2, intermediate_size=16, num_local_experts=2, head_dim=8)
    with pytest.raises(zoo.UnsupportedError, match=r"layers of type 'chunked_attention'.*no method works"):
        zoo.get_method("prompt")(Llama4ForCausalLM(chunked))
    from transformers import JambaForCausalLM

    recurrent = JambaConfig(
        **sizes, num_key_value_heads=2, intermediate_size=16, use_mamba_kernels=False, num_experts=2
    )
    with pytest.raises(zoo.UnsupportedError, match="'linear_attention', whose state a prompt cannot enter"):
        zoo.get_method("prefix")(JambaForCausalLM(recurrent))


def test_flash_attention_is_refused_before_anything_changes(untouched):
    untouched.config._attn_implementation_internal = "flash_attention_2"
    try:
        with pytest.raises(zoo.UnsupportedError, match="'flash_attention_2'; expected one of 'eager', 'sdpa'"):
            zoo.get_method("prefix")(untouched)
    finally:
        untouched.config._attn_implementation_internal = "sdpa"


def test_text_beyond_the_position_table():
    subject = prompted("gpt2", "prompt_tuning")
    subject.logits(random_text(60, 1))
    with pytest.raises(ValueError, match="needs 61 positions after 4 virtual tokens, but the model has 64; shorten"):
        subject.logits(random_text(61, 1))
    assert subject.logits(TEXT).isfinite().all()


def test_detach_without_prompts(untouched):
    with pytest.raises(zoo.UnsupportedError, match="has no prompts to detach"):
        zoo.detach(untouched)
    with pytest.raises(zoo.UnsupportedError, match="has no prompts to merge"):
        zoo.merge(untouched)
