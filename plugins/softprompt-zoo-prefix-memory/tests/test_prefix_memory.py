"""PrefixMemory-Tuning against its equation, computed by plain attention next to the model's."""

import pytest
import softprompt_zoo_prefix_memory as page
import torch
from torch.nn import functional

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

TEXT = torch.tensor([[4, 9, 30, 7, 55, 12]])


def attach(architecture="llama", **options):
    torch.manual_seed(0)
    return zoo.get_method("prefix_memory")(tiny_model(architecture), **options)


def learned(model):
    return model.prompts["default"].learned


def fill(model):
    with torch.no_grad():
        for memory in learned(model).parameters():
            memory.copy_(0.3 * torch.randn_like(memory))


def test_the_equation_by_hand():
    """One head of two features, two queries; elu of -log 2 is -1/2."""
    model = attach()
    with torch.no_grad():
        memory = learned(model).memories["decoder"][0].zero_()
        memory[1, :2, :2] = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    heads, width = memory.shape[0], memory.shape[2]
    query = torch.zeros(1, heads, 2, memory.shape[1])
    query[0, 1, :, :2] = torch.tensor([[3.0, -torch.log(torch.tensor(2.0))], [0.0, 0.5]])
    output = torch.zeros(1, 2, heads, width)
    added = page.attend(model.prompts["default"].config, learned(model), "decoder", 0, query, output)
    expected = torch.zeros(1, 2, heads, width)
    expected[0, 0, 1, :2] = torch.tensor([3 - 4 / 2, 6 - 8 / 2])
    expected[0, 1, 1, :2] = torch.tensor([4 * 0.5, 8 * 0.5])
    assert torch.allclose(added, expected)


@pytest.mark.parametrize(("feature_map", "shift"), [("elu", 0.0), ("elu+1", 1.0)])
@pytest.mark.parametrize("share_heads", [True, False])
@torch.no_grad()
def test_the_equation_in_a_model(feature_map, shift, share_heads):
    """Checks the input of each layer's output projection, computed with torch from its projections of the text."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = attach(feature_map=feature_map, share_heads=share_heads)
    fill(model)
    read, written = [], []
    modules = [layer.self_attn for layer in model.model.layers]
    handles = [module.register_forward_pre_hook(keep(read), with_kwargs=True) for module in modules]
    handles += [
        module.o_proj.register_forward_pre_hook(lambda _, given: written.append(given[0])) for module in modules
    ]
    model(TEXT)
    for handle in handles:
        handle.remove()
    length = TEXT.shape[1]
    for index, (module, hidden, found) in enumerate(zip(modules, read, written, strict=True)):
        split = (1, length, -1, module.head_dim)
        q, k, v = (p(hidden).view(split).transpose(1, 2) for p in (module.q_proj, module.k_proj, module.v_proj))
        q, k = apply_rotary_pos_emb(q, k, *model.model.rotary_emb(hidden, torch.arange(length)[None]))
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
        expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        for head in range(q.shape[1]):
            memory = learned(model).memories["decoder"][index]
            matrix = memory[head * len(memory) // q.shape[1]]
            expected[:, head] += (functional.elu(q[:, head]) + shift) @ matrix
        assert torch.allclose(found, expected.transpose(1, 2).flatten(2), atol=1e-5)


def keep(read):
    """Return a hook that keeps the hidden states that attention modules are given."""
    return lambda _, given, named: read.append(given[0] if given else named["hidden_states"])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "t5"])
def test_an_empty_memory_changes_nothing_and_a_full_one_does(architecture):
    inputs = {"input_ids": TEXT} | ({"decoder_input_ids": TEXT} if architecture == "t5" else {})
    expected = tiny_model(architecture)(**inputs).logits
    model = attach(architecture)
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
    fill(model)
    assert not torch.allclose(model(**inputs).logits, expected, atol=1e-3)
    assert model.prompts["default"].num_virtual_tokens == 0


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_gradients_reach_every_memory(architecture):
    model = attach(architecture).train()
    inputs = {"input_ids": TEXT} | ({"decoder_input_ids": TEXT} if architecture == "t5" else {})
    model(**inputs).logits.square().sum().backward()
    for name, memory in learned(model).named_parameters():
        assert memory.grad.abs().max() > 0, name


@pytest.mark.parametrize(("share_heads", "heads"), [(False, "heads"), (True, "kv_heads")])
def test_it_has_a_matrix_per_head(share_heads, heads):
    model = attach(share_heads=share_heads)
    layers = model.prompts.backbone.layers["decoder"]
    expected = sum(getattr(layer, heads) * layer.head_dim**2 for layer in layers)
    assert model.prompts["default"].num_parameters == expected


def test_sites_can_be_chosen():
    model = attach("t5", sites=("cross",))
    assert set(learned(model).memories) == {"cross"}
    fill(model)
    encoder = tiny_model("t5").get_encoder()(TEXT).last_hidden_state
    assert torch.allclose(model.get_encoder()(TEXT).last_hidden_state, encoder, atol=1e-5)


def test_training_lowers_the_loss():
    model = attach().train()
    optimizer = torch.optim.AdamW(model.prompts.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=TEXT, labels=TEXT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_it_has_no_merged_form():
    model = attach()
    fill(model)
    with pytest.raises(zoo.UnsupportedError):
        zoo.merge(model)
    assert not model.prompts["default"].is_merged


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"feature_map": "relu"}, ValueError, "feature_map is 'relu'; expected one of 'elu', 'elu\\+1'"),
        ({"sites": ("decoder", "head")}, ValueError, "sites is 'head'"),
        ({"sites": ()}, ValueError, r"sites is \(\)"),
        ({"sites": ("cross",)}, zoo.UnsupportedError, "this model's cross cannot be reached; it has the sites"),
    ],
)
def test_bad_options_change_nothing(options, error, reason):
    model = tiny_model("llama")
    with pytest.raises(error, match=reason):
        zoo.get_method("prefix_memory")(model, **options)
    assert not hasattr(model, "prompts")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gradients_are_the_same_in_one_compiled_graph():
    """On GPT-2, whose queries are cut out of a projection that also makes keys and values."""
    model = attach("gpt2")
    fill(model)
    trained = list(learned(model).parameters())
    expected = torch.autograd.grad(model(TEXT).logits.pow(2).mean(), trained)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for own, other in zip(torch.autograd.grad(compiled(TEXT).logits.pow(2).mean(), trained), expected, strict=True):
        torch.testing.assert_close(own, other)
