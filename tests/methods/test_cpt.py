"""Context-aware prompt tuning: the context, and the balls around its tokens."""

import json

import pytest
import torch
from helpers.contexts import CAUSAL, EXAMPLES, HIDDEN, IDS, OPTIONS, TEXT, TYPES, balls, batch, prompted
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Model, Trainer, TrainingArguments

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer

# The context


@pytest.mark.parametrize(
    "examples",
    [EXAMPLES, tuple(EXAMPLES), [{"input": a, "target": b, "id": 1} for a, b in EXAMPLES], map(list, EXAMPLES)],
)
def test_examples_become_ids_and_types(examples):
    examples = list(examples) if isinstance(examples, map) else examples
    model = zoo.get_method("cpt")(tiny_model("llama"), **{**OPTIONS, "examples": examples})
    prompt = model.prompts["default"]
    assert list(prompt.config.token_ids) == IDS
    assert list(prompt.config.token_types) == TYPES
    assert prompt.config.examples == tuple(EXAMPLES)
    assert prompt.num_virtual_tokens == len(IDS)
    assert prompt.num_parameters == len(IDS) * HIDDEN
    assert prompt.learned.offsets.dtype == torch.float32


def test_what_the_user_gave_is_not_changed():
    examples = [["w11", "w21"], {"input": "w12", "target": "w22"}]
    before = json.dumps(examples)
    zoo.get_method("cpt")(tiny_model("llama"), **{**OPTIONS, "examples": examples})
    assert json.dumps(examples) == before


def test_pieces_are_tokenized_one_by_one_and_spaces_go_to_the_field():
    pieces = []

    def tokenizer(text, add_special_tokens):
        assert add_special_tokens is False
        pieces.append(text)
        return {"input_ids": [len(text)]}

    method = zoo.get_method("cpt").configure(examples=[("good {film}", "yes")], tokenizer=tokenizer)
    assert pieces == ["input:", " good {film}", " output:", " yes", "\n"]
    pieces.clear()
    config = method.config_class.from_options(method.options)
    assert config.token_types == (1, 2, 3, 4, 0)
    pieces.clear()
    row = config.encode(tokenizer, "bad", "no")
    assert row == {"input_ids": [6, 4, 8, 3, 1], "attention_mask": [1] * 5, "labels": [-100, -100, -100, 3, -100]}
    assert config.encode(tokenizer, "bad") == {"input_ids": [6, 4, 8], "attention_mask": [1] * 3}
    assert pieces == ["input:", " bad", " output:", " no", "\n", "input:", " bad", " output:"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None, "w5"), "tokenizer is NoneType; expected a transformers tokenizer"),
        (
            (tiny_tokenizer(), ["w5", "w6"]),
            r"text is \['w5', 'w6'\] \(list\); expected one text: encode one row at a time",
        ),
        ((tiny_tokenizer(), None), r"text is None \(NoneType\)"),
        ((tiny_tokenizer(), "w5", 1), r"target is 1 \(int\)"),
    ],
)
def test_only_one_text_is_encoded(arguments, text):
    method = zoo.get_method("cpt").configure(examples=[("w5", "w6")], tokenizer=tiny_tokenizer())
    with pytest.raises(TypeError, match=text):
        method.config_class.from_options(method.options).encode(*arguments)


def test_braces_are_doubled_in_a_template():
    options = {
        **OPTIONS,
        "template": "{{ {input} }} {target}",
        "tokenizer": lambda text, **_: {"input_ids": [len(text)]},
    }
    config = zoo.get_method("cpt").config_class.from_options(options)
    assert config.token_ids == (1, 8, 2, 4, 1, 4, 2, 8)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"examples": []}, ValueError, "examples is empty; give at least one pair"),
        ({"examples": None}, TypeError, "examples is None; expected a sequence of pairs"),
        ({"examples": "w1 w2"}, TypeError, "examples is 'w1 w2'; expected a sequence of pairs"),
        ({"examples": {"w1": "w2"}}, TypeError, "expected a sequence of pairs"),
        ({"examples": ["ab"]}, ValueError, r"examples\[0\] is 'ab'; expected a pair"),
        ({"examples": [*EXAMPLES, ("w5",)]}, ValueError, r"examples\[2\] is \('w5',\); expected a pair"),
        ({"examples": [("w5", 6)]}, TypeError, r"examples\[0\] is \('w5', 6\); expected two texts"),
        ({"examples": [{"input": "w5", "label": "w6"}]}, ValueError, r"examples\[0\] has no 'target'; .* 'label'"),
        ({"examples": [{"target": "w5"}]}, ValueError, r"examples\[0\] has no 'input'"),
        ({"examples": [("w5", " ")]}, ValueError, r"the target of examples\[0\] is ' ', which has no tokens"),
        (
            {"template": "{input}"},
            ValueError,
            r"template is '{input}'; expected one {input}, followed by one {target}",
        ),
        ({"template": "{target} {input}"}, ValueError, "expected one {input}, followed by one {target}"),
        ({"template": "{input} {target} {target}"}, ValueError, "expected one {input}"),
        ({"template": "{input!r} {target}"}, ValueError, "expected one {input}"),
        ({"template": "{inpu!t} {target}"}, ValueError, "expected one {input}"),
        ({"template": "{input:>4} {target}"}, ValueError, "expected one {input}"),
        ({"template": "{input} {target"}, ValueError, "template is .* expected one {input}"),
        ({"template": "{} {input} {target}"}, ValueError, "expected one {input}"),
        ({"template": 5}, TypeError, "template is 5"),
        ({"template": None}, ValueError, "the template is unknown"),
        ({"tokenizer": 5}, TypeError, "tokenizer is int; expected a transformers tokenizer"),
        ({"tokenizer": None}, ValueError, "examples need tokenizer=…; pass the model's tokenizer"),
        ({"radius": -0.1}, ValueError, "radius is -0.1; expected a number of at least 0"),
        ({"radius": float("nan")}, ValueError, "radius is nan"),
        ({"format_radius": -1}, ValueError, "format_radius is -1"),
        ({"format_radius": "big"}, TypeError, r"format_radius is 'big' \(str\)"),
        ({"decay": float("inf")}, ValueError, "decay is inf"),
        ({"decay": True}, TypeError, "decay is True"),
        (
            {"num_virtual_tokens": 11},
            ValueError,
            "num_virtual_tokens is 11; the examples have 12 tokens, which are count",
        ),
        ({"num_virtual_tokens": "ten"}, ValueError, "num_virtual_tokens is 'ten'"),
        ({"train_head": 3}, ValueError, "train_head is 3"),
        ({"token_ids": [5], "token_types": [4]}, ValueError, "token_ids and token_types are not those of the examples"),
        (
            {"examples": [], "token_ids": [5, 6], "token_types": [4]},
            ValueError,
            "there are 2 token_ids and 1 token_types",
        ),
        ({"examples": [], "token_ids": [], "token_types": []}, ValueError, "there are 0 token_ids"),
        (
            {"examples": [], "token_ids": [5]},
            TypeError,
            "token_types is None; expected a tuple of nonnegative integers",
        ),
        ({"examples": [], "token_ids": [-5], "token_types": [4]}, TypeError, r"token_ids is \(-5,\)"),
        ({"examples": [], "token_ids": [5, 6], "token_types": [4, 5]}, ValueError, "the largest of token_types is 5"),
        ({"examples": [], "token_ids": [5], "token_types": [0]}, ValueError, "the largest of token_types is 0"),
        (
            {"examples": [], "token_ids": [101], "token_types": [4]},
            ValueError,
            "token id 101, but the model has 101 embedd",
        ),
        (
            {"examples": EXAMPLES * 6},
            zoo.UnsupportedError,
            "is 72, which leaves no room for text in the model's 64 positions; they are the tokens of the examples: "
            "give fewer or shorter ones, of at most 63 tokens together",
        ),
        ({"examples": [("w9 " * 60, "w5")]}, zoo.UnsupportedError, "num_virtual_tokens is 64, which leaves no room"),
    ],
)
def test_bad_options_change_nothing(options, error, text):
    model = tiny_model("gpt2")
    before = (type(model), [p.requires_grad for p in model.parameters()], list(model.state_dict()))
    with pytest.raises(error, match=text):
        zoo.get_method("cpt")(model, **{**OPTIONS, **options})
    assert (type(model), [p.requires_grad for p in model.parameters()], list(model.state_dict())) == before


def test_the_longest_context_that_fits():
    model = zoo.get_method("cpt")(tiny_model("gpt2"), **{**OPTIONS, "examples": [("w9 " * 59, "w5")]})
    assert model.prompts["default"].num_virtual_tokens == 63
    assert model(input_ids=torch.tensor([[5]])).logits.shape == (1, 1, 101)


CONFIG = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=101, pad_token_id=0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tiny_model("bert"), "'encoder', with a head over the vocabulary: load one with AutoModelForCausalLM"),
        (lambda: tiny_model("t5"), "'encoder_decoder', with a head"),
        (lambda: GPT2ForSequenceClassification(CONFIG), "'causal', without a head over the vocabulary"),
        (lambda: GPT2Model(CONFIG), "'causal', without a head"),
    ],
)
def test_other_models_are_refused(make, text):
    model = make()
    before = type(model)
    with pytest.raises(zoo.UnsupportedError, match=text):
        zoo.get_method("context_aware_prompt_tuning")(model, **OPTIONS)
    assert type(model) is before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("architecture", CAUSAL)
def test_before_training_it_is_in_context_learning(architecture):
    base = tiny_model(architecture)
    context = torch.tensor([IDS])
    labels = TEXT.clone()
    together = {
        "input_ids": torch.cat([context, TEXT], 1),
        "labels": torch.cat([torch.full_like(context, -100), labels], 1),
    }
    with torch.no_grad():
        expected = base(**together)
        model = zoo.get_method("cpt")(base, **OPTIONS)
        found = model(input_ids=TEXT, labels=labels)
    torch.testing.assert_close(
        found.logits, expected.logits[:, len(IDS) :], rtol=1e-6, atol=1e-6 * found.logits.abs().max()
    )
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-6)


def test_on_the_meta_device_and_in_bfloat16():
    with torch.device("meta"):
        model = type(tiny_model("llama"))(tiny_model("llama").config)
    assert zoo.get_method("cpt")(model, **OPTIONS).prompts["default"].learned.offsets.device.type == "meta"
    model = zoo.get_method("cpt")(tiny_model("llama").bfloat16(), **OPTIONS).train()
    assert model.prompts["default"].learned.offsets.dtype == torch.float32
    loss = model(**batch()).loss
    assert loss.dtype == torch.float32
    assert loss.isfinite()


# The ball


def test_tokens_stay_in_their_balls_whatever_the_offsets():
    model = prompted(radius=0.3, format_radius=0.05)
    prompt = model.prompts["default"]
    radii = balls(0.3, 0.05)
    context = tiny_model("llama").get_input_embeddings()(torch.tensor(IDS)).detach()
    for scale in (1e-30, 1e-4, 1.0, 1e10):
        with torch.no_grad():
            prompt.learned.offsets.copy_(torch.randn(len(IDS), HIDDEN) * scale)
            found = prompt.place(model.prompts.backbone).tokens.embeddings
            merged = prompt.merged_tokens(model.prompts.backbone).embeddings
        assert torch.equal(found, merged)
        moved = (found - context).norm(dim=1)
        assert (moved <= radii + 1e-6).all()
        if scale >= 1:
            torch.testing.assert_close(moved, radii, rtol=1e-4, atol=1e-6)
        assert torch.equal(found[radii == 0], context[radii == 0])


def test_offsets_inside_are_used_as_they_are_and_get_the_whole_gradient():
    model = prompted()
    prompt = model.prompts["default"]
    offsets = torch.randn(len(IDS), HIDDEN)
    offsets *= (balls() * 0.9 / offsets.norm(dim=1))[:, None]
    with torch.no_grad():
        prompt.learned.offsets.copy_(offsets)
    tokens = prompt.place(model.prompts.backbone).tokens.embeddings
    assert torch.equal(tokens, prompt.learned.context + offsets)
    weights = torch.randn(len(IDS), HIDDEN)
    (tokens * weights).sum().backward()
    is_free = balls() > 0
    assert torch.equal(prompt.learned.offsets.grad[is_free], weights[is_free])
    assert not prompt.learned.offsets.grad[~is_free].any()


def test_on_the_surface_the_gradient_may_point_inwards():
    model = prompted()
    learned = model.prompts["default"].learned
    with torch.no_grad():
        learned.offsets *= (balls() / learned.offsets.norm(dim=1))[:, None]
    tokens = model.prompts["default"].place(model.prompts.backbone).tokens.embeddings
    (tokens * learned.offsets.detach()).sum().backward()
    torch.testing.assert_close(learned.offsets.grad, learned.offsets.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_after_every_step_of_a_plain_loop_the_offsets_are_inside(optimizer):
    model = zoo.get_method("cpt")(tiny_model("llama"), **OPTIONS).train()
    offsets = model.prompts["default"].learned.offsets
    optimizer = optimizer([offsets], lr=1.0)
    radii = balls()
    for step in range(3):
        model(**batch((7 - step, 5))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        norms = offsets.detach().norm(dim=1)
        assert (norms <= radii * (1 + 1e-6)).all()
        assert norms.max() > 0.9 * radii.max()
        assert not offsets[radii == 0].any()


def test_trainer_keeps_the_offsets_inside_and_resumes(tmp_path):
    def trainer(steps, **options):
        torch.manual_seed(0)
        model = zoo.get_method("cpt")(tiny_model("llama"), **OPTIONS)
        arguments = TrainingArguments(
            str(tmp_path), max_steps=steps, learning_rate=1e-2, report_to="none", use_cpu=True, save_steps=2,
            per_device_train_batch_size=2, lr_scheduler_type="constant", disable_tqdm=True, **options,
        )  # fmt: skip
        data = batch((7, 7, 7, 7))
        rows = [{key: value[row] for key, value in data.items()} for row in range(4)]
        return Trainer(model, arguments, train_dataset=rows)

    first = trainer(4)
    first.train()
    offsets = first.model.prompts["default"].learned.offsets.detach()
    assert (offsets.norm(dim=1) <= balls() * (1 + 1e-6)).all()
    assert offsets.norm(dim=1).max() > 0.5 * balls().max()
    second = trainer(4)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(second.model.prompts["default"].learned.offsets, offsets)


def test_training_lowers_the_loss():
    model = zoo.get_method("cpt")(tiny_model("llama"), **OPTIONS, radius=30.0, format_radius=30.0).train()
    optimizer = torch.optim.AdamW(model.prompts.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
