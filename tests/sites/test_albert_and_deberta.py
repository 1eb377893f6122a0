"""Encoders whose attention needs more than the interface: ALBERT's shared module, DeBERTa's own attention."""

import copy
import pickle

import pytest
import torch
from helpers.classifiers import classifier, disturb, logits, texts
from helpers.products import in_turns
from torch import nn
from transformers import AlbertConfig, AlbertModel, AutoModel, BertConfig, DebertaConfig, DebertaModel, DebertaV2Config

import softprompt_zoo as zoo
from softprompt_zoo.testing.checks import turn_checkpointing_on
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.trial.examination import examine

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
IDS = torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(0))
DEBERTA = {"relative_attention": True, "position_buckets": 4, "max_position_embeddings": 64, "vocab_size": 101}
DEBERTA |= {"position_biased_input": False}
KINDS = {
    "both": {"pos_att_type": ["c2p", "p2c"], "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "own projections": {"pos_att_type": ["c2p", "p2c"], "share_att_key": False},
    "one way": {"pos_att_type": ["c2p"], "share_att_key": False},
    "no relative": {"relative_attention": False, "pos_att_type": None},
    "absolute positions": {"pos_att_type": ["c2p", "p2c"], "share_att_key": True, "position_biased_input": True},
    "convolution": {"pos_att_type": ["c2p", "p2c"], "share_att_key": True, "conv_kernel_size": 3},
}


def albert(**options):
    torch.manual_seed(0)
    config = AlbertConfig(vocab_size=101, embedding_size=24, max_position_embeddings=64, **{**SIZES, **options})
    return enlarge(AlbertModel(config))


def deberta(kind="both", **options):
    torch.manual_seed(0)
    config = DebertaV2Config(**SIZES, **{**DEBERTA, **KINDS[kind], **options})
    return enlarge(AutoModel.from_config(config))


def enlarge(model):
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def attach(model, **options):
    torch.manual_seed(1)
    zoo.get_method("p_tuning_v2")(model, **{"num_virtual_tokens": 3, **options})
    disturb(model)
    return model


def states(model, ids=IDS, **more):
    with torch.no_grad():
        return model(ids, **more).last_hidden_state


def attend(query, key, value, made, layer, bias, scale):
    """Compute attention with a softmax over the prompt's keys, with a bias of zero, and the text's."""
    keys, values = torch.cat([made.keys[layer], key], 1), torch.cat([made.values[layer], value], 1)
    scores = query @ keys.transpose(1, 2) / scale
    scores[..., made.keys[layer].shape[1] :] += bias
    return (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)


def heads(states, count=4):
    return states.unflatten(-1, (count, -1)).transpose(0, 1)


@pytest.mark.parametrize(("groups", "inner"), [(1, 1), (2, 1)])
def test_albert_by_hand(groups, inner):
    """Four layers by hand, each with its own keys and values, that share one module or two."""
    base = albert(num_hidden_groups=groups, inner_group_num=inner)
    model = attach(copy.deepcopy(base))
    made = model.prompts["default"].learned.tables["encoder"]()
    with torch.no_grad():
        hidden = base.embeddings(IDS[:1], position_ids=torch.arange(3, 10)[None])
        hidden = base.encoder.embedding_hidden_mapping_in(hidden)[0]
        for layer in range(4):
            block = base.encoder.albert_layer_groups[layer * groups // 4].albert_layers[0]
            own = block.attention
            context = attend(
                heads(own.query(hidden)), heads(own.key(hidden)), heads(own.value(hidden)), made, layer, 0, 8**0.5
            )
            after = own.LayerNorm(hidden + own.dense(context))
            hidden = block.full_layer_layer_norm(block.ff_chunk(after) + after)
        expected = base.pooler_activation(base.pooler(hidden[0]))
        output = model(IDS[:1])
    assert_equal(output.last_hidden_state[0], hidden, "by hand")
    assert_equal(output.pooler_output[0], expected, "pooled")
    assert not torch.allclose(hidden, states(base)[0], atol=1e-2)


def test_alberts_start_values_are_each_layers():
    """They are the keys and values of the text's words at each of the four layers, not at only one."""
    base = albert()
    with torch.no_grad():
        recorded = examine(base)[0].keys_values(IDS[0]).sites["encoder"]
        hidden = base(IDS[:1], output_hidden_states=True).hidden_states
        own = base.encoder.albert_layer_groups[0].albert_layers[0].attention
        assert len(hidden) == 5
        for layer in range(4):
            assert_equal(recorded.keys[layer], heads(own.key(hidden[layer][0])), f"keys of layer {layer}")
            assert_equal(recorded.values[layer], heads(own.value(hidden[layer][0])), f"values of layer {layer}")


def test_alberts_projections_are_found():
    base = albert()
    given = torch.randn(2, 32)
    tokens = examine(base)[0].project("encoder", [None, given, None, given])
    own = base.encoder.albert_layer_groups[0].albert_layers[0].attention
    for layer in (1, 3):
        assert_equal(tokens.sites["encoder"].keys[layer], heads(own.key(given)), "keys")
    assert tokens.sites["encoder"].keys[0] is None


def test_alberts_input_level_prompts_are_real_positions():
    base = albert()
    model = zoo.get_method("prompt_tuning")(copy.deepcopy(base), num_virtual_tokens=2)
    with torch.no_grad():
        model.prompts["default"].learned.embeddings.copy_(base.embeddings.word_embeddings(torch.tensor([5, 6])))
        expected = base(torch.cat([torch.tensor([[5, 6]]).expand(3, -1), IDS], 1)).last_hidden_state[:, 2:]
        output = model(IDS)
        assert_equal(output.last_hidden_state, expected, "states")
        assert_equal(output.pooler_output, base.pooler_activation(base.pooler(expected[:, 0])), "pooled")


def test_albert_refuses_checkpointing():
    model = attach(albert()).train()
    model.encoder.gradient_checkpointing = True
    with pytest.raises(zoo.UnsupportedError, match="share one attention module"):
        model(IDS)
    with torch.no_grad():
        assert model(IDS).last_hidden_state.shape == (3, 7, 32)


def disentangled_by_hand(base, made, ids, start):
    """Compute DeBERTa-v2 of He et al. 2021 on one row: the two relative terms apply only to pairs of text tokens."""
    config = base.config
    count = ids.shape[1]
    hidden = base.embeddings(ids, position_ids=torch.arange(start, start + count)[None])[0]
    relative = base.encoder.get_rel_embedding() if config.relative_attention else None
    kinds = config.pos_att_type or []
    first = hidden
    distance = torch.arange(count)[:, None] - torch.arange(count)[None]
    near, span = config.position_buckets // 2, config.position_buckets
    far = (distance.abs() / near).clamp(min=1).log() / torch.log(torch.tensor((64 - 1) / near)) * (near - 1)
    bucket = torch.where(distance.abs() <= near, distance, (far.ceil().long() + near) * distance.sign())
    for layer, block in enumerate(base.encoder.layer):
        own = block.attention.self
        query, key, value = (heads(part(hidden)) for part in (own.query_proj, own.key_proj, own.value_proj))
        scale = (8 * (1 + len(kinds))) ** 0.5
        bias = torch.zeros(4, count, count)
        for one in kinds:
            shared = config.share_att_key
            to_key = heads((own.key_proj if shared else own.pos_key_proj)(relative))
            if one == "c2p":
                index = (bucket + span).clamp(0, 2 * span - 1)
                bias += torch.stack([(query[:, i, None] * to_key[:, index[i]]).sum(-1) for i in range(count)], 1)
            else:
                to_query = heads((own.query_proj if shared else own.pos_query_proj)(relative))
                index = (bucket + span).clamp(0, 2 * span - 1)  # -(key - query) = query - key
                bias += torch.stack([(key * to_query[:, index[i]]).sum(-1) for i in range(count)], 1)
        context = attend(query, key, value, made, layer, bias / scale, scale)
        after = block.attention.output(context, hidden)
        hidden = block.output(block.intermediate(after), after)
        if layer == 0 and base.encoder.conv is not None:
            hidden = base.encoder.conv(first[None], hidden[None], torch.ones(1, count, dtype=torch.long))[0]
    return hidden


@pytest.mark.parametrize("kind", KINDS)
def test_deberta_by_hand(kind):
    base = deberta(kind)
    model = attach(copy.deepcopy(base))
    made = model.prompts["default"].learned.tables["encoder"]()
    with torch.no_grad():
        empty = type(made)(tuple(k[:, :0] for k in made.keys), tuple(v[:, :0] for v in made.values))
        expected = states(base, IDS[:1])[0]
        assert_equal(disentangled_by_hand(base, empty, IDS[:1], 0), expected, "the oracle itself, without a prompt")
        expected = disentangled_by_hand(base, made, IDS[:1], 3)
    assert_equal(states(model, IDS[:1])[0], expected, "by hand")
    assert not torch.allclose(expected, states(base)[0], atol=1e-2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "absolute positions"])
def test_a_prompt_that_nobody_sees_changes_nothing(kind):
    """Keys so far from every query that their weight is zero leave DeBERTa's own output unchanged."""
    model = attach(deberta(kind).double(), train_head=False)  # so far off, float32 would round the text's own scores
    with torch.no_grad():
        for block in model.encoder.layer:
            block.attention.self.query_proj.bias[0::8] = 100.0
        reference = copy.deepcopy(model)
        zoo.detach(reference)
        table = model.prompts["default"].learned.tables["encoder"].embeddings
        table.view(3, 4, 2, 4, 8)[:, :, 0] = 0
        table.view(3, 4, 2, 4, 8)[:, :, 0, :, 0] = -1e4
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
    actual, expected = states(model, attention_mask=mask), states(reference, attention_mask=mask)
    for row, keep in enumerate(mask.bool()):
        assert_equal(actual[row, keep], expected[row, keep], f"row {row}")


def test_debertas_start_values_are_each_layers():
    base = deberta()
    with torch.no_grad():
        recorded = examine(base)[0].keys_values(IDS[0]).sites["encoder"]
        hidden = base(IDS[:1], output_hidden_states=True).hidden_states
        for layer in range(4):
            own = base.encoder.layer[layer].attention.self
            assert_equal(recorded.keys[layer], heads(own.key_proj(hidden[layer][0])), "keys")
            assert_equal(recorded.values[layer], heads(own.value_proj(hidden[layer][0])), "values")
    assert "_softprompt_carried" not in dir(type(base))


@in_turns(side=["left", "right"], kind=["both", "convolution"])
def test_deberta_does_not_see_padding(kind, side):
    model = attach(deberta(kind))
    pads = torch.zeros(3, 2, dtype=torch.long)
    order = [pads, IDS] if side == "left" else [IDS, pads]
    mask = torch.cat([(part != 0).long() for part in order], 1)
    keep = slice(2, None) if side == "left" else slice(0, 7)
    assert_equal(states(model, torch.cat(order, 1), attention_mask=mask)[:, keep], states(model), "padded")


@in_turns(
    bare=[False, True],
    make=[copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    architecture=["albert", "deberta_v2"],
)
def test_copies_and_detaching(architecture, make, bare):
    base = (deberta() if architecture == "deberta_v2" else albert()) if bare else classifier("sequence", architecture)
    inner = type(base.base_model)
    run = states if bare else logits
    ids = texts("sequence")
    plain = run(base, ids)
    cls = type(base)
    model = attach(base)
    assert isinstance(model, cls)
    expected = run(model, ids)
    other = make(model)
    assert torch.equal(run(other, ids), expected)
    disturb(other, seed=3)
    assert not torch.equal(run(other, ids), expected)
    assert torch.equal(run(model, ids), expected)
    with other.prompts.disabled():
        assert torch.equal(run(other, ids), plain)
    for prompted in (model, other):
        zoo.detach(prompted)
        assert torch.equal(run(prompted, ids), plain)
        assert type(prompted) is cls
        assert type(prompted.base_model) is inner


@pytest.mark.parametrize("architecture", ["albert", "deberta_v2"])
def test_rows_and_threads(architecture):
    from concurrent.futures import ThreadPoolExecutor

    model = attach(classifier("token", architecture))
    model.prompts.add("other", "p_tuning_v2", num_virtual_tokens=5)
    model.prompts.add("input", "prompt_tuning", num_virtual_tokens=2)
    ids = texts("token", rows=4)
    rows = ["default", None, ["other", "input"], "other"]
    alone = [logits(model, ids[row : row + 1], prompts=[name])[0] for row, name in enumerate(rows)]
    with ThreadPoolExecutor(4) as pool:
        for batch in pool.map(lambda _: logits(model, ids, prompts=rows), range(12)):
            for row in range(4):
                assert_equal(batch[row], alone[row], f"row {row}")
    assert_equal(alone[1], logits(classifier("token", architecture), ids[1:2])[0], "the bare row")


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_debertas_gradients_under_checkpointing(use_reentrant):
    """Two forwards, one backward: the recomputed layers see the state of their own call."""

    def gradients(checkpointing):
        model = attach(deberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
        if checkpointing:
            turn_checkpointing_on(model, use_reentrant)
        (model(IDS[:1]).last_hidden_state.pow(2).sum() + 2 * model(IDS[1:2]).last_hidden_state.pow(2).sum()).backward()
        return {name: parameter.grad for name, parameter in model.prompts.named_parameters()}

    plain = gradients(False)
    for name, gradient in gradients(True).items():
        assert gradient.abs().max() > 0
        assert_equal(gradient, plain[name], name)


def test_deberta_shows_no_virtual_columns():
    model = attach(deberta())
    with torch.no_grad():
        output = model(IDS, output_attentions=True, output_hidden_states=True)
    assert [tuple(part.shape) for part in output.attentions] == [(3, 4, 7, 7)] * 4
    assert [tuple(part.shape) for part in output.hidden_states] == [(3, 7, 32)] * 5


def test_dropout_of_deberta_differs_by_row():
    model = attach(deberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), dropout=0.5)
    ids = IDS[:1].expand(2, -1)
    model.train()
    first, second = states(model, ids)
    assert not torch.allclose(first, second, atol=1e-3)
    first, second = states(model.eval(), ids)
    assert_equal(first, second, "in eval mode")


def test_a_forward_that_was_replaced_is_refused():
    """On a view, it would run the original module; a method bound to the module is bound to the view instead."""
    model = attach(deberta())
    expected = model(IDS).last_hidden_state
    layer = model.encoder.layer[0]
    layer.forward = bound = layer.forward
    assert_equal(model(IDS).last_hidden_state, expected, "a bound method")
    layer.forward = lambda *args, **kwargs: bound(*args, **kwargs)
    with pytest.raises(zoo.UnsupportedError, match="the forward of DebertaV2Layer, a module inside the model, was"):
        model(IDS)


def test_the_first_deberta_takes_no_keys_and_values():
    model = DebertaModel(DebertaConfig(**SIZES, vocab_size=101))
    with pytest.raises(zoo.UnsupportedError, match="keys and values, which cannot be reached"):
        attach(model)
    assert not hasattr(model, "prompts")


def test_a_model_that_keeps_its_keywords_is_refused_not_ignored():
    from transformers import BertForSequenceClassification

    class Keeping(BertForSequenceClassification):
        def forward(self, input_ids=None, **kwargs):
            return self.bert(input_ids)

    model = Keeping(BertConfig(**SIZES, vocab_size=101))
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=3)
    with pytest.raises(zoo.UnsupportedError, match="does not pass its keywords on"):
        model(IDS, prompts=["default", None, None])
