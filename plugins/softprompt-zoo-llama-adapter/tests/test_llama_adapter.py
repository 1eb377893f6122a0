"""LLaMA-Adapter against its equation, the base model and PEFT."""

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXT = torch.tensor([[4, 9, 30, 7, 55, 12]])
CAUSAL = ["gpt2", "llama", "qwen3", "gemma3", "mistral", "gpt_neox"]


def attach(model, gate_value=None, **options):
    """Attach an adapter; open its gates to values between 0 and `gate_value`."""
    torch.manual_seed(0)
    model = zoo.get_method("llama_adapter")(model, **{"num_virtual_tokens": 4, **options})
    if gate_value is not None:
        gates = learned(model).gates
        with torch.no_grad():
            gates.copy_(torch.linspace(gate_value / 2, gate_value, gates.numel()).view_as(gates))
    return model


def learned(model):
    return model.prompts["default"].learned


def close(actual, expected):
    return torch.allclose(actual, expected, atol=1e-5 * max(1.0, float(expected.detach().abs().max())), rtol=0)


def one_layer(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaModel(LlamaConfig(vocab_size=60, num_key_value_heads=2, **{**sizes, **options})).eval()


@pytest.mark.parametrize("gate", ["head", "layer"])
@torch.no_grad()
def test_the_equation_by_hand(gate):
    """Two softmaxes per head: queries are rotated, the prompt's keys are not, and its output is projected too."""
    model = attach(one_layer(), 0.8, gate=gate)
    block = model.layers[0]
    attention = block.self_attn
    prompt, gates = learned(model).prompts[0], torch.tanh(learned(model).gates[0]).expand(4)
    hidden = model.embed_tokens(TEXT)
    cos, sin = model.rotary_emb(hidden, torch.arange(TEXT.shape[1])[None])
    text = block.input_layernorm(hidden)[0]

    def split(states):
        return states.unflatten(1, (-1, 4)).transpose(0, 1)

    query, key = apply_rotary_pos_emb(
        split(attention.q_proj(text))[None], split(attention.k_proj(text))[None], cos, sin
    )
    key, value = (side.repeat_interleave(2, dim=0) for side in (key[0], split(attention.v_proj(text))))
    prompt_key, prompt_value = (
        split(projection(prompt)).repeat_interleave(2, dim=0) for projection in (attention.k_proj, attention.v_proj)
    )
    scores = query[0] @ key.mT / 2
    scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf)
    heads = scores.softmax(-1) @ value
    heads = heads + gates[:, None, None] * (query[0] @ prompt_key.mT / 2).softmax(-1) @ prompt_value
    hidden = hidden + attention.o_proj(heads.transpose(0, 1).flatten(1))
    expected = model.norm(hidden + block.mlp(block.post_attention_layernorm(hidden)))
    assert close(model(TEXT).last_hidden_state, expected)
    with model.prompts.disabled():
        assert not torch.allclose(model(TEXT).last_hidden_state, expected, atol=1e-2)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_at_the_start_the_model_is_unchanged_bit_for_bit(architecture):
    base = tiny_model(architecture)
    expected = base(TEXT).logits
    assert torch.equal(attach(base)(TEXT).logits, expected)


def test_at_the_start_a_biased_output_projection_changes_nothing():
    """PEFT adds the bias twice in this case."""
    model = one_layer(attention_bias=True)
    torch.nn.init.ones_(model.layers[0].self_attn.o_proj.bias)
    expected = model(TEXT).last_hidden_state
    assert torch.equal(attach(model)(TEXT).last_hidden_state, expected)


@pytest.mark.parametrize("gate", ["head", "layer"])
def test_the_first_step_moves_the_gates_alone_and_the_second_both(gate):
    model = attach(tiny_model("llama"), gate=gate).train()
    own = learned(model)
    optimizer = torch.optim.SGD([own.prompts, own.gates], lr=0.1)
    model(TEXT, labels=TEXT).loss.backward()
    assert torch.count_nonzero(own.prompts.grad) == 0
    assert torch.count_nonzero(own.gates.grad) == own.gates.numel()
    optimizer.step()
    optimizer.zero_grad()
    model(TEXT, labels=TEXT).loss.backward()
    assert torch.count_nonzero(own.prompts.grad) == own.prompts.numel()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_upper_layers_are_adapted_and_lower_ones_left_alone(architecture):
    base = tiny_model(architecture)
    before = base(TEXT, output_hidden_states=True).hidden_states
    model = attach(base, 0.9, num_layers_from_top=1)
    assert learned(model).prompts.shape[0] == 1
    after = model(TEXT, output_hidden_states=True).hidden_states
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[2], before[2], atol=1e-2)


def test_prompt_scores_depend_on_absolute_positions():
    """The query is rotated and the prompt's key is not, as in the reference; the base model sees only distances."""
    model = attach(tiny_model("llama"), 0.9)
    positions = torch.arange(TEXT.shape[1])[None]
    moved = model(TEXT, position_ids=positions + 9).logits
    assert not torch.allclose(moved, model(TEXT, position_ids=positions).logits, atol=1e-2)
    with model.prompts.disabled():
        assert torch.allclose(
            model(TEXT, position_ids=positions + 9).logits, model(TEXT, position_ids=positions).logits, atol=1e-3
        )


def test_parameters_of_llama_7b():
    """1.2 million: 10 tokens of width 4,096 and 32 gates in each of the upper 30 of 32 layers."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    zoo.get_method("llama_adapter")(model)
    assert model.prompts["default"].num_parameters == 30 * (10 * 4096 + 32) == 1_229_760
    zoo.detach(model)
    zoo.get_method("llama_adapter")(model, gate="layer")
    assert model.prompts["default"].num_parameters == 30 * (10 * 4096 + 1)


def test_merged_gates_are_folded():
    model = attach(tiny_model("llama"), 0.8, num_layers_from_top=1)
    gates, expected = learned(model).gates.detach(), model(TEXT).logits
    zoo.merge(model)
    tensors = learned(model).tensors
    assert set(tensors) == {"decoder_1", "decoder_1_gate"}
    assert torch.equal(tensors["decoder_1_gate"], torch.tanh(gates[0]))
    assert close(model(TEXT).logits, expected)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"num_layers_from_top": 3}, zoo.UnsupportedError, "num_layers_from_top is 3, but the model has 2 layers"),
        ({"num_layers_from_top": 0}, ValueError, "num_layers_from_top is 0; expected an integer of at least 1"),
        ({"num_layers_from_top": True}, TypeError, "num_layers_from_top is True"),
        ({"gate": "token"}, ValueError, "gate is 'token'; expected one of 'head', 'layer'"),
    ],
)
def test_bad_options_change_nothing(options, error, reason):
    model = tiny_model("llama")
    with pytest.raises(error, match=reason):
        zoo.get_method("llama_adapter")(model, **options)
    assert not hasattr(model, "prompts")


@pytest.mark.parametrize("architecture", ["bert", "t5", "bart"])
def test_models_that_are_not_causal_are_refused_before_anything_is_changed(architecture):
    model = tiny_model(architecture)
    with pytest.raises(zoo.UnsupportedError, match=r"family 'encoder.*choose prefix_tuning or prompt_tuning"):
        zoo.get_method("llama_adapter")(model)
    assert not hasattr(model, "prompts")
    assert model.config._attn_implementation == "sdpa"
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["bloom", "falcon"])
def test_causal_models_reached_through_their_cache_are_told_what_works(architecture):
    model = tiny_model(architecture)
    reason = f"{architecture}'s attention is reached through its cache only, .* no place for them; choose a method with"
    with pytest.raises(zoo.UnsupportedError, match=f"llama_adapter needs gated tokens, .* {reason}") as told:
        zoo.get_method("llama_adapter")(model)
    assert not hasattr(model, "prompts")
    for method in ("prefix_tuning", "p_tuning_v2", "prompt_tuning", "p_tuning"):
        assert method in str(told.value)
        zoo.get_method(method)(model, method, num_virtual_tokens=2)


def test_an_adapter_added_beside_a_prompt_on_a_model_it_does_not_work_on_is_refused():
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)
    with pytest.raises(zoo.UnsupportedError, match="self-attention of a causal model"):
        model.prompts.add("adapter", "llama_adapter")
    assert model.prompts.keys() == ["default"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_compiles_into_one_graph(architecture, dtype):
    """This works even as the first call after the model was cast."""
    model = attach(tiny_model(architecture), 0.8, num_layers_from_top=1).to(dtype)
    torch._dynamo.reset()
    logits = torch.compile(model, backend="aot_eager", fullgraph=True)(TEXT).logits
    assert close(logits, model(TEXT).logits)
    logits.sum().backward()
    assert learned(model).prompts.grad.abs().max() > 0


# PEFT


def in_peft(architecture, gate_value, layers=1, model=None):
    """Return a PEFT adapter with gates of this size, on a base model of its own unless one is given."""
    peft = pytest.importorskip("peft")
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=layers)
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(tiny_model(architecture) if model is None else model, config).eval()
    for name, parameter in wrapped.named_parameters():
        if name.endswith("adaption_gate"):
            torch.nn.init.constant_(parameter, gate_value)
    return wrapped


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_peft_gives_our_logits(architecture, layers, tmp_path):
    peft = pytest.importorskip("peft")
    model = attach(tiny_model(architecture), 0.9, gate="layer", num_layers_from_top=layers)
    model.save_pretrained(tmp_path)
    base = tiny_model(architecture)
    plain = base(TEXT).logits
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path)
    assert close(wrapped(input_ids=TEXT).logits, model(TEXT).logits)
    assert not torch.allclose(model(TEXT).logits, plain, atol=1e-1)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(TEXT)}
    assert torch.equal(wrapped.generate(input_ids=TEXT, **options), model.generate(TEXT, **options))


@pytest.mark.parametrize("gate_value", [0.0, 0.9])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_peft_gives_our_logits_with_a_hole_in_the_mask(architecture, gate_value, tmp_path):
    """Without `position_ids` a hole takes up a position in the base model."""
    peft = pytest.importorskip("peft")
    hole = torch.tensor([[1, 1, 0, 1, 1, 1]])
    model = attach(tiny_model(architecture), gate_value, gate="layer")
    model.save_pretrained(tmp_path)
    wrapped = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path)
    seen = hole[0].bool()
    ours, theirs = (subject(input_ids=TEXT, attention_mask=hole).logits[:, seen] for subject in (model, wrapped))
    assert close(ours, theirs)


@pytest.mark.parametrize("gate_value", [0.6, -0.9, 1.7])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_we_give_pefts_logits(architecture, gate_value, tmp_path):
    """A gate of 1.7 is not a value of tanh, so it is loaded as merged tokens."""
    wrapped = in_peft(architecture, gate_value)
    expected = wrapped(input_ids=TEXT).logits
    wrapped.save_pretrained(tmp_path)
    model = zoo.load(tiny_model(architecture), tmp_path)
    assert close(model(TEXT).logits, expected)
    assert not torch.allclose(expected, tiny_model(architecture)(TEXT).logits, atol=1e-1)
    assert model.prompts["default"].is_merged == (gate_value > 1)
    assert model.prompts["default"].config.num_layers_from_top == 1


def test_an_imported_adapter_trains_on_and_goes_back_to_peft(tmp_path):
    wrapped = in_peft("llama", 0.6, layers=2)
    wrapped.save_pretrained(tmp_path / "from_peft")
    model = zoo.load(tiny_model("llama"), tmp_path / "from_peft", trainable=True)
    model(TEXT, labels=TEXT).loss.backward()
    assert torch.count_nonzero(learned(model).gates.grad) == 2
    zoo.export(model, tmp_path / "to_peft", to="peft")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "to_peft" / name).is_file()
    again = zoo.load(tiny_model("llama"), tmp_path / "to_peft")
    assert close(again(TEXT).logits, wrapped(input_ids=TEXT).logits)


def test_our_keys_and_fields_are_pefts_own(tmp_path):
    from safetensors.torch import load_file

    in_peft("llama", 0.6, layers=2).save_pretrained(tmp_path / "theirs")
    zoo.export(attach(tiny_model("llama"), gate="layer"), tmp_path / "ours", to="peft")
    ours, theirs = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ours", "theirs"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    fields = [json.loads((tmp_path / folder / "adapter_config.json").read_text()) for folder in ("ours", "theirs")]
    names = ("peft_type", "task_type", "adapter_len", "adapter_layers", "target_modules")
    assert [fields[0][name] for name in names] == [fields[1][name] for name in names]


def biased():
    return LlamaForCausalLM(tiny_model("llama").config.__class__(**{**SIZES, "attention_bias": True})).eval()


def wide_heads():
    return MistralForCausalLM(MistralConfig(**SIZES, head_dim=16)).eval()


SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("build", "gate", "reason"),
    [
        (lambda: tiny_model("llama"), "head", "one gate per layer, but this prompt has one per head.*gate='layer'"),
        (lambda: tiny_model("gpt2"), "layer", "after the output projection"),
        (lambda: tiny_model("qwen3"), "layer", "runs on llama and mistral, not on qwen3"),
        (biased, "layer", "model.layers.0.self_attn.o_proj.bias a second time"),
        (wide_heads, "layer", "hidden size / heads = 32 / 4, but here it is 16"),
    ],
)
def test_what_peft_cannot_hold_is_refused_and_saved_in_our_format(build, gate, reason, tmp_path):
    model = attach(build(), 0.8, gate=gate)
    with pytest.raises(zoo.UnsupportedError, match=reason):
        zoo.export(model, tmp_path / "peft", to="peft")
    assert not (tmp_path / "peft").exists()
    expected = model(TEXT).logits
    model.save_pretrained(tmp_path / "ours")
    assert not (tmp_path / "ours" / "adapter_config.json").exists()
    zoo.detach(model)
    assert torch.equal(zoo.load(model, tmp_path / "ours")(TEXT).logits, expected)


def test_a_merged_adapter_is_not_written_as_a_prefix(tmp_path):
    model = zoo.merge(attach(tiny_model("llama"), 0.8, gate="layer"))
    with pytest.raises(zoo.UnsupportedError, match="gated tokens"):
        zoo.export(model, tmp_path / "peft", to="peft")


@pytest.mark.parametrize(
    ("build", "reason"),
    [(lambda: tiny_model("gpt2"), "after the output projection"), (biased, "a second time")],
)
def test_adapters_of_models_on_which_peft_differs_are_not_read(build, reason, tmp_path):
    in_peft("", 0.6, model=build()).save_pretrained(tmp_path)
    model = build()
    with pytest.raises(zoo.UnsupportedError, match=reason):
        zoo.load(model, tmp_path)
    assert not hasattr(model, "prompts")


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    in_peft("llama", 0.6, layers=2).save_pretrained(tmp_path)
    config, tensors = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    fields, saved = json.loads(config.read_text()), load_file(tensors)
    gate = "base_model.model.model.layers.0.self_attn.adaption_gate"
    for changed, replaced, error, reason in (
        ({"adapter_len": None}, {}, zoo.CheckpointError, "adapter_len None; expected an integer of at least 1"),
        ({"adapter_layers": True}, {}, zoo.CheckpointError, "adapter_layers True"),
        ({"adapter_layers": 3}, {}, zoo.BackboneMismatchError, "num_layers_from_top is 3, but the model has 2 layers"),
        ({"adapter_len": 5}, {}, zoo.BackboneMismatchError, r"shape \(1, 4, 32\); this model needs \(1, 5, 32\)"),
        ({}, {gate: torch.zeros(4)}, zoo.BackboneMismatchError, r"adaption_gate' has shape \(4,\)"),
        ({}, {gate: None}, zoo.BackboneMismatchError, "no tensor 'base_model.model.model.layers.0.self_attn"),
    ):
        config.write_text(json.dumps({**fields, **changed}))
        save_file({name: tensor for name, tensor in {**saved, **replaced}.items() if tensor is not None}, tensors)
        model = tiny_model("llama")
        with pytest.raises(error, match=reason):
            zoo.load(model, tmp_path)
        assert not hasattr(model, "prompts")
