"""P-tuning v2 against Liu et al. 2022: its numbers, its head, and classifiers of every family."""

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.classifiers import CASES, classifier, disturb, labels, logits, texts
from helpers.prompted import attached
from safetensors.torch import load_file

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.tokenizer import tiny_tokenizer


def attach(model=None, **options):
    return attached(model or classifier("sequence", "bert"), "p_tuning_v2", **options)


def padded(ids, side, pad=0, extra=3):
    """Return the same texts with padding, and the mask."""
    pads = torch.full((*ids.shape[:-1], extra), pad)
    parts = [(pads, torch.zeros_like(pads)), (ids, torch.ones_like(ids))]
    parts = parts if side == "left" else parts[::-1]
    return torch.cat([p[0] for p in parts], -1), torch.cat([p[1] for p in parts], -1)


def test_the_head_is_trained_unless_told_otherwise():
    assert attach().prompts["default"].head is not None
    assert attach(train_head=False).prompts["default"].head is None
    assert attach(tiny_model("llama")).prompts["default"].head is None


def test_random_start_is_the_references():
    """Values are normal with standard deviation 0.02, also in the network, whose biases are zero."""
    direct = attach(num_virtual_tokens=60, init="random").prompts["default"].learned.tables["encoder"]
    assert direct.embeddings.std().item() == pytest.approx(0.02, rel=0.05)
    assert direct.embeddings.mean().item() == pytest.approx(0, abs=1e-3)
    net = attach(num_virtual_tokens=60, init="random", reparameterization="mlp").prompts["default"].learned
    table = net.tables["encoder"]
    for weight in (table.embeddings, table.hidden.weight, table.output.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not table.hidden.bias.any()
    assert not table.output.bias.any()


def test_the_net_has_the_references_shapes():
    """`prefix_encoder.py`: embedding (k, d), linear d to 512, tanh, linear 512 to 2 L d."""
    table = attach(reparameterization="mlp").prompts["default"].learned.tables["encoder"]
    shapes = {name: tuple(parameter.shape) for name, parameter in table.named_parameters()}
    assert shapes == {
        "embeddings": (4, 32),
        "hidden.weight": (512, 32),
        "hidden.bias": (512,),
        "output.weight": (2 * 2 * 32, 512),
        "output.bias": (2 * 2 * 32,),
    }
    flat = table.output(torch.tanh(table.hidden(table.embeddings)))
    # prefix_encoder.py: view(k, 2 L, heads, head_dim); layer l has its keys at 2 l, its values at 2 l + 1.
    past = flat.view(4, 4, 4, 8).permute(1, 2, 0, 3)
    made = table()
    for layer in range(2):
        assert torch.equal(made.keys[layer], past[2 * layer])
        assert torch.equal(made.values[layer], past[2 * layer + 1])


def test_the_prompt_starts_as_the_keys_and_values_of_words():
    """For an encoder: what a forward over these words computes in each layer's projections."""
    model = attach(num_virtual_tokens=3, init="text", init_text="w5 w6 w7", tokenizer=tiny_tokenizer())
    made = model.prompts["default"].learned.tables["encoder"]()
    base = classifier("sequence", "bert")
    with torch.no_grad():
        states = base.bert(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
        for layer in range(2):
            attention = base.bert.encoder.layer[layer].attention.self
            keys = attention.key(states[layer])[0].view(3, 4, 8).transpose(0, 1)
            values = attention.value(states[layer])[0].view(3, 4, 8).transpose(0, 1)
            assert_equal(made.keys[layer], keys, "keys")
            assert_equal(made.values[layer], values, "values")


def test_parameter_count_of_bert_large():
    """20 tokens and two classes: 24 layers of keys and values of 1,024 features, and the linear head."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    attach(model, num_virtual_tokens=20)
    assert model.prompts["default"].num_parameters == 20 * 24 * 2 * 1024 + (1024 * 2 + 2)


def test_each_slice_feeds_its_own_layer_only():
    """The last layer's keys and values do not change the states it reads; the first layer's change all later states."""
    model = attach(classifier("token", "bert"), train_head=False)
    ids = texts("token")

    def states():
        with torch.no_grad():
            return model(ids, output_hidden_states=True).hidden_states

    before = states()
    table = model.prompts["default"].learned.tables["encoder"].embeddings
    with torch.no_grad():
        table[:, 64:] += 1
    moved = [not torch.equal(a, b) for a, b in zip(states(), before, strict=True)]
    assert moved == [False, False, True]
    with torch.no_grad():
        table[:, :64] += 1
    assert [not torch.equal(a, b) for a, b in zip(states(), before, strict=True)] == [False, True, True]


def test_text_starts_behind_the_prompt_and_cls_is_pooled():
    """By hand: BERT's own layers, given positions k … k + n - 1 and the prompt's keys and values in front."""
    model = attach(classifier("sequence", "bert", implementation="eager"))
    disturb(model)
    ids = texts("sequence", rows=1)
    made = model.prompts["default"].learned.tables["encoder"]()
    base = classifier("sequence", "bert")
    with torch.no_grad():
        embeddings = base.bert.embeddings
        hidden = embeddings.word_embeddings(ids) + embeddings.token_type_embeddings(torch.zeros_like(ids))
        hidden = embeddings.LayerNorm(hidden + embeddings.position_embeddings(torch.arange(4, 11))[None])
        for layer, block in enumerate(base.bert.encoder.layer):
            own = block.attention.self
            query, key, value = (
                part(hidden)[0].view(7, 4, 8).transpose(0, 1) for part in (own.query, own.key, own.value)
            )
            keys, values = torch.cat([made.keys[layer], key], 1), torch.cat([made.values[layer], value], 1)
            weights = (query @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
            context = (weights @ values).transpose(0, 1).reshape(1, 7, 32)
            hidden = block.output(block.intermediate(after := block.attention.output(context, hidden)), after)
        pooled = torch.tanh(base.bert.pooler.dense(hidden[:, 0]))
        head = model.prompts["default"].head["classifier"]
        expected = pooled @ head.weight.T + head.bias
    assert_equal(logits(model, ids), expected, "logits by hand")


@pytest.mark.parametrize(("task", "architecture"), CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(task, architecture, side):
    """Holds where the base model has this property; a pooled [CLS] must come first, so padding is on the right."""
    base = classifier(task, architecture)
    ids = texts(task)
    more, mask = padded(ids, side, base.config.pad_token_id)
    model = attach(classifier(task, architecture))
    disturb(model)
    plain, plain_padded = logits(base, ids), logits(base, more, attention_mask=mask)
    expected, actual = logits(model, ids), logits(model, more, attention_mask=mask)
    if task in ("token", "question"):
        keep = slice(3, None) if side == "left" else slice(0, 7)
        plain_padded, actual = plain_padded[:, keep], actual[:, keep]
    if not torch.allclose(plain, plain_padded, atol=1e-3):
        assert side == "left"
        counting = ("bert", "distilbert", "electra", "albert", "gpt2", "t5", "bart")
        assert task in ("sequence", "choice") or architecture in counting
        if architecture != "gpt2":  # GPT-2's positions come from the mask once there is a prompt
            return
    assert_equal(actual, expected, f"{side} padding")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_causal_model_pools_the_last_token_of_the_text(architecture):
    """Another token after the text changes what is pooled; padding does not. The prompt shifts nothing."""
    model = attach(classifier("sequence", architecture))
    disturb(model)
    token = attach(classifier("sequence", architecture), train_head=False)
    with torch.no_grad():
        token.prompts["default"].learned.load_state_dict(model.prompts["default"].learned.state_dict())
    ids = texts("sequence")
    with torch.no_grad():
        states = token.base_model(ids).last_hidden_state
    expected = states[:, -1] @ model.prompts["default"].head["score"].weight.T
    assert_equal(logits(model, ids), expected.detach(), "pooled at the last token")
    more, mask = padded(ids, "right")
    assert_equal(logits(model, more, attention_mask=mask), expected.detach(), "with padding behind it")


def test_dropout_differs_by_row_and_stops_in_eval_mode():
    model = attach(dropout=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = texts("sequence", rows=1).expand(2, -1)
    same = model(ids).logits
    assert_equal(same[0], same[1], "in eval mode")
    model.train()
    first, second = model(ids).logits
    assert not torch.allclose(first, second, atol=1e-4)


def test_both_stacks_of_an_encoder_decoder_and_no_cross_attention():
    model = attach(classifier("sequence", "bart"))
    assert list(model.prompts["default"].learned.tables) == ["encoder", "decoder"]
    model(input_ids=texts("sequence"), **labels("sequence")).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.prompts.parameters())


def test_over_length_text_is_refused_before_the_model_runs():
    model = attach(num_virtual_tokens=20)
    with pytest.raises(ValueError, match="shorten the text to 44 tokens"):
        model(texts("sequence", length=45))
    assert logits(model, texts("sequence", length=44)).shape == (3, 3)


def test_starts_from_a_prompt_of_another_method():
    model = zoo.get_method("prefix_tuning")(classifier("sequence", "bert"), num_virtual_tokens=4)
    model.prompts.add("deep", "p_tuning_v2", num_virtual_tokens=4, init=model.prompts["default"])
    ids = texts("sequence")
    assert torch.equal(logits(model, ids, prompts="deep"), logits(model, ids))
    model.prompts.add("input", "prompt_tuning", num_virtual_tokens=4)
    with pytest.raises(zoo.UnsupportedError, match="give one with keys and values at encoder"):
        model.prompts.add("no", "p_tuning_v2", num_virtual_tokens=4, init=model.prompts["input"])


@pytest.mark.parametrize("net", [None, "mlp"])
def test_peft_export_holds_prompt_and_head(net, tmp_path):
    needs_accepted_peft()
    model = attach(reparameterization=net)
    disturb(model)
    ids = texts("sequence")
    zoo.export(model, tmp_path)
    keys = {"prompt_embeddings", "base_model.classifier.weight", "base_model.classifier.bias"}
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == keys
    wrapped = peft.PeftModel.from_pretrained(classifier("sequence", "bert"), tmp_path).eval()
    assert_equal(logits(wrapped, ids, attention_mask=torch.ones_like(ids)), logits(model, ids), "PEFT's logits")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reparameterization": "lstm"}, "reparameterization is 'lstm'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"init": "labels"}, "init is 'labels'"),
        ({"train_head": "yes"}, "train_head is 'yes'"),
        ({"init": "text"}, "needs init_text"),
    ],
)
def test_bad_options_are_refused(options, message):
    model = classifier("sequence", "bert")
    with pytest.raises(ValueError, match=message):
        attach(model, **options)
    assert not hasattr(model, "prompts")
