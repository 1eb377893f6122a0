"""Trained task heads: copies that belong to a prompt, on classifiers of every family."""

import copy
import json
import pickle

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.classifiers import CASES, ENCODERS, classifier, disturb, labels, logits, texts
from safetensors.torch import load_file
from transformers import AutoModel, Trainer, TrainingArguments

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal

ROWS = ["default", None, "other"]
PEFT_CASES = [(task, name) for task in ("sequence", "token", "question") for name in ("bert", "roberta", "electra")]
PEFT_CASES += [(task, name) for task in ("sequence", "token", "question") for name in ("llama", "gpt2")]
PEFT_TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "question": "QUESTION_ANS"}


def prompted(task="sequence", architecture="bert", method="prefix_tuning", **options):
    options = {"num_virtual_tokens": 4, "train_head": True, **options}
    torch.manual_seed(0)
    model = zoo.get_method(method)(classifier(task, architecture), **options)
    disturb(model)
    return model


def with_two(task, architecture):
    model = prompted(task, architecture)
    model.prompts.add("other", "prefix_tuning", num_virtual_tokens=3, train_head=True)
    disturb(model, "other", seed=2)
    return model


def own_head(model):
    return {name: dict(module.state_dict()) for name, module in model.prompts.backbone.inside.task_head.items()}


HEADS = {
    ("sequence", "distilbert"): ["pre_classifier", "classifier"],
    ("sequence", "modernbert"): ["head", "classifier"],
    ("sequence", "llama"): ["score"],
    ("sequence", "gpt2"): ["score"],
    ("sequence", "bart"): ["classification_head"],
    ("choice", "electra"): ["sequence_summary", "classifier"],
    ("sequence", "t5"): ["classification_head"],
    ("question", "llama"): ["qa_outputs"],
    ("question", "t5"): ["qa_outputs"],
    ("token", "llama"): ["score"],
    ("token", "bert"): ["classifier"],
}


@pytest.mark.parametrize(("task", "architecture"), HEADS)
def test_the_head_is_what_stands_outside_the_backbone(task, architecture):
    model = prompted(task, architecture)
    assert list(model.prompts["default"].head) == HEADS[task, architecture]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "distilbert", "modernbert", "t5", "bart"])
def test_what_predicts_words_is_no_task_head(architecture):
    with pytest.raises(zoo.UnsupportedError, match="has no task head"):
        zoo.get_method("prefix_tuning")(tiny_model(architecture), num_virtual_tokens=4, train_head=True)
    model = zoo.get_method("p_tuning_v2")(tiny_model(architecture), num_virtual_tokens=4)  # trains a head by default
    assert model.prompts["default"].head is None
    assert not any(".head." in key for key in model.state_dict() if key.startswith("prompts."))


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_bare_model_has_no_head(architecture):
    model = AutoModel.from_config(classifier("sequence", architecture).config).eval()
    zoo.get_method("p_tuning_v2")(model, num_virtual_tokens=4)
    assert model.prompts["default"].head is None
    with pytest.raises(zoo.UnsupportedError, match="has no task head"):
        model.prompts.add("other", "prefix_tuning", num_virtual_tokens=4, train_head=True)


@pytest.mark.parametrize(("task", "architecture"), CASES)
def test_the_copy_is_trained_and_the_models_own_head_keeps_its_bits(task, architecture):
    base = classifier(task, architecture)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    ids = texts(task)
    expected = logits(base, ids)
    model = prompted(task, architecture)
    start = {name: parameter.detach().clone() for name, parameter in model.prompts["default"].named_parameters()}
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(input_ids=ids, **labels(task)).loss
        loss.backward()
        optimizer.step()
    assert loss.ndim == 0
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) != name.startswith("prompts."), name
    for name, parameter in model.prompts["default"].named_parameters():
        assert not torch.equal(parameter, start[name]), name
    model.eval()
    assert logits(model, ids).shape == expected.shape
    with model.prompts.disabled():
        assert torch.equal(logits(model, ids), expected)
    zoo.detach(model)
    assert torch.equal(logits(model, ids), expected)
    assert model.state_dict().keys() == before.keys()
    for key, tensor in before.items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize(("task", "architecture"), CASES)
def test_the_logits_are_the_copys(task, architecture):
    """The oracle is the same model with the trained weights put into its own head."""
    model = prompted(task, architecture)
    ids = texts(task)
    actual = logits(model, ids)
    head = model.prompts["default"].head
    other = prompted(task, architecture, train_head=False)
    with torch.no_grad():
        other.prompts["default"].learned.load_state_dict(model.prompts["default"].learned.state_dict())
        assert not torch.allclose(logits(other, ids), actual, atol=1e-3)
        for name, module in head.items():
            getattr(other, name).load_state_dict(module.state_dict())
    assert torch.equal(logits(other, ids), actual)


@pytest.mark.parametrize(("task", "architecture"), CASES)
def test_every_row_has_the_head_of_its_prompt(task, architecture):
    model = with_two(task, architecture)
    ids = texts(task)
    base = logits(classifier(task, architecture), ids[1:2])
    batch = logits(model, ids, prompts=ROWS)
    for row, name in enumerate(ROWS):
        assert_equal(batch[row : row + 1], logits(model, ids[row : row + 1], prompts=[name]), f"row {row}")
    assert_equal(batch[1:2], base, "the row without a prompt")
    assert torch.equal(logits(model, ids, prompts=torch.tensor([0, -1, 1])), batch)


@pytest.mark.parametrize(("task", "architecture"), [("sequence", "bert"), ("choice", "electra"), ("token", "llama")])
def test_gradients_of_a_mixed_batch_are_those_of_its_rows(task, architecture):
    model = with_two(task, architecture)
    ids = texts(task)

    def total(rows, prompts):
        output = model(input_ids=ids[rows], prompts=prompts)
        weights = torch.arange(1, 4)[rows]
        return (output.logits.pow(2).flatten(1).sum(-1) * weights).sum()

    total(slice(None), ROWS).backward()
    batch = {name: p.grad.clone() for name, p in model.prompts.named_parameters()}
    model.zero_grad()
    for row, name in enumerate(ROWS):
        if name is not None:
            total(slice(row, row + 1), [name]).backward()
    for name, parameter in model.prompts.named_parameters():
        assert_equal(batch[name], parameter.grad, f"gradient of {name}")


def test_of_several_prompts_the_last_one_with_a_head_counts():
    model = with_two("token", "bert")
    model.prompts.add("bare", "prefix_tuning", num_virtual_tokens=2)
    ids = texts("token")
    both = logits(model, ids, prompts=[["default", "other", "bare"]] * 3)
    model.prompts["default"].head = None
    assert torch.equal(logits(model, ids, prompts=[["default", "other", "bare"]] * 3), both)
    model.prompts["other"].head = None
    assert not torch.allclose(logits(model, ids, prompts=[["default", "other", "bare"]] * 3), both, atol=1e-3)


@pytest.mark.parametrize(("task", "architecture"), [("sequence", "roberta"), ("question", "modernbert")])
@pytest.mark.parametrize("merged", [False, True])
def test_saved_and_loaded_onto_a_model_with_another_head(task, architecture, merged, tmp_path):
    model = prompted(task, architecture, reparameterization="mlp", reparameterization_size=8)
    ids = texts(task)
    expected = logits(model, ids)
    if merged:
        zoo.merge(model)
        assert model.prompts["default"].is_merged
        assert_equal(logits(model, ids), expected, "merged")
        expected = logits(model, ids)
    model.save_pretrained(tmp_path)
    assert any(key.startswith("prompts.default.head.") for key in load_file(tmp_path / "model.safetensors"))
    base = classifier(task, architecture)
    for name in model.prompts["default"].head:
        for parameter in getattr(base, name).parameters():
            parameter.data.normal_(generator=torch.Generator().manual_seed(5))
    plain = logits(base, ids)
    loaded = zoo.load(base, tmp_path)
    assert torch.equal(logits(loaded, ids), expected)
    with loaded.prompts.disabled():
        assert torch.equal(logits(loaded, ids), plain)
    assert loaded.prompts["default"].config.train_head


def test_a_head_is_refused_where_it_does_not_fit(tmp_path):
    prompted("sequence", "bert").save_pretrained(tmp_path)
    with pytest.raises(zoo.BackboneMismatchError, match="trained task head 'classifier', but this model has cls"):
        zoo.load(tiny_model("bert"), tmp_path)
    with pytest.raises(zoo.BackboneMismatchError, match="this model has qa_outputs"):
        zoo.load(classifier("question", "bert"), tmp_path)
    config = classifier("sequence", "bert").config
    config.num_labels = 5
    five = type(classifier("sequence", "bert"))(config)
    with pytest.raises(zoo.CheckpointError, match=r"head.classifier.bias' has shape \(3,\); expected \(5,\)"):
        zoo.load(five, tmp_path)
    assert not hasattr(five, "prompts")


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path):
    def arguments(folder, steps):
        return TrainingArguments(
            folder, max_steps=steps, save_steps=3, per_device_train_batch_size=3, report_to="none", learning_rate=1e-2,
            logging_steps=100, disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant",
        )  # fmt: skip

    rows = zip(texts("sequence", 9), labels("sequence", 9)["labels"], strict=True)
    data = [{"input_ids": row, "labels": label} for row, label in rows]
    whole = prompted()
    Trainer(whole, arguments(tmp_path / "whole", 6), train_dataset=data).train()
    half = prompted()
    Trainer(half, arguments(tmp_path / "half", 3), train_dataset=data).train()
    resumed = prompted()
    checkpoint = str(tmp_path / "half/checkpoint-3")
    Trainer(resumed, arguments(tmp_path / "half", 6), train_dataset=data).train(resume_from_checkpoint=checkpoint)
    for key, tensor in whole.prompts.state_dict().items():
        assert torch.equal(resumed.prompts.state_dict()[key], tensor), key
    key = "default.head.classifier.weight"
    assert not torch.equal(half.prompts.state_dict()[key], whole.prompts.state_dict()[key])


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(make):
    model = prompted()
    ids = texts("sequence")
    expected = logits(model, ids)
    other = make(model)
    assert torch.equal(logits(other, ids), expected)
    disturb(other, seed=3)
    assert not torch.equal(logits(other, ids), expected)
    assert torch.equal(logits(model, ids), expected)
    other.prompts.add("new", "prefix_tuning", num_virtual_tokens=2, train_head=True)
    assert other.prompts["new"].head is not None


def test_a_prompt_starts_with_the_head_of_the_one_it_starts_from():
    model = prompted()
    model.prompts.add("next", "prefix_tuning", num_virtual_tokens=4, train_head=True, init=model.prompts["default"])
    ids = texts("sequence")
    assert torch.equal(logits(model, ids, prompts="next"), logits(model, ids))


def test_half_precision_models_have_heads_in_full_precision():
    model = classifier("sequence", "bert").to(torch.bfloat16)
    zoo.get_method("prefix_tuning")(model, num_virtual_tokens=4, train_head=True)
    assert {parameter.dtype for parameter in model.prompts.parameters()} == {torch.float32}
    output = model(input_ids=texts("sequence"), **labels("sequence"))
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert model.prompts["default"].head["classifier"].weight.grad.abs().max() > 0
    assert logits(model, texts("sequence"), prompts=["default", None, "default"]).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "architecture"), [("sequence", "bert"), ("token", "distilbert"), ("sequence", "llama")]
)
def test_compiles_to_one_graph(task, architecture):
    model = with_two(task, architecture)
    ids = texts(task)
    expected = logits(model, ids)
    mixed = logits(model, ids, prompts=ROWS)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_equal(logits(compiled, ids), expected, "one head for all rows")
    assert_equal(logits(compiled, ids, prompts=torch.tensor([0, -1, 1])), mixed, "a head per row")


def test_threads_do_not_see_each_others_heads():
    from concurrent.futures import ThreadPoolExecutor

    model = with_two("sequence", "bert")
    ids = texts("sequence")
    names = ["default", "other"] * 20
    expected = {name: logits(model, ids, prompts=name) for name in ("default", "other")}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: logits(model, ids, prompts=name), names))
    for name, result in zip(names, found, strict=True):
        assert torch.equal(result, expected[name])


def test_input_level_prompts_have_heads_too():
    model = prompted("token", "modernbert", method="prompt_tuning")
    ids = texts("token")
    assert logits(model, ids).shape == (3, 7, 3)
    model(input_ids=ids, **labels("token")).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.prompts.parameters())


@pytest.mark.parametrize("kind", ["tuple", "eager"])
def test_other_ways_to_call(kind):
    model = prompted()
    ids = texts("sequence")
    expected = logits(model, ids)
    if kind == "tuple":
        assert torch.equal(model(ids, return_dict=False)[0], expected)
    else:
        model.set_attn_implementation("eager")
        assert_equal(logits(model, ids), expected, "eager")


@pytest.mark.parametrize(("task", "architecture"), PEFT_CASES)
def test_peft_gives_our_logits(task, architecture, tmp_path):
    needs_accepted_peft()
    model = prompted(task, architecture)
    ids = texts(task)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path)
    names = list(model.prompts["default"].head)
    keys = {f"base_model.{name}.{key}" for name in names for key in model.prompts["default"].head[name].state_dict()}
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {"prompt_embeddings", *keys}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == names
    wrapped = peft.PeftModel.from_pretrained(classifier(task, architecture), tmp_path).eval()
    assert_equal(logits(wrapped, ids, attention_mask=torch.ones_like(ids)), expected, "PEFT's logits")


@pytest.mark.parametrize(("task", "architecture"), PEFT_CASES)
def test_we_give_pefts_logits(task, architecture, tmp_path):
    needs_accepted_peft()
    config = peft.PrefixTuningConfig(num_virtual_tokens=4, task_type=PEFT_TASKS[task])
    wrapped = peft.get_peft_model(classifier(task, architecture), config).eval()
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(generator=torch.Generator().manual_seed(3))
    ids = texts(task)
    expected = logits(wrapped, ids, attention_mask=torch.ones_like(ids))
    wrapped.save_pretrained(tmp_path)
    base = classifier(task, architecture)
    plain = logits(base, ids)
    model = zoo.load(base, tmp_path)
    assert_equal(logits(model, ids), expected, "our logits")
    prompt = model.prompts["default"]
    assert prompt.config.train_head
    assert prompt.head is not None
    with model.prompts.disabled():
        assert torch.equal(logits(model, ids), plain)


def test_an_export_refuses_a_head_that_peft_has_no_task_for(tmp_path):
    model = prompted("choice", "bert")
    with pytest.raises(zoo.UnsupportedError, match="not with PREFIX_TUNING of FEATURE_EXTRACTION"):
        zoo.export(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_adapter_with_other_weights_is_refused(tmp_path):
    config = peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="TOKEN_CLS")
    peft.get_peft_model(classifier("token", "bert"), config).save_pretrained(tmp_path)
    model = classifier("question", "bert")
    with pytest.raises(zoo.UnsupportedError, match="carries a trained task head"):
        zoo.load(model, tmp_path)
    assert not hasattr(model, "prompts")
    other = classifier("token", "bert").config
    other.num_labels = 7
    with pytest.raises(zoo.BackboneMismatchError, match="does not fit this model"):
        zoo.load(type(classifier("token", "bert"))(other), tmp_path)
