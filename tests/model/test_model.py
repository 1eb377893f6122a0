"""Attaching, using and detaching; bad input leaves the model as it was."""

import copy
import pickle
import threading

import pytest
import torch
from helpers.prompted import prompted
from transformers import (
    JambaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    ViTConfig,
    ViTModel,
)

import softprompt_zoo as zoo
from softprompt_zoo.testing import TINY_MODELS, tiny_model
from softprompt_zoo.testing.subject import Subject, assert_equal, pad, random_text
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

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
    """A model, and the check that nothing about it has changed."""
    model = tiny_model("llama")
    logits = Subject("llama", model).logits(TEXT)
    before = fingerprint(model)
    yield model
    assert fingerprint(model) == before
    assert torch.equal(Subject("llama", model).logits(TEXT), logits)


def test_the_model_stays_the_users_own():
    model = tiny_model("llama")
    returned = zoo.get_method("prefix")(model, num_virtual_tokens=3)
    assert returned is model
    assert isinstance(model, LlamaForCausalLM)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert list(model.prompts) == ["default"]
    assert model.prompts.active == ("default",)
    assert model.prompts["default"].num_virtual_tokens == 3
    assert model.prompts["default"].num_parameters == 2 * 2 * 2 * 3 * 8
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(name.startswith("prompts.default.") for name in trainable)


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
        ({"tokens": 3}, TypeError, "unknown option 'tokens' for Config; expected any of num_virtual_tokens"),
        (
            {"init": "magic"},
            ValueError,
            "init is 'magic'; expected one of 'sampled', 'text', 'random', 'zero', the folder",
        ),
        ({"init": 7}, TypeError, r"init is 7 \(int\); expected one of"),
        ({"init": "sampled", "init_text": "x"}, ValueError, "init_text is 'x', and init, which is 'sampled', does not"),
        ({"reparameterization_size": 8}, ValueError, "reparameterization_size is 8, the width of a net, but repara"),
        ({"init": "given"}, ValueError, "init is 'given', which only a saved prompt says of itself"),
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
            subject.model.generate(bos_token_id=1, max_new_tokens=2, **wrong)  # it begins one row itself
    with pytest.raises(ValueError, match="each prompt may stand in it once"):
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_copies_and_pickles(method, architecture):
    subject = prompted(architecture, method)
    expected = subject.logits(TEXT)
    for other in (copy.deepcopy(subject.model), pickle.loads(pickle.dumps(subject.model))):
        twin = Subject(architecture, other)
        assert torch.equal(twin.logits(TEXT), expected)
        twin.disturb("default")
        assert not torch.equal(twin.logits(TEXT), expected)
        assert torch.equal(subject.logits(TEXT), expected)
        zoo.detach(other)
        assert torch.equal(twin.logits(TEXT), Subject(architecture, tiny_model(architecture)).logits(TEXT))
    assert torch.equal(subject.logits(TEXT), expected)


def test_two_models_that_share_a_config():
    first, second = tiny_model("llama"), tiny_model("llama", seed=1)
    second.config = first.config
    for module in second.modules():
        if hasattr(module, "config"):
            module.config = first.config
    zoo.get_method("prefix")(first, num_virtual_tokens=3)
    zoo.get_method("prefix")(second, num_virtual_tokens=3)
    expected = Subject("llama", second).logits(TEXT)
    zoo.detach(first)
    assert torch.equal(Subject("llama", second).logits(TEXT), expected)
    zoo.detach(second)
    assert first.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["training", "backbone", "chosen", "era", "bank", "train", "keys"])
def test_a_prompt_may_be_named_like_an_attribute(name):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), name, num_virtual_tokens=4)
    expected = model.train().eval()(TEXT).logits
    model.prompts.activate()
    model.prompts.activate(name)
    model.prompts.set_weight(name, 1)
    assert torch.equal(copy.deepcopy(model.float())(TEXT).logits, expected)
    model.prompts.remove(name)
    assert not model.prompts.keys()


def test_attention_implementation_can_be_changed_also_by_its_name_in_the_config():
    subject = prompted()
    expected = subject.logits(TEXT)
    subject.model.set_attn_implementation("eager")
    assert_equal(subject.logits(TEXT), expected, "eager logits")
    with pytest.raises((ImportError, zoo.UnsupportedError), match=r"flash_attention_2|FlashAttention2"):
        subject.model.set_attn_implementation("flash_attention_2")
    assert_equal(subject.logits(TEXT), expected, "logits after the refusal")
    subject.model.config._attn_implementation = "sdpa"
    assert_equal(subject.logits(TEXT), expected, "logits under a name that was written")
    subject.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(zoo.UnsupportedError, match=r"'flash_attention_2' was written to the config .*has 'sdpa' again"):
        subject.logits(TEXT)
    assert_equal(subject.logits(TEXT), expected, "logits after the refusal")


def test_the_shared_pass_runs_once_per_generated_text():
    subject = prompted(method="prompt_tuning")
    calls = []
    subject.model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    subject.model.generate(TEXT, max_new_tokens=5, do_sample=False)
    first = len(calls)
    subject.model.generate(TEXT, max_new_tokens=5, do_sample=False, use_cache=False)
    assert first == 1 + 5  # one pass over the prompt, five over the text
    assert len(calls) == 2 * first


def test_threads_do_not_see_each_others_prompts():
    subject = prompted()
    subject.model.prompts.add("other", "prompt", num_virtual_tokens=6)
    expected = {name: subject.logits(TEXT, prompts=[name]) for name in ("default", "other", None)}
    wrong = []

    def work(name):
        wrong.extend(1 for _ in range(15) if not torch.equal(subject.logits(TEXT, prompts=[name]), expected[name]))

    threads = [threading.Thread(target=work, args=(name,)) for name in [*expected, *expected]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_the_user_hands_over_is_changed(method, architecture):
    subject = prompted(architecture, method)
    ids, mask = pad([TEXT, random_text(4, 2)], "left")
    inputs = subject.inputs(ids, mask)
    if subject.is_causal:
        inputs |= {"labels": ids.clone(), "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    before = {key: value.clone() for key, value in inputs.items()}
    subject.model(**inputs)
    assert inputs.keys() == before.keys()
    assert all(torch.equal(inputs[key], before[key]) for key in before)


def test_the_bare_stack_is_prompted_too():
    subject = prompted()
    states = subject.model.model(TEXT).last_hidden_state
    assert_equal(subject.model.lm_head(states), subject.logits(TEXT), "logits of the bare stack")


def test_a_stack_as_the_users_model():
    from transformers import LlamaModel

    torch.manual_seed(0)
    model = LlamaModel(tiny_model("llama").config).eval()
    base = model(TEXT).last_hidden_state
    zoo.get_method("prompt")(model, num_virtual_tokens=4)
    assert model(TEXT).last_hidden_state.shape == base.shape
    assert not torch.allclose(model(TEXT).last_hidden_state, base, atol=1e-3)
    with model.prompts.disabled():
        assert torch.equal(model(TEXT).last_hidden_state, base)
    assert torch.equal(model(TEXT, prompts=[None]).last_hidden_state, base)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_attaching_on_the_meta_device(method, architecture):
    model = tiny_model(architecture).to("meta")
    expected = prompted(architecture, method).model.prompts["default"].num_parameters
    zoo.get_method(method)(model, num_virtual_tokens=4)
    assert model.prompts["default"].num_parameters == expected
    assert all(p.is_meta for p in model.prompts.parameters())


def test_later_prompts_go_where_the_model_was_moved(tmp_path):
    merged = zoo.merge(prompted("gpt2", "prompt_tuning").model)
    merged.save_pretrained(tmp_path)
    expected = merged(TEXT).logits
    model = zoo.get_method("prefix_tuning")(tiny_model("gpt2").to("meta"), "first", num_virtual_tokens=2)
    model.to_empty(device="cpu")
    model.load_state_dict(tiny_model("gpt2").state_dict(), strict=False)
    zoo.load(model, tmp_path)
    assert torch.equal(model(TEXT).logits, expected)
    added = model.prompts.add("words", "prompt_tuning", num_virtual_tokens=3)
    rows = tiny_model("gpt2").get_input_embeddings().weight
    assert torch.cdist(added.learned.embeddings, rows).min(dim=1).values.max() < 1e-2  # real words
    model.prompts.add("copy", model.prompts["default"])
    assert torch.equal(model(TEXT, prompts="copy").logits, expected)
    assert model.to(torch.bfloat16).prompts["copy"].backbone.dtype == torch.bfloat16
    with pytest.raises(zoo.UnsupportedError, match="the model is on the meta device"):
        zoo.inspect(model.to("meta"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_later_prompts_know_a_resized_vocabulary(architecture):
    model = zoo.get_method("prompt_tuning")(tiny_model(architecture), "first", num_virtual_tokens=2)
    words = tiny_tokenizer()
    words.add_tokens(["hello"])
    model.resize_token_embeddings(110)
    added = model.prompts.add("new", "prompt_tuning", num_virtual_tokens=1, init_text="hello", tokenizer=words)
    assert torch.equal(added.learned.embeddings[0], model.get_input_embeddings().weight[101])
    model.resize_token_embeddings(20)
    model.prompts.add("words", "prefix_tuning", num_virtual_tokens=50)
    assert zoo.inspect(model).prompts[0].norms["embeddings"].words.shape == (1, 20)


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        ("prefix_tuning", "llama"),
        pytest.param("prompt_tuning", "llama", marks=pytest.mark.slow),
        pytest.param("prefix_tuning", "bert", marks=pytest.mark.slow),
        pytest.param("prompt_tuning", "t5", marks=pytest.mark.slow),
        pytest.param("prompt_tuning", "bert", marks=pytest.mark.slow),
        pytest.param("prefix_tuning", "t5", marks=pytest.mark.slow),
    ],
)
def test_compiles_into_one_graph(method, architecture):
    subject = prompted(architecture, method)
    expected = subject.logits(TEXT)
    torch._dynamo.reset()
    compiled = torch.compile(subject.model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_equal(compiled(**subject.inputs(TEXT)).logits, expected, "compiled logits")
    subject.loss(TEXT).backward()
    plain = subject.gradients()
    compiled(**subject.inputs(TEXT)).logits.sum().backward()
    compiled_gradients = subject.gradients()
    subject.model(**subject.inputs(TEXT)).logits.sum().backward()
    plain = subject.gradients()
    for name, gradient in compiled_gradients.items():
        assert_equal(gradient, plain[name], f"gradient of {name}")


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_as_the_users_model_returns_what_it_is_asked_for(method):
    from transformers import BertModel

    torch.manual_seed(0)
    model = BertModel(tiny_model("bert").config).eval()
    zoo.get_method(method)(model, num_virtual_tokens=4)
    output = model(TEXT)
    assert output.last_hidden_state.shape == (1, 9, 32)
    assert_equal(output.pooler_output, model.pooler(output.last_hidden_state), "pooled from the text")
    as_tuple = model(TEXT, return_dict=False)
    assert torch.equal(as_tuple[0], output.last_hidden_state)
    assert torch.equal(as_tuple[1], output.pooler_output)


def test_combined_methods_stand_in_order():
    model = tiny_model("llama")
    prefix = zoo.get_method("prefix").configure(num_virtual_tokens=3)
    zoo.combine("prompt", prefix)(model)
    assert model.prompts.active == ("prompt_tuning", "prefix_tuning")
    subject = Subject("llama", model)
    assert_equal(
        subject.logits(TEXT), subject.logits(TEXT, prompts=[["prompt_tuning", "prefix_tuning"]]), "active and named"
    )
    alone = subject.logits(TEXT, prompts=["prompt_tuning"])
    assert not torch.allclose(subject.logits(TEXT), alone, atol=1e-3)


def test_two_combined_prompts_of_real_tokens_are_one_text():
    """Input-level tokens see what stands before them, as real tokens would."""
    base = Subject("llama", tiny_model("llama"))
    first, second = random_text(3, 5), random_text(4, 6)
    expected = base.logits(torch.cat([first, second, TEXT], 1))[:, 7:]
    for methods in (("prompt", "prompt"), ("prefix", "prompt")):
        model = tiny_model("llama")
        zoo.get_method(methods[0])(model, "a", num_virtual_tokens=3)
        model.prompts.add("b", methods[1], num_virtual_tokens=4)
        model.prompts.activate("a", "b")
        backbone = model.prompts.backbone
        with torch.no_grad():
            start_a = model.prompts["a"].learned
            tokens = (
                zoo.InputTokens(backbone.embed(first[0])) if methods[0] == "prompt" else backbone.keys_values(first[0])
            )
            start_a.start_from(tokens)
            model.prompts["b"].learned.start_from(zoo.InputTokens(backbone.embed(second[0])))
        assert_equal(Subject("llama", model).logits(TEXT), expected, f"{methods}")


def test_a_four_dimensional_mask():
    subject = prompted()
    length = TEXT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    assert_equal(subject.logits(TEXT, causal), subject.logits(TEXT), "4-D mask")
    encoder = prompted("bert", "prompt_tuning")
    with pytest.raises(zoo.UnsupportedError, match="needs an attention mask of shape"):
        encoder.logits(TEXT, torch.ones(1, 1, length, length, dtype=torch.bool))


def test_detach_without_prompts(untouched):
    with pytest.raises(zoo.UnsupportedError, match="has no prompts to detach"):
        zoo.detach(untouched)
    with pytest.raises(zoo.UnsupportedError, match="has no prompts to merge"):
        zoo.merge(untouched)


def test_remove_and_disable_and_empty():
    subject = prompted()
    base = Subject("llama", tiny_model("llama")).logits(TEXT)
    subject.model.prompts.activate()
    assert torch.equal(subject.logits(TEXT), base)
    subject.model.prompts.remove("default")
    assert len(subject.model.prompts) == 0
    assert torch.equal(subject.logits(TEXT), base)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_bare_models_forward_called_by_its_name_has_the_prompt(architecture, method):
    model = zoo.get_method(method)(tiny_model(architecture).base_model, num_virtual_tokens=4).eval()
    with torch.no_grad():
        expected = model(TEXT).last_hidden_state
        assert torch.equal(model.forward(input_ids=TEXT).last_hidden_state, expected)
        assert torch.equal(model.forward(TEXT, prompts=None, return_dict=False)[0], expected)
    assert expected.shape[1] == TEXT.shape[1]
