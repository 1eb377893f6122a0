"""Prompts as files of keys and values: what transformers' own cache makes of them, and what is refused."""

import dataclasses
import inspect
import json

import pytest
import torch
from helpers.products import in_turns
from helpers.uneven_layers import gemma4
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import DynamicCache

import softprompt_zoo as zoo
from softprompt_zoo.files.writing import write_tensors
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.models import CLASSIFICATION, MORE_MODELS, TINY_MODELS
from softprompt_zoo.testing.subject import Subject, random_text

TEXT = random_text(9, 2)
LAST = random_text(5, 3)
ARCHITECTURES = ["llama", "gpt2", "gemma3", "qwen3", "opt", "mistral"]
KINDS = {
    "input": {"words": ("prompt_tuning", {"num_virtual_tokens": 4})},
    "prefix": {"keys": ("prefix_tuning", {"num_virtual_tokens": 3, "reparameterization": "mlp", "dropout": 0.5})},
    "both": {
        "words": ("p_tuning", {"num_virtual_tokens": 2}),
        "keys": ("p_tuning_v2", {"num_virtual_tokens": 3, "train_head": False}),
    },
}


def prompted(architecture="llama", methods=KINDS["both"], seed=3):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tiny_model(architecture)
        for name, (method, options) in methods.items():
            if hasattr(model, "prompts"):
                model.prompts.add(name, method, **options)
            else:
                zoo.get_method(method)(model, name, **options)
        for parameter in model.prompts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.prompts.activate(*methods)
    return model.eval()


def cache_of(folder, config):
    """Load the file into a cache, as an engine does."""
    tensors = load_file(folder / "prefix.safetensors")
    cache = DynamicCache(config=config)
    depth = config.get_text_config().num_hidden_layers
    for layer in range(depth):
        key, value = (
            tensors[kind][layer] if kind in tensors else tensors[f"{kind}.{layer}"] for kind in ("key", "value")
        )
        cache.update(key[None], value[None], layer)
    return cache


def behind(base, cache, count, texts):
    """Return the logits of texts, one after another, that follow what a cache holds."""
    found = []
    with torch.no_grad():
        for text in texts:
            count += text.shape[1]
            mask = torch.ones(1, count, dtype=torch.long)
            found.append(base(input_ids=text, attention_mask=mask, past_key_values=cache).logits)
    return torch.cat(found, dim=1)


@in_turns(architecture=ARCHITECTURES, kind=KINDS)
def test_transformers_own_cache_goes_on_behind_it(architecture, kind, tmp_path):
    check_behind(prompted(architecture, KINDS[kind]), architecture, tmp_path)


def check_behind(model, architecture, tmp_path):
    expected = Subject(architecture, model).logits(torch.cat([TEXT[:1], LAST[:1]], dim=1))
    zoo.export(model, tmp_path / "kv", to="kv")
    count = json.loads((tmp_path / "kv" / "prefix.json").read_text())["num_tokens"]
    base = tiny_model(architecture)
    # A window forgets the prefix while the second text is read.
    found = behind(base, cache_of(tmp_path / "kv", base.config), count, [TEXT[:1], LAST[:1]])
    assert_equal(found, expected, f"logits of {architecture}")
    with torch.no_grad():
        assert not torch.allclose(base(input_ids=TEXT[:1]).logits, found[:, : TEXT.shape[1]], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["input", "prefix"])
def test_all_tiny_causal_models_go_on_behind_it(kind, tmp_path):
    checked = []
    for architecture in {**TINY_MODELS, **MORE_MODELS}:
        try:
            model = prompted(architecture, KINDS[kind])
        except zoo.UnsupportedError:
            continue
        if model.prompts.backbone.kind.is_causal:
            (tmp_path / architecture).mkdir()
            check_behind(model, architecture, tmp_path / architecture)
            checked.append(architecture)
    assert len(checked) > 25


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_it_loads_as_a_prompt(architecture, tmp_path):
    model = prompted(architecture)
    expected = Subject(architecture, model).logits(TEXT)
    zoo.export(model, tmp_path / "kv", to="kv")
    loaded = zoo.load(tiny_model(architecture), tmp_path / "kv")
    assert (loaded.prompts.keys(), loaded.prompts.active) == (["folded"], ("folded",))
    assert loaded.prompts["folded"].is_merged
    assert_equal(Subject(architecture, loaded).logits(TEXT), expected, "loaded")
    config = zoo.read_config(tmp_path / "kv")
    assert (config.prompts["folded"].num_virtual_tokens, config.active) == (5, ("folded",))


def test_the_model_is_left_as_it_is(tmp_path):
    model = prompted().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zoo.export(model, tmp_path / "kv", to="kv", name=["keys", "words"])
    assert model.training
    assert (model.prompts.keys(), model.prompts.active) == (["words", "keys"], ("words", "keys"))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_file_says_what_it_is_and_for_which_model(tmp_path):
    zoo.export(prompted("gemma3"), tmp_path / "kv", to="kv", name="words")
    content = json.loads((tmp_path / "kv" / "prefix.json").read_text())
    with safe_open(tmp_path / "kv" / "prefix.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["softprompt_zoo_prefix"]) == content
        assert file.get_slice("key").get_shape() == file.get_slice("value").get_shape()
        shape = file.get_slice("key").get_shape()
    config = tiny_model("gemma3").config
    assert shape == [config.num_hidden_layers, config.num_key_value_heads, 2, config.head_dim]
    kinds = {"sliding_attention": config.sliding_window, "full_attention": None}
    assert content["windows"] == [kinds[kind] for kind in config.layer_types]
    assert (content["name"], content["num_tokens"], content["dtype"]) == ("words", 2, "float32")
    assert content["model"]["model_type"] == config.model_type
    embedded = tiny_model("gemma3").get_input_embeddings()(torch.tensor(content["model"]["embeddings"]["ids"]))
    sample = embedded[:, content["model"]["embeddings"]["columns"]]
    torch.testing.assert_close(torch.tensor(content["model"]["embeddings"]["values"]), sample, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_what_the_readme_says_runs(architecture, tmp_path):
    model, text = prompted(architecture), TEXT[:1]
    options = {"max_new_tokens": 12, "do_sample": False}  # which goes past the window
    expected = model.generate(text, attention_mask=torch.ones_like(text), **options)[0, text.shape[1] :]
    zoo.export(model, tmp_path / "kv", to="kv")
    readme = (tmp_path / "kv" / "README.md").read_text()
    code = readme.partition("```python\n")[2].partition("```")[0]
    [name] = {"cache", "past_key_values"} & set(inspect.signature(type(tiny_model(architecture)).forward).parameters)
    assert f"{name}=cache)" in code  # and not a name that is only accepted with a warning
    code = code.replace('"prefix.safetensors"', 'folder + "/prefix.safetensors"')
    base = tiny_model(architecture)
    base.generation_config.update(**options)
    names = {"model": base, "ids": text, "folder": str(tmp_path / "kv")}
    exec(code, names)
    assert torch.equal(names["answer"], expected)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_readme_calls_the_cache_as_the_model_does(name, tmp_path, monkeypatch):
    model = prompted(methods=KINDS["prefix"])
    stack = dataclasses.replace(model._softprompt_stacks["decoder"], cache_argument=name)
    monkeypatch.setitem(model._softprompt_stacks, "decoder", stack)
    zoo.export(model, tmp_path / "kv", to="kv")
    assert f" {name}=cache)" in (tmp_path / "kv" / "README.md").read_text()


def test_layers_of_other_sizes_have_tensors_of_their_own(tmp_path):
    model = zoo.get_method("prefix_tuning")(gemma4(global_head_dim=16), "keys", num_virtual_tokens=3, init="random")
    with torch.no_grad():
        expected = model(input_ids=TEXT[:1]).logits
    zoo.export(model, tmp_path / "kv", to="kv")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "kv" / "prefix.safetensors").items()}
    assert shapes == {f"{kind}.{layer}": (1, 3, 8 * (1 + layer % 2)) for kind in ("key", "value") for layer in range(4)}
    base = gemma4(global_head_dim=16)
    assert_equal(behind(base, cache_of(tmp_path / "kv", base.config), 3, [TEXT[:1]]), expected, "transformers' cache")
    loaded = zoo.load(gemma4(global_head_dim=16), tmp_path / "kv")
    with torch.no_grad():
        assert_equal(loaded(input_ids=TEXT[:1]).logits, expected, "loaded")


def test_layers_that_share_a_cache_have_the_same_or_are_refused(tmp_path):
    sizes = {"global_head_dim": 8, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
    model = zoo.get_method("prefix_tuning")(gemma4(**sizes), "keys", num_virtual_tokens=3)  # of real words
    zoo.export(model, tmp_path / "kv", to="kv")
    content = json.loads((tmp_path / "kv" / "prefix.json").read_text())
    assert content["shared_with"] == [None, None, 0, 1]
    with torch.no_grad():
        next(model.prompts.parameters()).add_(0.1 * torch.arange(64).view(1, 64))
    with pytest.raises(zoo.UnsupportedError, match="layer 2 of this model reads the keys and values of layer 0"):
        zoo.export(model, tmp_path / "other", to="kv")


def test_half_precision_is_that_of_the_model(tmp_path):
    model = prompted().bfloat16()
    zoo.export(model, tmp_path / "kv", to="kv")
    tensors = load_file(tmp_path / "kv" / "prefix.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    zoo.load(tiny_model("llama").bfloat16(), tmp_path / "kv")


def test_one_task_of_several(tmp_path):
    model = zoo.get_method("multitask_prompt_tuning")(tiny_model("llama"), "tasks", num_virtual_tokens=3, num_tasks=2)
    for parameter in model.prompts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with pytest.raises(zoo.UnsupportedError, match="has 2 tasks"):
        zoo.export(model, tmp_path / "kv", to="kv")
    with torch.no_grad():
        expected = model(input_ids=TEXT[:1], task_ids=torch.tensor([1])).logits
    zoo.export(model, tmp_path / "kv", to="kv", task=1)
    base = tiny_model("llama")
    assert_equal(behind(base, cache_of(tmp_path / "kv", base.config), 3, [TEXT[:1]]), expected, "task 1")
    with pytest.raises(ValueError, match="task is 7"):
        zoo.export(model, tmp_path / "other", to="kv", task=7)


def with_nan(model):
    with torch.no_grad():
        next(model.prompts["words"].parameters()).view(-1)[3] = float("nan")
    return model


def weighed(model):
    model.prompts.set_weight("words", 0.5)
    return model


REFUSED = {
    "an encoder": (lambda: prompted("bert", KINDS["prefix"]), "not a causal model"),
    "a head": (
        lambda: zoo.get_method("prefix_tuning")(
            tiny_model("llama", task=CLASSIFICATION), num_virtual_tokens=3, train_head=True
        ),
        "trained task head",
    ),
    "a weight": (lambda: weighed(prompted()), "weight 0.5"),
    "NaN": (lambda: with_nan(prompted()), "holds NaN or infinity in 'embeddings'"),
    "in sight of windows": (
        lambda: prompted("mistral", {"a": ("prefix_tuning", {"num_virtual_tokens": 3, "always_visible": True})}),
        "always_visible=True",
    ),
    "numbers that the dtype cannot hold": (lambda: too_large(prompted("llama", KINDS["prefix"])), "holds up to 6.55e"),
}


def too_large(model):
    model.half()
    prompt = model.prompts["keys"].float()
    for parameter in prompt.parameters():
        parameter.data.fill_(1e5)
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_engine_could_not_do_is_refused_and_leaves_nothing(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(zoo.UnsupportedError, match=message):
        zoo.export(make(), tmp_path / "kv", to="kv")
    assert not any(tmp_path.iterdir())


def test_another_place_or_name_is_refused(tmp_path):
    model = prompted()
    (tmp_path / "there").write_text("")
    with pytest.raises(ValueError, match="not an empty folder"):
        zoo.export(model, tmp_path, to="kv")
    with pytest.raises(zoo.UnknownPromptError, match="'nobody'"):
        zoo.export(model, tmp_path / "kv", to="kv", name="nobody")
    model.prompts.activate()
    with pytest.raises(ValueError, match="nothing to fold"):
        zoo.export(model, tmp_path / "kv", to="kv")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_another_model_does_not_load_it(tmp_path):
    zoo.export(prompted(), tmp_path / "kv", to="kv")
    for other, message in ((tiny_model("llama", 1), "other weights"), (tiny_model("gpt2"), "made for a model")):
        with pytest.raises(zoo.BackboneMismatchError, match=message):
            zoo.load(other, tmp_path / "kv")
        assert not hasattr(other, "prompts")


def rewritten(folder, change):
    """Change the tensors and the header, and write a correct checksum."""
    path = folder / "prefix.safetensors"
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["softprompt_zoo_prefix"])
    tensors = load_file(path)
    change(tensors, content)
    write_tensors(path, tensors, {"softprompt_zoo_prefix": json.dumps(content)})


DAMAGES = {
    "a layer less": lambda tensors, content: tensors.update(key=tensors["key"][:1].clone()),
    "no values": lambda tensors, content: tensors.pop("value"),
    "other tokens": lambda tensors, content: content.update(num_tokens=4),
    "NaN": lambda tensors, content: tensors["key"].fill_(float("nan")),
    "integers": lambda tensors, content: tensors.update(key=tensors["key"].long()),
    "no axes": lambda tensors, content: tensors.update(key=torch.zeros(2)),
    "a later format": lambda tensors, content: content.update(format=2),
    "no model": lambda tensors, content: content.update(model={}),
    "a field more": lambda tensors, content: content.update(more=1),
    "windows of text": lambda tensors, content: content.update(windows=["a", "b"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(damage, tmp_path):
    zoo.export(prompted(), tmp_path / "kv", to="kv")
    rewritten(tmp_path / "kv", DAMAGES[damage])
    base = tiny_model("llama")
    with pytest.raises(zoo.CheckpointError, match=r"prefix\.safetensors"):
        zoo.load(base, tmp_path / "kv")
    assert not hasattr(base, "prompts")


def test_a_flipped_bit_is_noticed(tmp_path):
    zoo.export(prompted(), tmp_path / "kv", to="kv")
    path = tmp_path / "kv" / "prefix.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(zoo.CheckpointError, match="checksum"):
        zoo.load(tiny_model("llama"), tmp_path / "kv")
