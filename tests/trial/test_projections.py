"""`backbone.project`: keys and values by each layer's own projections, computed by hand from its weights."""

import copy
import pickle

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

import softprompt_zoo as zoo
from softprompt_zoo.testing import TINY_MODELS, tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.trial.examination import examine

TOKENS = 5


def split_heads(states, head_dim):
    """Reshape `(tokens, kv_heads * head_dim)` to `(kv_heads, tokens, head_dim)`."""
    return states.unflatten(1, (-1, head_dim)).transpose(0, 1)


def separate(key, value, norm=None):
    """Return the computation by hand for a family with one linear layer for keys and one for values."""

    def compute(attention, hidden, head_dim):
        keys = split_heads(getattr(attention, key)(hidden), head_dim)
        if norm is not None:
            keys = getattr(attention, norm)(keys)
        return keys, split_heads(getattr(attention, value)(hidden), head_dim)

    return compute


def gpt2(attention, hidden, head_dim):
    weight, bias = attention.c_attn.weight, attention.c_attn.bias  # (in, 3 * out)
    both = (hidden @ weight + bias).split(hidden.shape[1], dim=1)
    return split_heads(both[1], head_dim), split_heads(both[2], head_dim)


def gpt_neox(attention, hidden, head_dim):
    fused = attention.query_key_value(hidden).unflatten(1, (-1, 3, head_dim))  # per head query, key, value
    return fused[:, :, 1].transpose(0, 1), fused[:, :, 2].transpose(0, 1)


def modernbert(attention, hidden, head_dim):
    fused = attention.Wqkv(hidden).unflatten(1, (3, -1, head_dim))
    return fused[:, 1].transpose(0, 1), fused[:, 2].transpose(0, 1)


BY_HAND = {
    "gpt2": gpt2,
    "llama": separate("k_proj", "v_proj"),
    "qwen3": separate("k_proj", "v_proj", "k_norm"),
    "gemma3": separate("k_proj", "v_proj", "k_norm"),
    "mistral": separate("k_proj", "v_proj"),
    "gpt_neox": gpt_neox,
    "bert": separate("key", "value"),
    "distilbert": separate("k_lin", "v_lin"),
    "modernbert": modernbert,
    "t5": separate("k", "v"),
    "bart": separate("k_proj", "v_proj"),
}


def last_site(backbone):
    return "decoder" if "decoder" in backbone.layers else "encoder"


def states_for(backbone, site, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    sizes = (len(backbone.layers[site]), TOKENS, backbone.hidden_size)
    return torch.randn(sizes, generator=generator).to(dtype).requires_grad_()


def check_by_hand(model, backbone, site, dtype=torch.float32, tolerance=None):
    states = states_for(backbone, site, dtype)
    found = backbone.project(site, list(states)).sites[site]
    assert found.gates is None
    for layer, name in enumerate(backbone.module_names[site]):
        attention = model.get_submodule(name)
        shape = backbone.layers[site][layer]
        compute = BY_HAND[model.config.model_type.replace("gemma3_text", "gemma3")]
        expected = compute(attention, states[layer], shape.head_dim)
        for actual, wanted, kind in zip((found.keys[layer], found.values[layer]), expected, "kv", strict=True):
            assert actual.shape == (shape.kv_heads, TOKENS, shape.head_dim)
            assert actual.dtype == dtype
            if tolerance is None:
                assert_equal(actual, wanted, f"{kind} of layer {layer}")
            else:
                assert torch.allclose(actual, wanted, atol=tolerance, rtol=tolerance)
        gradient = torch.autograd.grad(found.keys[layer].sum() + found.values[layer].pow(2).sum(), states)[0]
        wanted = torch.autograd.grad(expected[0].sum() + expected[1].pow(2).sum(), states)[0]
        assert gradient[layer].abs().max() > 0
        assert torch.allclose(gradient.float(), wanted.float(), atol=tolerance or 1e-3, rtol=tolerance or 1e-4)


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_keys_and_values_are_the_layers_own(architecture):
    model = tiny_model(architecture)
    backbone, _ = examine(model)
    sites = [site for site in backbone.layers if site != "cross"]
    for site in sites:
        check_by_hand(model, backbone, site)
    assert model.config._attn_implementation == "sdpa"
    assert not any(key.startswith("_softprompt") for module in model.modules() for key in vars(module))


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_an_attached_model_that_trains_gives_the_same(architecture):
    model = tiny_model(architecture, implementation="eager")
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    model.train()
    check_by_hand(model, model.prompts.backbone, last_site(model.prompts.backbone))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3", "gemma3"])
def test_after_a_cast_of_the_model(architecture):
    model = tiny_model(architecture)
    backbone, _ = examine(model)
    backbone.project("decoder", list(states_for(backbone, "decoder")))
    model.to(torch.bfloat16)
    check_by_hand(model, backbone, "decoder", torch.bfloat16, tolerance=0.05)
    model.to(torch.float64)
    check_by_hand(model, backbone, "decoder", torch.float64, tolerance=1e-12)


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_layers_without_tokens_and_the_meta_device(architecture):
    model = tiny_model(architecture).to("meta")
    backbone, _ = examine(model)
    site = last_site(backbone)
    shapes = backbone.layers[site]
    states = [None] * (len(shapes) - 1) + [torch.empty(TOKENS, backbone.hidden_size, device="meta")]
    found = backbone.project(site, states).sites[site]
    assert found.keys[:-1] == found.values[:-1] == (None,) * (len(shapes) - 1)
    assert found.keys[-1].is_meta
    assert found.keys[-1].shape == found.values[-1].shape == (shapes[-1].kv_heads, TOKENS, shapes[-1].head_dim)


def test_weights_are_looked_at_anew():
    model = tiny_model("llama")
    backbone, _ = examine(model)
    check_by_hand(model, backbone, "decoder")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight.mul_(2)
    check_by_hand(model, backbone, "decoder")


def test_first_projected_under_inference_mode_it_still_trains():
    model = tiny_model("llama")
    backbone, _ = examine(model)
    with torch.inference_mode():
        backbone.project("decoder", list(states_for(backbone, "decoder")))
    check_by_hand(model, backbone, "decoder")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_projects_by_its_own_weights(clone):
    model = tiny_model("llama")
    zoo.get_method("prompt_tuning")(model, num_virtual_tokens=2)
    check_by_hand(model, model.prompts.backbone, "decoder")
    copied = clone(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    check_by_hand(copied, copied.prompts.backbone, "decoder")


def test_layers_of_another_width_than_the_embeddings_are_refused():
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=50, num_attention_heads=4, max_position_embeddings=64, **sizes))
    backbone, _ = examine(model)
    with pytest.raises(zoo.UnsupportedError, match="states of width 32 and its embeddings have width 16"):
        backbone.project("decoder", [torch.zeros(TOKENS, 16)] * 2)


def test_names_of_modules_and_parameters_are_the_users():
    model = tiny_model("llama")
    backbone, _ = examine(model)
    assert backbone.module_names == {"decoder": ("model.layers.0.self_attn", "model.layers.1.self_attn")}
    assert backbone.parameter_names == frozenset(model.state_dict())
    assert backbone.model_type == "llama"
