"""The loss of context-aware prompt tuning, by hand and against PEFT."""

import pytest
import torch
from helpers.contexts import CAUSAL, IDS, TYPES, balls, batch, prompted, with_peft
from helpers.products import in_turns
from torch.nn import functional

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model


@pytest.mark.parametrize("around", [(), ("before",), ("behind",), ("before", "behind")])
def test_the_loss_by_hand(around):
    """Two examples, decay 0.5: weights 0.25, 0.5 and 1, divided by the number of tokens, not the weights."""
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


@in_turns(decay=[None, 0.5, 1.0], architecture=CAUSAL)
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
    torch.testing.assert_close(offsets.grad, grad, rtol=1e-4, atol=5e-6 * max(1, grad.abs().max()))


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
    """In the text, the examples are read in a different order from the one they are trained in."""
    model = prompted()
    words = torch.tensor([[5, 9, 30, 41]])
    slots = torch.cat([torch.tensor([[-1]]), torch.arange(len(IDS))[None], torch.tensor([[-1, -1, -1]])], dim=1)
    ids = torch.cat([words[:, :1], torch.zeros(1, len(IDS), dtype=torch.long), words[:, 1:]], dim=1)
    before = {name: parameter.detach().clone() for name, parameter in model.prompts.named_parameters()}
    with pytest.raises(zoo.UnsupportedError, match="must be at the input embeddings in front of a causal model's te"):
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
