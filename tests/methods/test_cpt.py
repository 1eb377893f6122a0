"""Context-aware prompt tuning against arithmetic, plain in-context learning and PEFT's CPT."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Model, Trainer, TrainingArguments

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model, tiny_tokenizer
from softprompt_zoo.testing.checks import without_dropout
from softprompt_zoo.testing.subject import Subject, pad, random_text

CAUSAL = ["gpt2", "llama", "qwen3", "gemma3", "mistral", "gpt_neox"]
EXAMPLES = [("w11 w12", "w21"), ("w13", "w22 w23")]
TEMPLATE = "w5 {input} w6 {target} w7"
IDS = [5, 11, 12, 6, 21, 7, 5, 13, 6, 22, 23, 7]
TYPES = [1, 2, 2, 3, 4, 0, 5, 6, 7, 8, 8, 0]
OPTIONS = {"examples": EXAMPLES, "template": TEMPLATE, "tokenizer": tiny_tokenizer()}
HIDDEN = 32
SCALE = (HIDDEN / 2048) ** 0.5
TEXT = random_text(7, 3)


def balls(radius=0.2, format_radius=0.1):
    by_kind = {0: 0.0, 1: format_radius, 2: radius, 3: format_radius}
    return torch.tensor([by_kind[kind % 4] for kind in TYPES]) * SCALE


def prompted(architecture="llama", **options):
    """A prompt in training mode, without dropout, whose offsets fill their balls."""
    model = zoo.get_method("cpt")(tiny_model(architecture), **{**OPTIONS, **options}).train()
    without_dropout(Subject(architecture, model))
    learned = model.prompts["default"].learned
    with torch.no_grad():
        learned.offsets.copy_(torch.randn(learned.offsets.shape, generator=torch.Generator().manual_seed(5)))
    return model


def batch(lengths=(7, 4), side="right", first=()):
    """Rows whose last two tokens are labelled, and the first one too in the rows `first`."""
    texts = [random_text(length, seed) for seed, length in enumerate(lengths)]
    ids, mask = pad(texts, side)
    labels = torch.full_like(ids, -100)
    for row in range(len(texts)):
        places = mask[row].nonzero()[:, 0]
        chosen = [*places[-2:], *([places[0]] if row in first else [])]
        labels[row, chosen] = ids[row, chosen]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def with_peft(architecture, **options):
    """PEFT's own method on the same model, its context made by hand."""
    config = peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=IDS, cpt_mask=[1] * len(IDS), cpt_tokens_type_mask=TYPES, **options
    )
    wrapped = peft.get_peft_model(tiny_model(architecture), config)
    without_dropout(Subject(architecture, wrapped))
    return wrapped, next(iter(wrapped.prompt_encoder.values()))


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


def test_pieces_are_tokenised_one_by_one_and_spaces_go_to_the_field():
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
            r"template is '{input}'; expected one {input} and behind it one {target}",
        ),
        ({"template": "{target} {input}"}, ValueError, "expected one {input} and behind it one {target}"),
        ({"template": "{input} {target} {target}"}, ValueError, "expected one {input}"),
        ({"template": "{input!r} {target}"}, ValueError, "expected one {input}"),
        ({"template": "{input:>4} {target}"}, ValueError, "expected one {input}"),
        ({"template": "{input} {target"}, ValueError, "template is .* expected one {input}"),
        ({"template": "{} {input} {target}"}, ValueError, "expected one {input}"),
        ({"template": 5}, TypeError, "template is 5"),
        ({"template": None}, ValueError, "the template is not known"),
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
        ({"examples": [], "token_ids": [5, 6], "token_types": [4]}, ValueError, "there are 2 token_ids, 1 token_types"),
        ({"examples": [], "token_ids": [], "token_types": []}, ValueError, "there are 0 token_ids"),
        ({"examples": [], "token_ids": [5]}, TypeError, "token_types is None; expected a tuple of integers"),
        ({"examples": [], "token_ids": [-5], "token_types": [4]}, TypeError, r"token_ids is \(-5,\)"),
        ({"examples": [], "token_ids": [5, 6], "token_types": [4, 5]}, ValueError, "the largest of token_types is 5"),
        ({"examples": [], "token_ids": [5], "token_types": [0]}, ValueError, "the largest of token_types is 0"),
        (
            {"examples": [], "token_ids": [101], "token_types": [4]},
            ValueError,
            "token id 101; the model has 101 embedd",
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


# The loss


@pytest.mark.parametrize("around", [(), ("before",), ("behind",), ("before", "behind")])
def test_the_loss_by_hand(around):
    """Two examples, decay 0.5: weights 0.25, 0.5 and 1, divided by the number of tokens and not by the weights."""
    model = prompted(decay=0.5)
    for name in around:
        model.prompts.add(name, "prompt", num_virtual_tokens=2)
    names = [name for name in ("before", "default", "behind") if name in model.prompts]
    model.prompts.activate(*names)
    data = batch((7, 4), first=(1,))
    parts = {name: model.prompts[name].merged_tokens(model.prompts.backbone).embeddings for name in names}
    tokens = torch.cat([*parts.values()])
    before, behind = ([0] * 2 * (name in around) for name in ("before", "behind"))
    total, count = 0.0, 0
    base = tiny_model("llama")
    for ids, mask, labels in zip(*data.values(), strict=True):
        ids, labels = ids[mask.bool()], labels[mask.bool()]
        with torch.no_grad():
            embeddings = torch.cat([tokens, base.get_input_embeddings()(ids)])
            logits = base(inputs_embeds=embeddings[None]).logits[0].log_softmax(-1)
        everything = torch.cat([torch.tensor([*before, *IDS, *behind]), ids])
        of_examples = [{4: 0.25, 8: 0.5}.get(kind, 0.0) for kind in TYPES]
        weights = [*before, *of_examples, *behind, *(float(label != -100) for label in labels)]
        for place, weight in enumerate(weights):
            if weight:
                total -= weight * logits[place - 1, everything[place]].item()
                count += 1
    assert count == 2 * 3 + 5
    assert model(**data).loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("decay", [None, 0.5, 1.0])
def test_loss_and_gradients_are_pefts(architecture, decay):
    kind = {} if decay is None else {"opt_weighted_loss_type": "decay", "opt_loss_decay_factor": decay}
    wrapped, encoder = with_peft(architecture, opt_projection_epsilon=0.2, **kind)
    model = prompted(architecture, decay=1.0 if decay is None else decay)
    offsets = model.prompts["default"].learned.offsets
    data = batch((7, 4, 6), first=(0, 2))
    with torch.no_grad():
        offsets *= (balls() / offsets.norm(dim=1))[:, None] * 0.8
        encoder.delta_embedding.weight.copy_(offsets)
    types = torch.where(data["labels"] == -100, data["attention_mask"], 4)
    expected = wrapped.train()(**data, input_type_mask=types.clone()).loss
    loss = model(**data).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    grad = encoder.delta_embedding.weight.grad
    assert grad.abs().max() > 1e-3
    torch.testing.assert_close(offsets.grad, grad, rtol=1e-4, atol=1e-6 * max(1, grad.abs().max()))


def test_two_calls_give_the_same_loss_and_change_no_input():
    model = prompted()
    data = batch()
    before = {key: value.clone() for key, value in data.items()}
    assert model(**data).loss == model(**data).loss
    assert all(torch.equal(data[key], before[key]) for key in data)


def test_the_loss_does_not_depend_on_the_side_of_the_padding():
    model = prompted()
    losses = [model(**batch((7, 4), side, first=(0, 1))).loss for side in ("right", "left")]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_a_batch_is_the_mean_of_its_rows():
    model = prompted()
    data = batch((6, 6, 6))
    alone = [model(**{key: value[row : row + 1] for key, value in data.items()}).loss for row in range(3)]
    torch.testing.assert_close(
        model(**data, prompts=["default"] * 3).loss, torch.stack(alone).mean(), rtol=1e-5, atol=0
    )


def test_training_in_slots_is_refused_and_reading_in_them_is_not():
    """In the text the examples are read in another order than the one they are learned in."""
    model = prompted()
    words = torch.tensor([[5, 9, 30, 41]])
    slots = torch.cat([torch.tensor([[-1]]), torch.arange(len(IDS))[None], torch.tensor([[-1, -1, -1]])], dim=1)
    ids = torch.cat([words[:, :1], torch.zeros(1, len(IDS), dtype=torch.long), words[:, 1:]], dim=1)
    before = {name: parameter.detach().clone() for name, parameter in model.prompts.named_parameters()}
    with pytest.raises(
        zoo.UnsupportedError, match="must stand at the input embeddings in front of a causal model's te"
    ):
        model(input_ids=ids, labels=ids, soft_slots=slots)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.prompts.named_parameters())
    with torch.no_grad():
        model.prompts["default"].learned.offsets.zero_()
        read = torch.cat([words[:, :1], torch.tensor([IDS]), words[:, 1:]], dim=1)
        found = model.eval()(input_ids=ids, labels=ids, soft_slots=slots)
        torch.testing.assert_close(found.logits, tiny_model("llama")(input_ids=read).logits, atol=1e-5, rtol=1e-5)


def test_without_a_label_there_is_an_error_and_no_nan():
    data = batch()
    with pytest.raises(
        ValueError, match=r"labels of shape \(2, 7\) has no token to learn, all are -100; label the target"
    ):
        prompted()(**{**data, "labels": torch.full_like(data["labels"], -100)})
    data["labels"][0] = -100
    assert prompted()(**data).loss.isfinite()


def test_a_target_that_nothing_predicts_does_not_count():
    model = prompted(examples=[], tokenizer=None, token_ids=[9, 5, 8], token_types=[4, 5, 8], decay=0.5)
    data = batch((4,))
    with torch.no_grad():
        tokens = model.prompts["default"].merged_tokens(model.prompts.backbone).embeddings
        base = tiny_model("llama")
        ids = torch.cat([torch.tensor([9, 5, 8]), data["input_ids"][0]])
        embeddings = torch.cat([tokens, base.get_input_embeddings()(data["input_ids"][0])])
        losses = functional.cross_entropy(
            base(inputs_embeds=embeddings[None]).logits[0, :-1], ids[1:], reduction="none"
        )
    expected = (0.5 * losses[1] + losses[-1] + losses[-2]) / 3
    torch.testing.assert_close(model(**data).loss, expected, rtol=1e-5, atol=0)


def test_in_eval_mode_the_loss_is_the_models():
    model = prompted()
    trained = model(**batch()).loss
    model.eval()
    data = batch()
    found = model(**data)
    rest = data["labels"][:, 1:]
    expected = functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), rest.flatten())
    torch.testing.assert_close(found.loss, expected)
    assert not torch.allclose(trained, expected)


def test_accumulated_batches_weigh_by_their_labels():
    model = prompted()
    data = batch((7, 7), first=(0,))
    plain = model(**data).loss
    torch.testing.assert_close(model(**data, num_items_in_batch=torch.tensor(4)).loss, plain)
    torch.testing.assert_close(model(**data, num_items_in_batch=torch.tensor(16)).loss, plain / 4)
    torch.testing.assert_close(model(**data, num_items_in_batch=8).loss, plain / 2)


@pytest.mark.slow
def test_compiled_training_has_the_same_loss_and_balls():
    expected = prompted()(**batch()).loss
    model = prompted()
    compiled = torch.compile(model, backend="eager")
    loss = compiled(**batch()).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    offsets = model.prompts["default"].learned.offsets
    torch.optim.SGD([offsets], lr=1.0).step()
    assert (offsets.detach().norm(dim=1) <= balls() * (1 + 1e-6)).all()


# PEFT and files


@pytest.mark.parametrize("architecture", CAUSAL)
def test_peft_gives_our_logits_and_we_load_them_to_train_on(architecture, tmp_path):
    model = prompted(architecture, radius=30.0, format_radius=20.0, decay=0.7).eval()
    with torch.no_grad():
        expected = model(input_ids=TEXT).logits
        plain = tiny_model(architecture)(input_ids=TEXT).logits
    close = {"rtol": 1e-5, "atol": 1e-5 * max(1.0, expected.abs().max().item())}
    model.save_pretrained(tmp_path / "ours")
    zoo.export(model, tmp_path / "peft")
    fields = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert fields == json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert fields["peft_type"] == "CPT"
    wrapped = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "ours")
    config = wrapped.peft_config["default"]
    assert (config.cpt_token_ids, config.cpt_tokens_type_mask) == (IDS, TYPES)
    assert (config.opt_weighted_loss_type, config.opt_loss_decay_factor) == ("decay", 0.7)
    assert (config.opt_projection_epsilon, config.opt_projection_format_epsilon) == (30.0, 20.0)
    with torch.no_grad():
        found = wrapped(input_ids=TEXT, labels=None).logits[:, len(IDS) :]
        assert not torch.allclose(found, plain, atol=1e-2)
        torch.testing.assert_close(found, expected, **close)
        loaded = zoo.load(tiny_model(architecture), tmp_path / "peft", trainable=True)
        torch.testing.assert_close(loaded(input_ids=TEXT).logits, expected, **close)
    prompt = loaded.prompts["default"]
    assert prompt.method == "cpt"
    assert not prompt.is_merged
    assert torch.equal(prompt.learned.context, model.prompts["default"].learned.context)
    without_dropout(Subject(architecture, loaded))
    torch.testing.assert_close(loaded.train()(**batch()).loss, model.train()(**batch()).loss, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="the template is not known"):
        prompt.config.encode(tiny_tokenizer(), "w5", "w6")


def test_a_merged_prompt_is_pefts_prompt_tuning(tmp_path):
    model = prompted().eval()
    expected = model(input_ids=TEXT).logits
    zoo.export(zoo.merge(model), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
    found = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path)(input_ids=TEXT).logits[:, len(IDS) :]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def trained_by_peft(directory, architecture="llama"):
    wrapped, encoder = with_peft(architecture, opt_weighted_loss_type="decay", opt_loss_decay_factor=0.9)
    optimizer = torch.optim.SGD([encoder.delta_embedding.weight], lr=1.0)
    data = batch()
    for _ in range(2):
        wrapped.train()(**data, input_type_mask=torch.where(data["labels"] == -100, 1, 4)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits = wrapped.eval()(input_ids=TEXT, labels=None).logits[:, len(IDS) :]
    wrapped.save_pretrained(directory)
    return logits


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_prompt_that_peft_trained_keeps_its_balls(architecture, tmp_path):
    expected = trained_by_peft(tmp_path, architecture)
    model = zoo.load(tiny_model(architecture), tmp_path, trainable=True)
    with torch.no_grad():
        found = model(input_ids=TEXT).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))
    prompt = model.prompts["default"]
    assert (prompt.config.radius, prompt.config.format_radius, prompt.config.decay) == (0.1, 0.1, 0.9)
    norms = prompt.learned.offsets.detach().norm(dim=1)
    torch.testing.assert_close(norms, balls(0.1, 0.1), rtol=1e-3, atol=1e-5)
    optimizer = torch.optim.SGD([prompt.learned.offsets], lr=1.0)
    model.train()(**batch()).loss.backward()
    optimizer.step()
    base = tiny_model(architecture).get_input_embeddings()(torch.tensor(IDS)).detach()
    moved = (prompt.merged_tokens(model.prompts.backbone).embeddings - base).norm(dim=1)
    assert (moved <= balls(0.1, 0.1) + 1e-5).all(), "the ball was granted again"


def test_a_prompt_of_another_base_loads_merged(tmp_path):
    trained_by_peft(tmp_path)
    tensor = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    model = zoo.load(tiny_model("llama", seed=1), tmp_path)
    assert model.prompts["default"].is_merged
    assert torch.equal(model.prompts["default"].merged_tokens(model.prompts.backbone).embeddings, tensor)
    other = peft.PeftModel.from_pretrained(tiny_model("llama", seed=1), tmp_path)
    with torch.no_grad():
        expected = other(input_ids=TEXT, labels=None).logits[:, len(IDS) :]
        torch.testing.assert_close(model(input_ids=TEXT).logits, expected, rtol=1e-5, atol=1e-4)


def test_pefts_default_types_load_merged(tmp_path):
    """All tokens of type 1, with which PEFT's own loss is no number: good enough to use, not to train."""
    config = peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[7, 8])
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    model = zoo.load(tiny_model("llama"), tmp_path)
    assert model.prompts["default"].is_merged
    with torch.no_grad():
        expected = tiny_model("llama")(input_ids=torch.cat([torch.tensor([[7, 8]]), TEXT], 1)).logits[:, 2:]
        torch.testing.assert_close(model(input_ids=TEXT).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "tensor", "error", "text"),
    [
        (
            {"cpt_token_ids": None},
            None,
            zoo.CheckpointError,
            "does not hold together: there are 0 token_ids, 12 token_ty",
        ),
        ({"cpt_token_ids": [1.5] * 12}, None, zoo.CheckpointError, "does not hold together: token_ids is"),
        ({"opt_projection_epsilon": -1}, None, zoo.CheckpointError, "does not hold together: radius is -1"),
        ({}, (12, 8), zoo.BackboneMismatchError, r"prompt_embeddings of shape .*12, 8.*, expected \(12, 32\)"),
        ({}, (11, 32), zoo.BackboneMismatchError, r"prompt_embeddings of shape .*11, 32.*, expected \(12, 32\)"),
        ({}, (), zoo.BackboneMismatchError, "prompt_embeddings of shape None"),
    ],
)
def test_broken_adapters_are_refused(tmp_path, fields, tensor, error, text):
    trained_by_peft(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    if tensor is not None:
        name = "prompt_embeddings" if tensor else "other"
        save_file({name: torch.zeros(tensor or (12, 32))}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(error, match=text):
        zoo.load(tiny_model("llama"), tmp_path)


def test_an_adapter_for_another_family_is_refused(tmp_path):
    trained_by_peft(tmp_path)
    with pytest.raises(zoo.UnsupportedError, match="AutoModelForCausalLM"):
        zoo.load(tiny_model("bert"), tmp_path)


def test_a_saved_prompt_needs_no_tokenizer(tmp_path):
    model = prompted(decay=0.5, radius=3)
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("llama"), tmp_path, trainable=True).train()
    assert loaded.prompts["default"].config == model.prompts["default"].config
    assert loaded.prompts["default"].config.tokenizer is None
    assert loaded.prompts["default"].config.examples == tuple(EXAMPLES)
    assert torch.equal(loaded(**batch()).loss, model(**batch()).loss)
    row = loaded.prompts["default"].config.encode(tiny_tokenizer(), "w50", "w51 w52")
    assert row["input_ids"] == [5, 50, 6, 51, 52, 7]
    assert row["labels"] == [-100, -100, -100, 51, 52, -100]


def test_an_edited_table_does_not_move_a_saved_prompt(tmp_path):
    model = prompted().eval()
    model.save_pretrained(tmp_path)
    tokens = model.prompts["default"].merged_tokens(model.prompts.backbone).embeddings
    base = tiny_model("llama")
    with torch.no_grad():
        base.get_input_embeddings().weight.add_(1.0)
    loaded = zoo.load(base, tmp_path)
    assert torch.equal(loaded.prompts["default"].merged_tokens(loaded.prompts.backbone).embeddings, tokens)


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
