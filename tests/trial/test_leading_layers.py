"""Only a model's leading layers are tried before a prompt is attached; faults of other layers are still refused."""

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRotaryEmbedding

import softprompt_zoo as zoo
from softprompt_zoo.testing.sizes import ROTARY
from softprompt_zoo.trial import rehearsal
from softprompt_zoo.trial.leading_layers import leading
from softprompt_zoo.trial.stacks import find_stacks

DEEP = {**ROTARY, "num_hidden_layers": 6}
ODD = 4
"""The layer that differs."""


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Forget what other tests have found."""
    monkeypatch.setattr(rehearsal, "_FOUND", {})


def deep(kind=LlamaForCausalLM, config=LlamaConfig, **more):
    """Build a model of six layers with weights large enough that every part of it matters."""
    torch.manual_seed(0)
    model = kind(config(**{**DEEP, **more})).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def depth(model):
    stack = leading(find_stacks(model)[1]["decoder"])
    return None if stack is None else len(stack.attentions["decoder"])


class LooksBack(LlamaAttention):
    """Attention that adds to every token what the token before it read, times a gate."""

    def forward(self, *args, **kwargs):
        states, weights = super().forward(*args, **kwargs)
        return states + self.gate * states.roll(1, dims=1), weights


class Always(LooksBack):
    """Attention whose gate is open."""

    gate = 1.0


class Told(LooksBack):
    """Attention that reads its gate from a list in the config."""

    @property
    def gate(self):
        return self.config.gates[self.layer_idx]


def by_class(model, odd):
    odd.__class__ = Always


def by_weight(model, odd):
    for layer in model.model.layers:
        layer.self_attn.__class__ = LooksBack
        layer.self_attn.gate = torch.nn.Parameter(torch.zeros(1))
    torch.nn.init.ones_(odd.gate)


def by_buffer(model, odd):
    for layer in model.model.layers:
        layer.self_attn.__class__ = LooksBack
        layer.self_attn.register_buffer("gate", torch.tensor(float(layer.self_attn is odd)))


def by_attribute(model, odd):
    for layer in model.model.layers:
        layer.self_attn.__class__ = LooksBack
        layer.self_attn.gate = int(layer.self_attn is odd)


def by_config(model, odd):
    model.config.gates = [int(layer.self_attn is odd) for layer in model.model.layers]
    for layer in model.model.layers:
        layer.self_attn.__class__ = Told


def by_size(model, odd):
    """Make all layers look back, but all except `odd` by no more than rounding."""
    for layer in model.model.layers:
        layer.self_attn.__class__ = Always
        if layer.self_attn is not odd:
            layer.self_attn.o_proj.weight.data *= 1e-7


@pytest.mark.parametrize("fault", [by_class, by_weight, by_buffer, by_attribute, by_config, by_size])
def test_a_layer_behind_the_leading_ones_that_looks_back_is_refused(fault):
    model = deep()
    zoo.detach(zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2))
    fault(model, model.model.layers[ODD].self_attn)
    rehearsal._FOUND.clear()
    with pytest.raises(zoo.UnsupportedError, match="do not act as these words do"):
        zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)


def test_only_the_leading_layers_are_tried(monkeypatch):
    model, tried = deep(), []
    stacks = find_stacks(model)
    forward = LlamaDecoderLayer.forward

    def note(self, *args, **kwargs):
        tried.append(self.self_attn.layer_idx)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", note)
    assert rehearsal.rehearse(*stacks) == rehearsal.Findings()
    assert set(tried) == {0, 1}


def test_there_is_one_layer_of_each_kind():
    windows = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    assert depth(deep(Gemma3ForCausalLM, Gemma3TextConfig, layer_types=windows, sliding_window=4)) == 3
    assert depth(deep()) == 2
    model = deep()
    by_weight(model, model.model.layers[ODD].self_attn)
    assert depth(model) == ODD + 1
    model.model.layers[-1].mlp.act_fn = torch.nn.Tanh()
    assert depth(model) is None


def test_a_trial_of_long_text_leaves_the_rotation_alone_that_others_use_meanwhile(monkeypatch):
    """Dynamic NTK writes its frequencies into a buffer."""
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    model, longest, kept = deep(rope_parameters=rope, max_position_embeddings=16), [], []
    rotary = model.model.rotary_emb
    before, forward = rotary.inv_freq.clone(), LlamaRotaryEmbedding.forward

    def watch(self, states, position_ids):
        found = forward(self, states, position_ids)
        longest.append(int(position_ids.max()))
        kept.append(torch.equal(rotary.inv_freq, before))
        return found

    stacks = find_stacks(model)
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", watch)
    with torch.no_grad():
        assert rehearsal._passes(*stacks)
    assert max(longest) > 16
    assert all(kept)


class Skips(LlamaAttention):
    """Attention that acts only if its queries are not all zero, as they are while linear layers are idle."""

    def forward(self, hidden_states, *args, **kwargs):
        if not self.q_proj(hidden_states).any():
            return torch.zeros_like(hidden_states), None
        return super().forward(hidden_states, *args, **kwargs)


def test_attention_that_depends_on_weights_is_found():
    model = deep()
    for layer in model.model.layers:
        layer.self_attn.__class__ = Skips
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=2)
    assert len(model.prompts.backbone.layers["decoder"]) == 6
    assert not model.prompts.backbone.through_cache
