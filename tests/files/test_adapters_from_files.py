"""What a saved folder's adapters may do to a model: known fields reach PEFT, and a refused load changes nothing."""

import contextlib

import peft
import pytest
import torch
from helpers.adapted_models import TARGETS, TEXT, change_config
from torch.utils._python_dispatch import TorchDispatchMode

import softprompt_zoo as zoo
from softprompt_zoo.backbone.peft_layers import adapter_layers, adapter_names, adapter_parameters
from softprompt_zoo.files import weight_adapter_configs, weight_adapters
from softprompt_zoo.operations import load_and_export as saving
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal

QV = ["q_proj", "v_proj"]
CONFIGS = {
    "LORA": peft.LoraConfig(r=2, target_modules=QV, bias="all", rank_pattern={"q_proj": 3}, use_rslora=True),
    "ADALORA": peft.AdaLoraConfig(target_modules=QV, total_step=10, init_r=4, target_r=2),
    "IA3": peft.IA3Config(target_modules=r".*(k_proj|down_proj)", feedforward_modules=r".*down_proj"),
    "LOHA": peft.LoHaConfig(r=2, target_modules=QV),
    "LOKR": peft.LoKrConfig(r=2, target_modules=QV),
    "OFT": peft.OFTConfig(oft_block_size=4, target_modules=QV),
    "HRA": peft.HRAConfig(r=2, target_modules=QV),
    "LN_TUNING": peft.LNTuningConfig(target_modules=["norm"]),
    "TRAINABLE_TOKENS": peft.TrainableTokensConfig(token_indices=[1, 4], target_modules=["embed_tokens"]),
    "FOURIERFT": peft.FourierFTConfig(n_frequency=5, target_modules=QV),
    "DELORA": peft.DeloraConfig(r=2, target_modules=QV),
    "MISS": peft.MissConfig(r=2, target_modules=QV),
    "C3A": peft.C3AConfig(block_size=4, target_modules=["q_proj"]),
}
LORAS = {
    "a pattern": {"target_modules": r".*\.0\.self_attn\.(q|v)_proj"},
    "an excluding pattern": {"target_modules": QV, "exclude_modules": r".*\.1\..*"},
    "layers": {"target_modules": QV, "layers_to_transform": [1], "layers_pattern": "layers"},
    "all linear": {"target_modules": "all-linear"},
    "the head": {"target_modules": QV, "modules_to_save": ["lm_head"]},
    "words": {"target_modules": QV, "trainable_token_indices": [1, 5]},
    "parameters": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    "DoRA": {"target_modules": QV, "use_dora": True},
    "PiSSA": {"target_modules": QV, "init_lora_weights": "pissa"},
    "EVA": {"target_modules": QV, "init_lora_weights": "eva", "eva_config": peft.EvaConfig()},
    "alphas": {"target_modules": QV, "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 5}},
}


def with_adapter(config, name="default", architecture="llama"):
    """Build a tiny model with an adapter that has an effect."""
    model = tiny_model(architecture).eval()
    model.add_adapter(config, name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model, name):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def saved(folder, config, name="default", architecture="llama"):
    model = zoo.get_method("prompt_tuning")(with_adapter(config, name, architecture), num_virtual_tokens=3)
    model.save_pretrained(folder)
    return model


def run(model):
    more = {"decoder_input_ids": TEXT[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=TEXT, **more)[0]


@contextlib.contextmanager
def unchanged(model):
    """Check that a block leaves a model unchanged, bit for bit."""

    def everything():
        own = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
        layers = [(name, list(layer.active_adapters)) for name, layer in adapter_layers(model)]
        kinds = [(name, type(module).__name__) for name, module in model.named_modules()]
        return own, layers, kinds, adapter_names(model), hasattr(model, "prompts"), run(model)

    before = everything()
    yield
    own, *after, output = everything()
    assert after == list(before[1:-1])
    assert own.keys() == before[0].keys()
    for name, (required_grad, tensor) in own.items():
        assert required_grad == before[0][name][0], name
        assert torch.equal(tensor, before[0][name][1]), name
    assert torch.equal(output, before[-1])


@pytest.mark.parametrize("config", [*CONFIGS.values(), *(peft.LoraConfig(r=2, **more) for more in LORAS.values())],
                         ids=[*CONFIGS, *LORAS])  # fmt: skip
def test_what_is_saved_is_loaded(config, tmp_path):
    model = saved(tmp_path, config)
    loaded = zoo.load(tiny_model("llama"), tmp_path).eval()
    assert_equal(run(loaded), run(model), "loaded")


def test_every_type_that_is_read_has_been_tried():
    assert set(weight_adapter_configs.TYPES) == set(CONFIGS)


REFUSED = {
    "megatron_config": {"x": 1},
    "megatron_core": "megatron.evil",
    "loftq_config": {"loftq_bits": 4},
    "corda_config": {"cache_file": "/etc/passwd"},
    "layer_replication": [[0, 1]],
    "velora_config": {"num_groups": 1},
    "peft_type": "XLORA",
    "a_field_of_tomorrow": 3,
    "r": True,
    "lora_alpha": float("nan"),
    "lora_dropout": 1.5,
    "bias": "some",
    "use_dora": "no",
    "modules_to_save": ["(a+)+$"],
    "rank_pattern": {"((a+)+)+": 2},
    "alpha_pattern": {"q_proj": 10**400},
    "layers_pattern": ["(a+)+"],
    "layers_to_transform": ["0"],
    "init_lora_weights": "corda",
    "task_type": ["CAUSAL_LM"],
    "target_modules": {"q_proj": 1},
}


def check_a_field_is_refused(folder, field, value, architecture):
    change_config(folder, **{field: value})
    base = tiny_model(architecture).eval()
    with unchanged(base):
        refusal = None
        try:
            zoo.load(base, folder)
        except (zoo.CheckpointError, zoo.UnsupportedError) as error:
            refusal = str(error)
        assert refusal is not None
        assert field in refusal


@pytest.mark.parametrize("field", REFUSED)
def test_fields_that_are_not_known_or_not_bounded_are_refused(field, tmp_path):
    saved(tmp_path, peft.LoraConfig(r=2, target_modules=QV))
    check_a_field_is_refused(tmp_path, field, REFUSED[field], "llama")


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_fields_are_refused_in_other_families_too(architecture, tmp_path):
    saved(tmp_path, peft.LoraConfig(r=2, target_modules=TARGETS[architecture]), architecture=architecture)
    check_a_field_is_refused(tmp_path, "megatron_config", {"x": 1}, architecture)


def handed_on_whole(fields, tensors, path):
    return peft.PeftConfig.from_peft_type(**fields)


def test_a_config_that_is_handed_on_whole_is_noticed(tmp_path, monkeypatch):
    saved(tmp_path, peft.LoraConfig(r=2, target_modules=QV))
    monkeypatch.setattr(weight_adapters, "make_config", handed_on_whole)
    with pytest.raises(AssertionError):
        check_a_field_is_refused(tmp_path, "modules_to_save", ["(a+)+$"], "llama")


def check_no_pattern_of_the_file_is_tried(folder, monkeypatch):
    """Check that a changed pattern is never matched: only the tensors' names say which modules are adapted."""
    model = saved(folder, peft.LoraConfig(r=2, target_modules=r".*\.self_attn\.(q|v)_proj"))
    change_config(folder, target_modules="((([a-z_.0-9]+)+)+)+!")
    loaded = None
    with monkeypatch.context() as patch:
        patch.setattr("peft.tuners.tuners_utils.match_target_against_key", lambda *_: pytest.fail("was tried"))
        with contextlib.suppress(pytest.fail.Exception, zoo.ZooError):
            loaded = zoo.load(tiny_model("llama"), folder).eval()
    assert loaded is not None
    assert_equal(run(loaded), run(model), "by the tensors' names")


def test_no_pattern_of_a_file_is_tried(tmp_path, monkeypatch):
    check_no_pattern_of_the_file_is_tried(tmp_path / "one", monkeypatch)
    monkeypatch.setattr(weight_adapter_configs, "_name_modules", lambda *_: None)
    with pytest.raises(AssertionError):
        check_no_pattern_of_the_file_is_tried(tmp_path / "two", monkeypatch)


class Largest(TorchDispatchMode):
    """A mode that records the size of the largest tensor that is created and takes memory."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.numbers = max(self.numbers, tensor.numel())
        return found


def check_no_room_is_taken(folder, size):
    change_config(folder, r=size)
    base = tiny_model("llama").eval()
    with unchanged(base):
        with Largest() as largest, contextlib.suppress(zoo.CheckpointError):
            zoo.load(base, folder)
        assert largest.numbers < size


def test_a_number_in_a_small_file_takes_no_room(tmp_path, monkeypatch):
    saved(tmp_path, peft.LoraConfig(r=2, target_modules=QV))
    check_no_room_is_taken(tmp_path, 10**6)
    monkeypatch.setattr(weight_adapters, "check", lambda *_: None)
    with pytest.raises(AssertionError):
        check_no_room_is_taken(tmp_path, 10**5)


def check_a_failed_load_changes_nothing(folder, base, monkeypatch):
    """Fail at the trial, the last thing that can fail, when the adapters are already on the model."""
    with monkeypatch.context() as patch, unchanged(base):
        examine, calls = saving.examine, []

        def fail_at_last(model):
            calls.append(model)
            if len(calls) > 1:
                raise zoo.UnsupportedError("the trial fails")
            return examine(model)

        patch.setattr(saving, "examine", fail_at_last)
        with pytest.raises(zoo.UnsupportedError, match="the trial fails"):
            zoo.load(base, folder)


LOADS = {
    "LoRA": (peft.LoraConfig(r=2, target_modules=QV), None),
    "PiSSA": (peft.LoraConfig(r=2, target_modules=QV, init_lora_weights="pissa"), None),
    "head": (peft.LoraConfig(r=2, target_modules=QV, modules_to_save=["lm_head"]), None),
    "IA3": (CONFIGS["IA3"], None),
    "its own": (peft.LoraConfig(r=2, target_modules=QV, bias="all"), "default"),
    "another": (peft.LoraConfig(r=2, target_modules=QV, modules_to_save=["lm_head"]), "other"),
}


@pytest.mark.parametrize("load", LOADS)
def test_a_load_that_fails_at_its_end_changes_nothing(load, tmp_path, monkeypatch):
    config, there = LOADS[load]
    saved(tmp_path, config)
    base = with_adapter(peft.LoraConfig(r=2, target_modules=QV), there) if there else tiny_model("llama").eval()
    if there == "default":
        base = with_adapter(peft.LoraConfig(r=2, target_modules=QV, bias="all"))
    check_a_failed_load_changes_nothing(tmp_path, base, monkeypatch)
    monkeypatch.setattr(weight_adapters, "taken_off_on_error", lambda *_: contextlib.nullcontext())
    with pytest.raises(AssertionError):
        check_a_failed_load_changes_nothing(tmp_path, base, monkeypatch)


def test_adapters_that_fit_only_alone_are_refused(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=QV, bias="lora_only")
    saved(tmp_path, config, "one")
    base = with_adapter(config, "two")
    with unchanged(base), pytest.raises(zoo.CheckpointError, match="1 adapter with bias"):
        zoo.load(base, tmp_path)


def test_a_prompt_that_is_active_twice_is_refused(tmp_path):
    model = zoo.get_method("prompt_tuning")(tiny_model("llama"), num_virtual_tokens=3)
    model.prompts.choose(("default", "default"))
    model.save_pretrained(tmp_path)
    base = tiny_model("llama").eval()
    with unchanged(base), pytest.raises(zoo.CheckpointError, match="one of them twice"):
        zoo.load(base, tmp_path)
