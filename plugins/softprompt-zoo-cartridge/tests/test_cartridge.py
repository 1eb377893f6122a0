"""Cartridges against in-context learning and cross-entropy by hand.

Runs without an installation, from the folder next to this one; the main package's tests include these.
"""

import copy

import pytest
import torch
from cartridges import (  # noqa: F401 - fixtures of all tests
    CAUSAL,
    DOCUMENT,
    OTHERS,
    VOCABULARY,
    attach,
    available,
    cartridge,
    chat_tokenizer,
    close,
    logits,
    method,
    one_thread,
    two,
    words,
)

import softprompt_zoo as zoo
from softprompt_zoo.testing import conformance_suite, tiny_model, tiny_tokenizer

with available():
    TestOnCausalModels = conformance_suite("cartridge", architectures=CAUSAL)
    TestBySelfStudy = conformance_suite("cartridge", {"document": DOCUMENT, "num_frozen_tokens": 2}, ["llama"])


# Start


@pytest.mark.parametrize("architecture", CAUSAL)
def test_the_whole_cache_of_a_context_gives_what_the_context_gives(architecture):
    """The oracle is in-context learning with the base model: logits and greedy generation."""
    count = len(DOCUMENT)
    model, _ = attach(architecture, num_virtual_tokens=count, document=DOCUMENT)
    base, text = tiny_model(architecture), words(7)
    whole = torch.cat([torch.tensor([DOCUMENT]), text], dim=1)
    expected = logits(base, whole)[:, count:]
    close(logits(model, text), expected)
    assert not torch.allclose(logits(base, text), expected, atol=1e-2)
    options = {"max_new_tokens": 8, "do_sample": False}
    ours = model.generate(text, attention_mask=torch.ones_like(text), **options)
    theirs = base.generate(whole, attention_mask=torch.ones_like(whole), **options)
    assert torch.equal(ours[:, text.shape[1] :], theirs[:, whole.shape[1] :])


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"document": DOCUMENT}, DOCUMENT[:4]),
        ({"document": torch.tensor(DOCUMENT)}, DOCUMENT[:4]),
        ({"init_text": "w5 w6 w7 w8 w9"}, [5, 6, 7, 8]),
        ({"init_text": "w5 w6"}, [5, 6, 5, 6]),
        ({"document": "w5 w6 w7 w8 w9", "init_text": "w20 w21 w22 w23"}, [20, 21, 22, 23]),
        ({"document": "w5 w6 w7 w8 w9", "chat": True}, [91, 5, 6, 99]),
        ({"init_text": "w5", "chat": True, "num_virtual_tokens": 6}, [91, 5, 5, 5, 5, 99]),
    ],
)
def test_it_starts_as_the_cache_of_the_first_tokens(options, ids):
    _, prompt = attach(tokenizer=chat_tokenizer(), **options)
    assert prompt.config.init == "text"
    cache = tiny_model("llama")(torch.tensor([ids]), use_cache=True).past_key_values
    tokens = placed(prompt).tokens.sites["decoder"]
    for layer in range(2):
        close(tokens.keys[layer].detach(), cache.layers[layer].keys[0])
        close(tokens.values[layer].detach(), cache.layers[layer].values[0])


def placed(prompt):
    return prompt.place(attach()[0].prompts.backbone)


@pytest.mark.parametrize("init", [None, "sampled", "random"])
def test_without_a_text_it_starts_from_words_or_noise(init):
    torch.manual_seed(0)
    _, prompt = attach(init=init)
    assert prompt.config.init == (init or "sampled")
    torch.manual_seed(1)
    _, other = attach(init=init)
    assert not torch.equal(prompt.learned.trained, other.learned.trained)


def test_another_prompt_is_a_start():
    model, _ = attach(document=DOCUMENT)
    model.prompts.add("copy", "cartridge", num_virtual_tokens=4, num_frozen_tokens=0, init=model.prompts["default"])
    text = words(6)
    close(logits(model, text, prompts="copy"), logits(model, text, prompts="default"))
    model.prompts.add("input", "prompt_tuning", num_virtual_tokens=4)
    with pytest.raises(zoo.UnsupportedError, match="starts from keys and values"):
        model.prompts.add("no", "cartridge", num_virtual_tokens=4, init=model.prompts["input"])


# Frozen tokens


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize("loss", ["tokens", "logits"])
def test_frozen_tokens_keep_their_bits_and_the_others_move(frozen, loss):
    model, prompt = attach(num_frozen_tokens=frozen, document=DOCUMENT, loss=loss)
    model.train()
    before = copy.deepcopy(prompt.learned.state_dict())
    assert [name for name, _ in prompt.named_parameters()] == ["learned.trained"]
    optimizer = torch.optim.AdamW(model.prompts.parameters(), lr=1e-2)
    for step in range(3):
        text = words(8, step)
        model(input_ids=text, labels=text).loss.backward()
        assert prompt.learned.frozen.grad is None
        optimizer.step()
        optimizer.zero_grad()
    after = prompt.learned.state_dict()
    assert before["frozen"].shape[0] == frozen
    assert torch.equal(after["frozen"], before["frozen"])
    assert (after["trained"] != before["trained"]).any(dim=1).all()


def test_frozen_tokens_stay_frozen_when_loaded_to_train_on(tmp_path):
    model, _ = attach(num_frozen_tokens=2)
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("llama"), tmp_path, trainable=True)
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == ["prompts.default.learned.trained"]


# Composition


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_the_order_of_cartridges_does_not_matter(architecture):
    model, text = two(architecture), words(6)
    model.prompts.activate("default", "other")
    both = logits(model, text)
    model.prompts.activate("other", "default")
    close(logits(model, text), both)
    for alone in ("default", "other"):
        assert not torch.allclose(logits(model, text, prompts=alone), both, atol=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_text_starts_behind_the_sum_of_the_cartridges(architecture):
    """The oracle is the base model with both tensors in its cache and the text at position 10."""
    from transformers import DynamicCache

    model, text = two(architecture), words(6)
    model.prompts.activate("default", "other")
    parts = [p.place(model.prompts.backbone).tokens.sites["decoder"] for p in model.prompts.values()]
    cache = DynamicCache()
    for layer in range(2):
        keys, values = (
            torch.cat([getattr(part, kind)[layer].detach() for part in parts], dim=1)[None]
            for kind in ("keys", "values")
        )
        cache.update(keys, values, layer)
    positions = torch.arange(10, 16)[None]
    expected = logits(tiny_model(architecture), text, past_key_values=cache, position_ids=positions)
    close(logits(model, text), expected)


# Loss


def full_cross_entropy(model_logits, teacher_logits, labels):
    """Return - sum p log q over the whole vocabulary, averaged over the labels, word by word."""
    total, count = 0.0, 0
    for row in range(labels.shape[0]):
        for place in range(1, labels.shape[1]):
            if labels[row, place] != -100:
                p = teacher_logits[row, place - 1].softmax(-1)
                total = total - (p * model_logits[row, place - 1].log_softmax(-1)).sum()
                count += 1
    return total / count


def teacher_logits(architecture, text, mask=None, document=DOCUMENT):
    """Return what the base model predicts for a text after the document, by reading both."""
    whole = torch.cat([torch.tensor([document]).expand(text.shape[0], -1), text], dim=1)
    options = {}
    if mask is not None:
        options["attention_mask"] = torch.cat([torch.ones(text.shape[0], len(document), dtype=torch.long), mask], dim=1)
    return logits(tiny_model(architecture), whole, **options)[:, len(document) :]


@pytest.mark.parametrize("architecture", CAUSAL)
def test_with_the_whole_vocabulary_it_is_cross_entropy_against_in_context_learning(architecture):
    model, prompt = attach(architecture, document=DOCUMENT, top_k=VOCABULARY)
    text = words(8, rows=3)
    labels = text.clone()
    labels[0, :3] = labels[2, 5:] = -100
    with torch.no_grad():
        prompt.learned.trained.add_(0.1 * torch.randn_like(prompt.learned.trained))
    model.train()
    without_dropout(model)
    output = model(input_ids=text, labels=labels)
    teacher = teacher_logits(architecture, text)
    expected = full_cross_entropy(output.logits, teacher, labels)
    close(output.loss, expected)
    (gradient,) = torch.autograd.grad(output.loss, prompt.learned.trained, retain_graph=True)
    (by_hand,) = torch.autograd.grad(expected, prompt.learned.trained)
    close(gradient, by_hand)
    assert by_hand.abs().max() > 1e-5


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def test_the_gradient_is_zero_where_student_and_teacher_agree_on_every_word():
    """With fewer words it is not zero, because their probabilities are not scaled to sum to one."""
    gradients = {}
    for top_k in (VOCABULARY, 5):
        model, prompt = attach(num_virtual_tokens=len(DOCUMENT), document=DOCUMENT, top_k=top_k)
        model.train()
        text = words(8, rows=2)
        model(input_ids=text, labels=text).loss.backward()
        gradients[top_k] = prompt.learned.trained.grad.abs().max()
    assert gradients[VOCABULARY] < 1e-6
    assert gradients[5] > 1e-4


def test_the_top_words_keep_their_share_of_the_mass():
    """By hand, with three words; the stationary point is p / S on them."""
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    labels = torch.tensor([[-100, 3]])
    teacher = torch.stack([p.log(), torch.zeros(5)])[None]
    student = torch.tensor([[[0.3, -0.2, 0.1, 0.0, 0.4], [9.0, 0, 0, 0, 0]]], requires_grad=True)
    loss = cartridge.distillation_loss(student, teacher, labels, 3, None)
    q = student[0, 0].softmax(-1)
    close(loss, -(0.5 * q[0].log() + 0.2 * q[1].log() + 0.15 * q[2].log()))
    at_optimum = torch.stack([torch.tensor([0.5, 0.2, 0.15, 1e-12, 1e-12]).log(), torch.zeros(5)])[None]
    at_optimum.requires_grad_()
    (gradient,) = torch.autograd.grad(cartridge.distillation_loss(at_optimum, teacher, labels, 3, None), at_optimum)
    assert gradient.abs().max() < 1e-6


def test_padding_and_masked_labels_do_not_count():
    """A batch padded on either side gives the label-weighted mean of its rows alone."""
    long, short = words(9, 2), words(5, 3)
    alone = {}
    for text in (long, short):
        model, prompt = attach(document=DOCUMENT)
        model.train()
        loss = model(input_ids=text, labels=text).loss
        loss.backward()
        alone[text.shape[1]] = loss.detach(), prompt.learned.trained.grad
    weights = {9: 8 / 12, 5: 4 / 12}
    expected = sum(alone[length][0] * weight for length, weight in weights.items())
    gradient = sum(alone[length][1] * weight for length, weight in weights.items())
    for left in (False, True):
        pads = (4, 0) if left else (0, 4)
        padded = torch.nn.functional.pad
        ids = torch.cat([long, padded(short, pads)])
        mask = torch.cat([torch.ones_like(long), padded(torch.ones_like(short), pads)])
        labels = ids.masked_fill(mask == 0, -100)
        if left:
            labels[1, 4] = -100  # nothing predicts the first word of a text; after padding, its label is masked by hand
        model, prompt = attach(document=DOCUMENT)
        model.train()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        close(loss.detach(), expected)
        close(prompt.learned.trained.grad, gradient)


def test_batches_of_one_optimizer_step_weigh_by_their_labels():
    """`Trainer` counts the labels of all batches it accumulates, and sums their losses."""
    long, short = words(9, 2), words(5, 3)
    model, _ = attach(document=DOCUMENT)
    model.train()
    sums = [model(input_ids=text, labels=text).loss * (text.shape[1] - 1) for text in (long, short)]
    counted = torch.tensor(12)
    parts = [model(input_ids=text, labels=text, num_items_in_batch=counted).loss for text in (long, short)]
    close(sum(parts), sum(sums) / 12)


def test_the_teacher_is_the_model_in_eval_mode_without_gradients(monkeypatch):
    model, _ = attach("gpt2", document=DOCUMENT, top_k=VOCABULARY)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    seen = []
    distil = cartridge.distillation_loss
    monkeypatch.setattr(
        cartridge, "distillation_loss", lambda *arguments: seen.append(arguments[1]) or distil(*arguments)
    )
    text = words(8, rows=2)
    model.train()
    model(input_ids=text, labels=text)
    (teacher,) = seen
    assert not teacher.requires_grad
    close(teacher, teacher_logits("gpt2", text))
    assert all(module.training for module in model.modules())


def test_the_document_is_read_once():
    model, prompt = attach(document=DOCUMENT)
    model.train()
    text = words(6)
    model(input_ids=text, labels=text).loss.backward()
    document = prompt.learned.document
    place = (model.prompts.backbone, prompt.learned.trained.device)
    states = document.states(*place)
    model(input_ids=text, labels=text).loss.backward()
    assert document.states(*place) is states
    model.to(torch.bfloat16)
    assert document.states(*place).sites["decoder"].keys[0].dtype == torch.bfloat16
    assert copy.deepcopy(prompt.learned).document._read is None


def test_loss_tokens_and_evaluation_are_the_models_own_loss():
    text = words(8)
    expected = torch.nn.functional.cross_entropy
    for options in ({"document": DOCUMENT, "loss": "tokens"}, {}):
        model, _ = attach(**options)
        assert model.prompts["default"].config.loss == "tokens"
        output = model.train()(input_ids=text, labels=text)
        close(output.loss, expected(output.logits[0, :-1], text[0, 1:]))
    model, _ = attach(document=DOCUMENT)
    output = model.eval()(input_ids=text, labels=text)
    close(output.loss, expected(output.logits[0, :-1], text[0, 1:]))


def test_self_study_comes_nearer_to_the_document():
    model, _ = attach(num_virtual_tokens=8, document=DOCUMENT)
    model.train()
    optimizer = torch.optim.AdamW(model.prompts.parameters(), lr=0.2)
    held_out = words(8, 99, rows=4)

    def distance():
        p = teacher_logits("llama", held_out)[:, :-1].softmax(-1)
        q = logits(model, held_out)[:, :-1].log_softmax(-1)
        return (p * (p.log() - q)).sum(-1).mean()

    before = distance()
    for step in range(40):
        text = words(8, step, rows=4)
        model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distance() < 0.7 * before


# What the document needs


def test_a_document_is_asked_for_after_loading(tmp_path):
    model, _ = attach(document="w5 w6 w7 w8 w9", init_text="w30", tokenizer=tiny_tokenizer())
    model.save_pretrained(tmp_path)
    text = words(6)
    saved = (tmp_path / "softprompt_zoo.json").read_text()
    assert "w30" not in saved
    assert "w5" not in saved
    loaded = zoo.load(tiny_model("llama"), tmp_path, trainable=True)
    assert loaded.prompts["default"].config.loss == "logits"
    close(logits(loaded, text), logits(model, text))
    loaded.train()
    with pytest.raises(zoo.UnsupportedError, match=r"has no document, which is not saved; give it with .*set_document"):
        loaded(input_ids=text, labels=text)
    cartridge.set_document(loaded, "w5 w6 w7 w8 w9", tokenizer=tiny_tokenizer())
    assert torch.equal(loaded(input_ids=text, labels=text).loss, model.train()(input_ids=text, labels=text).loss)


def test_a_cartridge_that_is_not_trained_needs_no_document(tmp_path):
    model, _ = attach(document=DOCUMENT)
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("llama"), tmp_path)
    loaded.prompts.add("new", "cartridge", num_virtual_tokens=3, document=DOCUMENT[:6])
    loaded.prompts.activate("new", "default")
    text = words(6)
    loaded.train()(input_ids=text, labels=text).loss.backward()
    assert loaded.prompts["new"].learned.trained.grad is not None
    assert loaded.prompts["default"].learned.trained.grad is None


def test_set_document_refuses_other_prompts():
    model, _ = attach(document=DOCUMENT)
    model.prompts.add("input", "prompt_tuning", num_virtual_tokens=4)
    with pytest.raises(zoo.UnsupportedError, match="'input' is of the method prompt_tuning"):
        cartridge.set_document(model, DOCUMENT, name="input")
    model.prompts.activate("default", "input")
    with pytest.raises(ValueError, match="2 prompts are active; name the cartridge"):
        cartridge.set_document(model, DOCUMENT)
    zoo.merge(model)
    with pytest.raises(zoo.UnsupportedError, match="'default' is a merged cartridge"):
        cartridge.set_document(model, DOCUMENT, name="default")


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_families_are_refused_before_anything_changes(architecture):
    base = tiny_model(architecture)
    before = type(base), base.state_dict().keys(), [p.requires_grad for p in base.parameters()]
    with pytest.raises(
        zoo.UnsupportedError, match="needs the keys and values of a causal model, but this model is of the"
    ):
        zoo.get_method("cartridge")(base)
    assert before == (type(base), base.state_dict().keys(), [p.requires_grad for p in base.parameters()])


BAD = {
    r"num_frozen_tokens is 4; expected 0 to 3": {"num_frozen_tokens": 4},
    r"num_frozen_tokens is -1; expected 0 to 3": {"num_frozen_tokens": -1},
    r"num_frozen_tokens is 1; expected 0, for": {"num_virtual_tokens": 1},
    r"init='text' needs init_text": {"init": "text"},
    r"init_text is 'w5', but init, which is 'sampled', does not use it": {"init": "sampled", "init_text": "w5"},
    r"init is 'noise'; expected one of 'text', 'sampled', 'random'": {"init": "noise"},
    r"loss is 'kl'; expected one of None, 'logits', 'tokens'": {"loss": "kl"},
    r"top_k is 0": {"top_k": 0},
    r"chat is 'yes'": {"chat": "yes"},
    r"document is a text and needs tokenizer=": {"document": "w5"},
    r"init_text is a text and needs tokenizer=": {"init_text": "w5"},
    r"document has no tokens": {"document": []},
    r"document has the token id 101; the model has 101 embeddings": {"document": [5, 101]},
    r"document has the token id -1": {"document": [5, -1]},
    r"document has 64 tokens, which leaves no room for text in the model's 64 positions": {"document": [5] * 64},
    r"num_virtual_tokens is 64, which leaves no room": {"document": [5] * 10, "num_virtual_tokens": 64},
    r"chat=True writes a system message around a text": {"document": [5], "chat": True},
    r"a tokenizer with a chat template": {"document": "w5", "chat": True, "tokenizer": tiny_tokenizer()},
    r"is 2, of which the chat template takes 2": {
        "document": "w5",
        "chat": True,
        "tokenizer": chat_tokenizer(),
        "num_virtual_tokens": 2,
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_options_are_told_and_nothing_is_changed(message):
    base = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        zoo.get_method("cartridge")(base, **{"num_virtual_tokens": 4, **BAD[message]})
    assert not hasattr(base, "prompts")


@pytest.mark.parametrize(
    "option", [{"num_frozen_tokens": 1.0}, {"num_frozen_tokens": True}, {"document": [[5]]}, {"document": 5}]
)
def test_wrong_types_are_told(option):
    with pytest.raises(TypeError, match=r"is (1\.0|True|tuple|int)"):
        zoo.get_method("cartridge")(tiny_model("llama"), num_virtual_tokens=4, **option)


def test_a_text_that_no_longer_fits_behind_the_document_is_refused():
    model, _ = attach(document=[5] * 60)
    text = words(8)
    with pytest.raises(ValueError, match="document and text have 68 tokens; the model has 64 positions"):
        model.train()(input_ids=text, labels=text)


def test_a_template_without_a_system_message_is_refused():
    tokenizer = tiny_tokenizer()
    for template, reason in (
        ("{{ raise_exception('no system role') }}", "refuses a system message .*no system role"),
        ("w5", "leaves out a system message"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match=reason):
            attach(document="w5 w6", tokenizer=tokenizer, chat=True)


def test_task_heads_train_by_tokens_only():
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    model = LlamaForSequenceClassification(tiny_model("llama").config)
    zoo.get_method("cartridge")(model, num_virtual_tokens=4, document=DOCUMENT).train()
    with pytest.raises(zoo.UnsupportedError, match="this model has a task head"):
        model(input_ids=words(6), labels=torch.tensor([1]))
