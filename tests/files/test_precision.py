"""The dtype a prompt is stored in, and the one it is trained in: float32, wherever the prompt came from."""

import shutil

import pytest
import torch
from helpers.accepted_peft import needs_accepted_peft
from helpers.products import in_turns
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import softprompt_zoo as zoo
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.models import CLASSIFICATION
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

TEXT = torch.arange(5, 14)[None]
RATE = 1e-5
HALVES = (torch.float16, torch.bfloat16)


def half(dtype, method="prompt_tuning"):
    """Build a prompted model in half precision, including its prompt."""
    torch.manual_seed(0)
    return zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=4).to(dtype).eval()


def from_folder(source, folder):
    return zoo.load(tiny_model("llama"), folder, trainable=True)


def saved(source, dtype, folder):
    source.save_pretrained(folder)
    return from_folder(source, folder)


def saved_merged(source, dtype, folder):
    return saved(zoo.merge(source), dtype, folder)


def exported_to_peft(source, dtype, folder):
    zoo.export(source, folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    return from_folder(source, folder)


def exported_embeddings(source, dtype, folder):
    zoo.export(source, folder, to="embeddings")
    return from_folder(source, folder)


def exported_vocabulary(source, dtype, folder):
    zoo.export(source, folder, to="vocabulary", tokenizer=tiny_tokenizer())
    return from_folder(source, folder)


def beside_another(prompt):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), "other", num_virtual_tokens=2)
    model.prompts.remove("other")
    model.prompts.add("default", prompt)
    model.prompts.activate("default")
    model.prompts.requires_grad_()
    return model


def copied(source, dtype, folder):
    return beside_another(source.prompts["default"])


def borrowed(source, dtype, folder):
    bank = zoo.PromptBank(folder, source)
    bank.add("x", source.prompts["default"])
    return beside_another(bank.get("x"))


def blended(source, dtype, folder):
    return beside_another(zoo.blend([source.prompts["default"]] * 2))


def truncated(source, dtype, folder):
    return beside_another(zoo.truncate(source.prompts["default"], 3))


def folded(source, dtype, folder):
    zoo.fold(source, name="folded")
    source.prompts.remove("default")
    return source


AT_THE_INPUT = (exported_embeddings, exported_vocabulary)
ANYWHERE = (saved, saved_merged, exported_to_peft, copied, borrowed, blended, truncated, folded)
WAYS = [
    *((way, method) for way in ANYWHERE for method in ("prompt_tuning", "prefix_tuning")),
    *((way, "prompt_tuning") for way in AT_THE_INPUT),
]


def check_trains(model):
    """Check that AdamW's first step moves each number with a gradient by the learning rate; half precision cannot."""
    learned = [parameter for parameter in model.prompts.parameters() if parameter.requires_grad]
    assert learned
    assert {parameter.dtype for parameter in learned} == {torch.float32}
    before = [parameter.detach().clone() for parameter in learned]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.0, eps=1e-12)
    model.train()(input_ids=TEXT, labels=TEXT).loss.backward()
    optimizer.step()
    for parameter, old in zip(learned, before, strict=True):
        moved = (parameter - old).abs()[parameter.grad.abs() > 1e-6]
        assert len(moved)
        torch.testing.assert_close(moved, torch.full_like(moved, RATE), atol=0.05 * RATE, rtol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("way", "method"), WAYS, ids=lambda value: getattr(value, "__name__", value))
def test_a_half_precision_prompt_trains_in_float32(way, method, dtype, tmp_path):
    check_trains(way(half(dtype, method), dtype, tmp_path / "folder"))


@pytest.mark.parametrize("way", [saved_merged, copied, borrowed, folded])
def test_the_check_notices_prompts_that_are_not_widened(way, tmp_path, monkeypatch):
    monkeypatch.setattr(Prompt, "widen", lambda self: None)
    with pytest.raises(AssertionError):
        check_trains(way(half(torch.bfloat16), torch.bfloat16, tmp_path / "folder"))


def test_a_trained_head_is_trained_in_float32(tmp_path):
    classifier = zoo.get_method("p_tuning_v2")(
        tiny_model("bert", task=CLASSIFICATION), num_virtual_tokens=2, train_head=True
    )
    classifier.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = zoo.load(tiny_model("bert", task=CLASSIFICATION), tmp_path, trainable=True)
    assert {parameter.dtype for parameter in loaded.prompts.parameters()} == {torch.float32}
    other = zoo.get_method("prompt_tuning")(tiny_model("bert", task=CLASSIFICATION), "other", num_virtual_tokens=2)
    other.prompts.add("default", classifier.prompts["default"])
    assert {parameter.dtype for parameter in other.prompts["default"].parameters()} == {torch.float32}


# Numbers that no prompt may have


def numbers(folder, file, change):
    path = folder / file
    with safe_open(path, "pt") as opened:
        metadata = {key: text for key, text in (opened.metadata() or {}).items() if "checksum" not in key}
    save_file({name: change(tensor).contiguous() for name, tensor in load_file(path).items()}, path, metadata)


def with_one(value):
    def change(tensor):
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        return changed

    return change


FILES = {
    "native": ("model.safetensors", "learned"),
    "merged_embeddings": ("model.safetensors", "learned.tensors.embeddings"),
    "peft": ("adapter_model.safetensors", "prompt_embeddings"),
    "embeddings": ("prompt_embeds.safetensors", "default"),
    "vocabulary": ("model.safetensors", "default"),
}
WRONG = {
    "NaN": with_one(float("nan")),
    "infinity": with_one(float("-inf")),
    "int32": lambda tensor: tensor.to(torch.int32),
    "bool": lambda tensor: tensor.to(torch.bool),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "complex": lambda tensor: tensor.to(torch.complex64),
}


@in_turns(kind=FILES, wrong=WRONG)
def test_numbers_that_no_prompt_may_have_are_refused_by_name(kind, wrong, folders, tmp_path):

    file, tensor = FILES[kind]
    shutil.copytree(folders / kind, tmp_path / "bad")
    numbers(tmp_path / "bad", file, WRONG[wrong])
    base = tiny_model("llama")
    with pytest.raises(zoo.CheckpointError, match=tensor) as caught:
        zoo.load(base, tmp_path / "bad")
    assert "NaN or infinity" in str(caught.value) or "expected one of float32" in str(caught.value)
    assert not hasattr(base, "prompts")


def test_a_bank_takes_no_such_numbers_and_gives_none(tmp_path, monkeypatch):
    model = zoo.get_method("prefix_tuning")(tiny_model("llama"), num_virtual_tokens=4)
    with torch.no_grad():
        next(model.prompts.parameters())[0, 0] = float("nan")
    bank = zoo.PromptBank(tmp_path / "bank", model)
    with pytest.raises(zoo.UnsupportedError, match="NaN or infinity in 'decoder'"):
        bank.add("x", model.prompts["default"])
    with monkeypatch.context() as patched:  # as an older version stored it
        for module in ("bank.restoring", "files.damage"):
            patched.setattr(f"softprompt_zoo.{module}.is_finite", lambda tensor: True)
        bank.add("x", model.prompts["default"])
    for read in (lambda: bank.get("x"), lambda: bank.prepare(["x"])):
        with pytest.raises(zoo.CheckpointError, match="NaN or infinity in 'decoder'"):
            read()
    assert "NaN or infinity" in bank.verify()["x"]


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_numbers_that_the_models_dtype_cannot_hold_are_refused(method, tmp_path):
    source = zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=4)
    with torch.no_grad():
        next(source.prompts.parameters())[0, 0] = 1e30
    source.save_pretrained(tmp_path / "folder")
    bank = zoo.PromptBank(tmp_path / "bank", source)
    bank.add("x", source.prompts["default"])
    small = tiny_model("llama").half()
    with pytest.raises(zoo.UnsupportedError, match=r"numbers up to 1e\+30.*torch.float16, which holds up to 6.55e\+04"):
        zoo.load(small, tmp_path / "folder")
    assert not hasattr(small, "prompts")
    prompted = zoo.get_method(method)(small, "other", num_virtual_tokens=4)
    prompted.prompts.bank = zoo.PromptBank(tmp_path / "bank", prompted)
    for refused in (
        lambda: prompted.prompts.add("big", source.prompts["default"]),
        lambda: prompted.prompts.add("big", method, num_virtual_tokens=4, init=source.prompts["default"]),
        lambda: prompted(input_ids=TEXT, prompts=["x"]),
    ):
        with pytest.raises(zoo.UnsupportedError, match="float16"):
            refused()
    assert list(prompted.prompts) == ["other"]
    wide = zoo.load(tiny_model("llama").to(torch.bfloat16), tmp_path / "folder")
    assert "default" in wide.prompts


@pytest.mark.parametrize("wrong", WRONG)
def test_numbers_that_no_adapter_may_have_are_refused_by_name(wrong, tmp_path):
    peft = pytest.importorskip("peft")
    needs_accepted_peft()
    base = tiny_model("llama")
    base.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]), "lora")
    zoo.get_method("prompt_tuning")(base, num_virtual_tokens=4).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if "checksum" not in key}
    changed = {name: WRONG[wrong](t) if "lora_A" in name else t for name, t in load_file(path).items()}
    save_file(changed, path, metadata)
    bare = tiny_model("llama")
    with pytest.raises(zoo.CheckpointError, match="lora_A"):
        zoo.load(bare, tmp_path)
    assert not hasattr(bare, "prompts")
    assert not getattr(bare, "peft_config", None)


def test_a_prompt_for_a_half_model_is_made_without_a_warning(recwarn):
    torch.set_warn_always(True)  # torch warns only once per process
    try:
        zoo.get_method("prefix")(tiny_model("llama").to(torch.bfloat16), num_virtual_tokens=3)
    finally:
        torch.set_warn_always(False)
    assert [str(warning.message) for warning in recwarn] == []
