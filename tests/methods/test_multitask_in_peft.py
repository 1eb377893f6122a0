"""Multitask prompts written to and read from PEFT's files."""

import json

import peft
import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.classifiers import classifier, disturb, logits, texts
from helpers.multitask import EVERY_TASK, HIDDEN, TASKS, TEXT, TOKENS, learned, plain, prompted
from peft.tuners.multitask_prompt_tuning import MultitaskPromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import softprompt_zoo as zoo
from softprompt_zoo.files import peft_modules
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import DECODER_LENGTH, Subject, random_text

pytestmark = pytest.mark.filterwarnings("ignore:a prompt of the method .* asks for learning rates:UserWarning")


def in_peft(architecture, folder):
    return peft.PeftModel.from_pretrained(tiny_model(architecture), folder).eval()


def run_peft(wrapped, architecture, ids, task_ids):
    """Return PEFT's logits; PEFT ignores `decoder_input_ids` for these prompts, so an encoder-decoder gets labels."""
    more = {"labels": decoder_labels(len(ids))} if architecture == "t5" else {}
    with torch.no_grad():
        logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), task_ids=task_ids, **more).logits
    return logits if architecture == "t5" else logits[:, -ids.shape[1] :]


def decoder_labels(rows):
    return random_text(DECODER_LENGTH, 8).repeat(rows, 1)


def run_ours(subject, ids, task_ids):
    more = {"labels": decoder_labels(len(ids))} if subject.architecture == "t5" else {}
    return subject.logits(ids, task_ids=task_ids, **more)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5"])
def test_peft_loads_all_tasks_without_any_side_file(architecture, tmp_path):
    subject = prompted(architecture, rank=2)
    zoo.export(subject.model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    own, tensors = learned(subject), load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(tensors["prompt_embeddings"], own.shared)
    assert torch.equal(tensors["prefix_task_cols"], own.cols)
    assert torch.equal(tensors["prefix_task_rows"], own.rows)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {"num_tasks": 3, "num_ranks": 2, "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM"}
    assert {key: fields[key] for key in expected} == expected
    wrapped, ids = in_peft(architecture, tmp_path), torch.cat([TEXT, TEXT, TEXT])
    logits = run_peft(wrapped, architecture, ids, torch.tensor([2, 0, 1]))
    assert_equal(logits, run_ours(subject, ids, torch.tensor([2, 0, 1])), "PEFT's logits")
    assert not torch.allclose(logits[0], logits[1], atol=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_generation_in_peft_gives_our_text(architecture, tmp_path):
    needs_accepted_peft()
    subject = prompted(architecture)
    zoo.export(subject.model, tmp_path)
    ids = torch.cat([TEXT, TEXT, TEXT])
    options = {"max_new_tokens": 6, "attention_mask": torch.ones_like(ids), "task_ids": EVERY_TASK, "num_beams": 2}
    ours = subject.model.generate(ids, **options)
    assert torch.equal(ours, in_peft(architecture, tmp_path).generate(input_ids=ids, **options))
    assert len({tuple(row.tolist()) for row in ours}) > 1


@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_one_task_is_a_plain_prompt_of_pefts(architecture, is_merged, tmp_path):
    subject = prompted(architecture)
    expected = run_ours(subject, TEXT, [1])
    if is_merged:
        zoo.merge(subject.model)
    zoo.export(subject.model, tmp_path, task=1)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
    assert_equal(run_peft(in_peft(architecture, tmp_path), architecture, TEXT, None), expected, "PEFT's logits")
    loaded = Subject(architecture, zoo.load(tiny_model(architecture), tmp_path))
    assert loaded.model.prompts["default"].method == "prompt_tuning"
    more = {"labels": decoder_labels(1)} if architecture == "t5" else {}
    assert_equal(loaded.logits(TEXT, **more), expected, "logits of the import")


def test_exports_that_are_refused(tmp_path):
    subject = prompted()
    for task, text in (
        (3, "task is 3; prompt 'default' has 3 tasks, counted from 0"),
        (-1, "task is -1"),
        (True, "task is True"),
    ):
        with pytest.raises(ValueError, match=text):
            zoo.export(subject.model, tmp_path / "x", task=task)
    with pytest.raises(ValueError, match="task is 0, but prompt 'default' has no tasks"):
        zoo.export(plain("llama", torch.zeros(TOKENS, HIDDEN)).model, tmp_path / "x", task=0)
    zoo.merge(subject.model)
    with pytest.raises(zoo.UnsupportedError, match="this merged prompt has 3; export one with task="):
        zoo.export(subject.model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def headless(architecture):
    return AutoModel.from_config(tiny_model(architecture).config).eval()


WITHOUT_TASK_IDS = {
    "gpt2 without a head": lambda: headless("gpt2"),
    "t5 without a head": lambda: headless("t5"),
    "bert without a head": lambda: headless("bert"),
    "words of bert": lambda: tiny_model("bert"),
    "questions of llama": lambda: classifier("question", "llama"),
}
WITH_TASK_IDS = {
    "classes of llama": (lambda: classifier("sequence", "llama"), {}),
    "tags of gpt2": (lambda: classifier("token", "gpt2"), {}),
    "classes of bert": (lambda: classifier("sequence", "bert"), {"pools_prompt": True}),
}


def with_tasks(model, tasks=TASKS, **options):
    model = zoo.get_method("mpt")(model, num_virtual_tokens=TOKENS, num_tasks=tasks, init="random", **options)
    disturb(model, scale=0.3)
    return model


@pytest.mark.parametrize("tasks", [1, TASKS])
@pytest.mark.parametrize("build", WITHOUT_TASK_IDS.values(), ids=WITHOUT_TASK_IDS)
def test_tasks_are_refused_where_peft_passes_no_task_ids(build, tasks, tmp_path, monkeypatch):
    model = with_tasks(build(), tasks)
    with pytest.raises(zoo.UnsupportedError, match="PEFT passes no task_ids to the prompts of a model whose task is"):
        zoo.export(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    model.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own" / "adapter_config.json").exists()
    zoo.export(model, tmp_path / "one", task=tasks - 1)
    monkeypatch.setattr(peft_modules, "WITHOUT_TASK_IDS", ())
    zoo.export(model, tmp_path / "x")
    wrapped = peft.PeftModel.from_pretrained(build(), tmp_path / "x").eval()
    with pytest.raises(ValueError, match="task_ids cannot be None"):
        wrapped(input_ids=TEXT, attention_mask=torch.ones_like(TEXT), task_ids=torch.tensor([0]))


@pytest.mark.parametrize(("build", "options"), WITH_TASK_IDS.values(), ids=WITH_TASK_IDS)
def test_heads_under_which_peft_passes_task_ids(build, options, tmp_path):
    model, ids = with_tasks(build(), **options), texts("sequence")
    zoo.export(model, tmp_path)
    inputs = {"attention_mask": torch.ones_like(ids), "task_ids": torch.tensor([2, 0, 1])}
    expected = logits(model, ids, **inputs)
    found = logits(peft.PeftModel.from_pretrained(build(), tmp_path).eval(), ids, **inputs)
    assert_equal(found[:, -expected.shape[1] :], expected, "PEFT's logits")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5"])
def test_we_load_pefts(architecture, tmp_path):
    torch.manual_seed(0)
    kind = "SEQ_2_SEQ_LM" if architecture == "t5" else "CAUSAL_LM"
    options = {"num_transformer_submodules": 1} if architecture == "t5" else {}
    config = MultitaskPromptTuningConfig(
        num_tasks=TASKS, num_ranks=2, num_virtual_tokens=TOKENS, task_type=kind, **options
    )
    wrapped = peft.get_peft_model(tiny_model(architecture), config).eval()
    with torch.no_grad():
        for parameter in wrapped.prompt_encoder.parameters():
            parameter.normal_()
    wrapped.save_pretrained(tmp_path)
    loaded = Subject(architecture, zoo.load(tiny_model(architecture), tmp_path, trainable=True))
    assert not loaded.model.prompts["default"].is_merged
    ids = torch.cat([TEXT, TEXT, TEXT])
    logits = run_ours(loaded, ids, EVERY_TASK)
    assert_equal(logits, run_peft(wrapped, architecture, ids, EVERY_TASK), "our logits of PEFT's prompt")
    before = learned(loaded).cols.clone()
    loaded.train(1)
    assert not torch.equal(learned(loaded).cols, before)


def test_pefts_prompts_of_encoder_and_decoder_load_as_its_generate_uses_them(tmp_path):
    torch.manual_seed(0)
    config = MultitaskPromptTuningConfig(num_tasks=TASKS, num_virtual_tokens=TOKENS, task_type="SEQ_2_SEQ_LM")
    wrapped = peft.get_peft_model(tiny_model("t5"), config).eval()
    assert wrapped.prompt_encoder["default"].embedding.weight.shape == (2 * TOKENS, HIDDEN)
    with torch.no_grad():
        for parameter in wrapped.prompt_encoder.parameters():
            parameter.normal_(std=2)
    wrapped.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="tokens for the decoder too"):
        loaded = zoo.load(tiny_model("t5"), tmp_path)
    ids = torch.cat([TEXT, TEXT, TEXT])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "task_ids": EVERY_TASK}
    scores = {"output_scores": True, "return_dict_in_generate": True}
    ours = loaded.generate(ids, **options, **scores)
    theirs = wrapped.generate(input_ids=ids, **options, **scores)
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.scores, theirs.scores, strict=True):
        assert_equal(one, other, "scores")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"prefix_task_rows": None}, zoo.CheckpointError, "has no tensor 'prefix_task_rows'"),
        ({"prefix_task_cols": torch.zeros(3, 7, 1)}, zoo.CheckpointError, r"4 virtual tokens, .* \(3, 7, 1\)"),
        ({"prompt_embeddings": torch.zeros(4, 8)}, zoo.BackboneMismatchError, r"shape \(4, 8\)"),
        ({"prefix_task_rows": torch.zeros(2, 1, HIDDEN)}, zoo.BackboneMismatchError, r"rows \(2, 1, 32\)"),
        ({"base_model.score.weight": torch.zeros(2, 32)}, zoo.UnsupportedError, "carries a trained task head"),
    ],
)
def test_damaged_adapters(change, error, text, tmp_path):
    zoo.export(prompted().model, tmp_path)
    tensors = {**load_file(tmp_path / "adapter_model.safetensors"), **change}
    save_file({key: t for key, t in tensors.items() if t is not None}, tmp_path / "adapter_model.safetensors")
    model = tiny_model("llama")
    with pytest.raises(error, match=text) as raised:
        zoo.load(model, tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert not hasattr(model, "prompts")
