"""Gated tokens: their own softmax next to the text's, against computation by hand and the base model."""

import types

import pytest
import torch
from helpers.gated_method import PLUGIN, attach, open_gates
from helpers.products import in_turns
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import softprompt_zoo as zoo
from softprompt_zoo.testing import conformance_suite, tiny_model
from softprompt_zoo.testing.checks import turn_checkpointing_on
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject, pad, random_text
from softprompt_zoo.tokens.kinds import from_tensors
from softprompt_zoo.trial.examination import examine

TEXT = random_text(7, 3)
CAUSAL = ["gpt2", "llama", "qwen3", "gemma3", "mistral", "gpt_neox"]


@pytest.fixture(autouse=True)
def gated():
    zoo.register(PLUGIN)
    yield
    zoo.unregister("gated_test")


def make_suite():
    zoo.register(PLUGIN)
    try:
        return conformance_suite("gated_test", architectures=["bert", "t5"])
    finally:
        zoo.unregister("gated_test")


TestEveryOtherFamily = make_suite()


def one_layer_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaModel(LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes)).eval()


def by_hand(model, ids, gated_prompts, prefix=None):
    """Compute one llama layer in loops: the text's softmax (with a prefix) plus a softmax per gated prompt."""
    layer = model.layers[0]
    attention = layer.self_attn
    count = 0 if prefix is None else prefix[0].shape[1]
    hidden = model.embed_tokens(ids)
    normed = layer.input_layernorm(hidden)
    cos, sin = model.rotary_emb(hidden, torch.arange(count, count + ids.shape[1])[None])
    q, k, v = (
        p(normed)[0].unflatten(1, (-1, 4)).transpose(0, 1)[None]
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    heads = []
    for head in range(4):
        queries, keys, values = q[0, head], k[0, head // 2], v[0, head // 2]
        scores = queries @ keys.T / 2
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf)
        if prefix is not None:
            scores = torch.cat([queries @ prefix[0][head // 2].T / 2, scores], dim=1)
            values = torch.cat([prefix[1][head // 2], values])
        result = scores.softmax(-1) @ values
        for prompt_keys, prompt_values, gates in gated_prompts:
            gate = gates[head] if len(gates) > 1 else gates[0]
            result = result + gate * (queries @ prompt_keys[head // 2].T / 2).softmax(-1) @ prompt_values[head // 2]
        heads.append(result)
    hidden = hidden + attention.o_proj(torch.cat(heads, dim=1))[None]
    return model.norm(hidden + layer.mlp(layer.post_attention_layernorm(hidden)))


def tensors_of(model, name="default"):
    found = model.prompts[name].learned.tensors
    return found["decoder_0_keys"], found["decoder_0_values"], found["decoder_0_gates"]


@pytest.mark.parametrize("wide", [True, False])
@torch.no_grad()
def test_two_softmaxes_by_hand(wide):
    model = one_layer_llama()
    ids = torch.tensor([[4, 9, 30]])
    zoo.get_method("gated_test")(model, num_virtual_tokens=3, wide=wide)
    open_gates(model)
    keys, values, gates = tensors_of(model)
    actual = model(ids).last_hidden_state
    assert_equal(actual, by_hand(model, ids, [(keys, values, gates)]), "two softmaxes")
    assert not torch.allclose(actual, by_hand(model, ids, [], (keys, values)), atol=1e-2), "one softmax"
    assert not torch.allclose(actual, by_hand(model, ids, []), atol=1e-2), "no prompt"


@torch.no_grad()
def test_two_gated_prompts_and_a_prefix_by_hand():
    model = one_layer_llama()
    ids = torch.tensor([[4, 9, 30]])
    zoo.get_method("gated_test")(model, num_virtual_tokens=3)
    model.prompts.add("second", "gated_test", num_virtual_tokens=5, wide=False)
    model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=2, init="random")
    open_gates(model)
    open_gates(model, -0.4, "second")
    flat = model.prompts["prefix"].learned.prefixes["decoder"].embeddings
    pair = flat.view(2, 2, 2, 4).permute(1, 2, 0, 3)
    gated_prompts = [tensors_of(model), tensors_of(model, "second")]
    expected = by_hand(model, ids, gated_prompts, (pair[0], pair[1]))
    for order in (["default", "prefix", "second"], ["second", "default", "prefix"]):
        assert_equal(model(ids, prompts=[order]).last_hidden_state, expected, f"{order}")
    rows = [["second", "prefix"], None, "default", ["default", "second"], "prefix"]
    batch = model(ids.expand(5, -1), prompts=rows).last_hidden_state
    prefixes = [(pair[0], pair[1]), None, None, None, (pair[0], pair[1])]
    parts = [gated_prompts[1:], [], gated_prompts[:1], gated_prompts, []]
    for row in range(5):
        assert_equal(batch[row], by_hand(model, ids, parts[row], prefixes[row])[0], f"row {row}")


@in_turns(architecture=CAUSAL, implementation=["sdpa", "eager"])
def test_a_closed_gate_is_the_base_model_bit_for_bit(architecture, implementation):
    base = Subject(architecture, tiny_model(architecture, implementation=implementation))
    ids, mask = pad([TEXT, random_text(4, 5)], "right")
    expected = base.logits(ids, mask)
    subject = Subject(architecture, attach(architecture, 0.0, implementation))
    actual = subject.logits(ids, mask)
    assert all(torch.equal(a[m.bool()], b[m.bool()]) for a, b, m in zip(actual, expected, mask, strict=True))
    open_gates(subject.model)
    assert not torch.allclose(subject.logits(ids, mask), expected, atol=1e-2)


def test_a_weight_multiplies_the_gate():
    model = attach()
    ids = random_text(9, 1)
    with torch.no_grad():
        open_gates(model, 0.8)
        expected = model(input_ids=ids).logits
        open_gates(model, 0.4)
        assert (model(input_ids=ids).logits - expected).abs().max() > 1e-3
        model.prompts.set_weight("default", 2)
        assert_equal(model(input_ids=ids).logits, expected, "half the gate, twice the weight")


def test_gated_tokens_take_up_no_positions():
    """A text that fills all 64 positions of the table still fits, at the same positions."""
    text = random_text(64, 1)
    assert torch.equal(attach("gpt2", 0.0)(text).logits, tiny_model("gpt2")(text).logits)
    assert attach("gpt2", 0.7)(text).logits.shape == (1, 64, 101)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lower_layers_are_unaffected(architecture):
    model = attach(architecture, layers=1)
    base = tiny_model(architecture)(TEXT, output_hidden_states=True).hidden_states
    prompted = model(TEXT, output_hidden_states=True).hidden_states
    assert torch.equal(prompted[1], base[1])
    assert not torch.allclose(prompted[2], base[2], atol=1e-2)
    assert [name for name in model.prompts["default"].learned.tensors if name.startswith("decoder_0")] == []


@pytest.mark.parametrize("architecture", CAUSAL)
def test_sdpa_and_eager_agree(architecture):
    expected = attach(architecture)(TEXT).logits
    assert_equal(attach(architecture, implementation="eager")(TEXT).logits, expected, "eager")


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_with_a_prefix_and_two_gated_prompts(use_reentrant):
    model = attach(layers=1)
    model.prompts.add("second", "gated_test", num_virtual_tokens=6, wide=False)
    model.prompts.add("prefix", "prefix_tuning", num_virtual_tokens=2)
    open_gates(model, 0.3, "second")
    subject = Subject("llama", model.train())
    rows = [["default", "prefix"], ["second", "default"], "second"]
    ids, mask = pad([TEXT, random_text(4, 5), random_text(5, 6)], "right")

    def gradients():
        logits = model(input_ids=ids, attention_mask=mask, prompts=rows).logits
        (logits.pow(2) * mask[..., None]).sum().backward()
        return subject.gradients()

    plain = gradients()
    assert len(plain) == 3 + 6 + 1
    turn_checkpointing_on(model, use_reentrant)
    for name, gradient in gradients().items():
        assert_equal(gradient, plain[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("is_merged", [False, True])
def test_compiles_into_one_graph(is_merged):
    model = attach(layers=1)
    model.prompts.add("second", "gated_test", num_virtual_tokens=6)
    open_gates(model, 0.3, "second")
    rows = [["default", "second"], None, "second"]
    ids = TEXT.expand(3, -1)
    expected = model(ids, prompts=rows).logits.detach()
    if is_merged:
        zoo.merge(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_equal(compiled(ids, prompts=rows).logits, expected, "compiled logits")


def test_dropout_of_the_base_model_leaves_gated_tokens_alone():
    """Attention to the text is dropped completely, so only the gated part is left, the same as in eval mode."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, attn_pdrop=1.0, resid_pdrop=0.0, embd_pdrop=0.0)
    model = GPT2Model(config)
    zoo.get_method("gated_test")(model, num_virtual_tokens=3)
    open_gates(model)
    added = []
    handle = model.h[0].attn.c_proj.register_forward_pre_hook(lambda module, args: added.append(args[0]))
    ids = torch.tensor([[4, 9, 30]])
    model.train()(ids)
    model.eval()(ids)
    model(ids, prompts=[None])
    handle.remove()
    assert_equal(added[0], added[1] - added[2], "the gated part")


def test_tensors_of_gated_tokens_make_a_round_trip(tmp_path):
    model = attach(layers=1, wide=False)
    backbone = model.prompts.backbone
    tensors = model.prompts["default"].place(backbone).tokens.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "decoder_1": (4, 2 * 2 * 8),
        "decoder_1_gate": (1,),
    }
    site = from_tensors(tensors, backbone).sites["decoder"]
    assert site.keys[0] is site.values[0] is site.gates[0] is None
    keys, values, gates = (
        model.prompts["default"].learned.tensors[f"decoder_1_{k}"] for k in ("keys", "values", "gates")
    )
    assert torch.equal(site.keys[1], keys)
    assert torch.equal(site.values[1], values)
    assert torch.equal(site.gates[1], gates)
    expected = model(TEXT).logits
    zoo.merge(model).save_pretrained(tmp_path)
    assert_equal(zoo.load(tiny_model("llama"), tmp_path)(TEXT).logits, expected, "merged, saved and loaded")


def test_tensors_that_do_not_fit_are_refused():
    backbone, _ = examine(tiny_model("llama"))
    tokens, gate = torch.zeros(4, 32), torch.zeros(1)
    for tensors, reason in (
        ({"decoder_1": tokens}, "no 'decoder_1_gate' next to 'decoder_1'"),
        ({"decoder_1_gate": gate}, "no 'decoder_1' next to 'decoder_1_gate'"),
        ({"decoder_2": tokens, "decoder_2_gate": gate}, "there is 'decoder_2'.*has 2 layers"),
        ({"decoder_1": tokens, "decoder_1_gate": torch.zeros(3)}, r"decoder_1_gate of shape \(3,\); expected \(4,\)"),
        ({"cross_0": tokens, "cross_0_gate": gate}, "site 'cross_0'"),
    ):
        with pytest.raises(zoo.ShapeError, match=reason):
            from_tensors(tensors, backbone)


def test_gated_tokens_that_do_not_fit_are_refused_before_anything_is_changed():
    keys = torch.zeros(2, 4, 8)
    gate = torch.zeros(1)
    for site, reason in (
        (zoo.SiteTokens((None, keys), (None, keys), (None, torch.zeros(3))), r"the gate of 'decoder' layer 1 of shape"),
        (zoo.SiteTokens((keys, keys), (keys, keys), (None, gate)), "keys of 'decoder' layer 0 without a gate"),
        (zoo.SiteTokens((None, None), (None, None), (None, None)), "no gate for any layer"),
        (zoo.SiteTokens((None, None), (None, None), (None, gate)), "keys of 'decoder' layer 1 of shape NoneType"),
        (zoo.SiteTokens((None, keys), (None, keys)), "keys of 'decoder' layer 0 of shape NoneType"),
        (zoo.SiteTokens((keys, keys), (keys, keys), (gate,)), "gates for 1 layers of 'decoder'; expected 2"),
    ):
        plugin = types.SimpleNamespace(**vars(PLUGIN))
        plugin.NAME = "gated_wrong"
        plugin.build_virtual_tokens = zoo.hookimpl(lambda site=site: zoo.LayerTokens({"decoder": site}))
        zoo.register(plugin)
        model = tiny_model("llama")
        try:
            with pytest.raises(zoo.ShapeError, match=reason):
                zoo.get_method("gated_wrong")(model, num_virtual_tokens=4)
        finally:
            zoo.unregister("gated_wrong")
        assert not hasattr(model, "prompts")
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("architecture", ["bloom", "falcon", "mpt", "nemotron"])
def test_gates_are_refused_where_the_cache_is_the_only_way_in(architecture):
    model = tiny_model(architecture)
    before = list(model.state_dict())
    with pytest.raises(zoo.UnsupportedError, match="does not support gated tokens; choose a method without gates"):
        zoo.get_method("gated_test")(model, num_virtual_tokens=4)
    assert list(model.state_dict()) == before
    assert not hasattr(model, "prompts")
