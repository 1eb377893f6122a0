"""Tasks of each kind of virtual tokens: only embeddings have an axis of tasks, and they have one if there are tasks."""

import dataclasses

import pytest
import torch
from helpers.text_methods import registered
from safetensors.torch import load_file, save_file
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.files import prompt_folder
from softprompt_zoo.testing import tiny_model

COUNT, HIDDEN, TASKS = 4, 32, 3
IDS = torch.arange(5, 17).view(2, 6)


def keys_and_values(flat, backbone, extra):
    """Return keys and values of the decoder, with gates or scores made from the keys of each layer."""
    site = zoo.unflatten_layers(flat, backbone.layers["decoder"])
    more = {name: tuple([make(key) for key in site.keys]) for name, make in extra.items()}
    return zoo.LayerTokens({"decoder": dataclasses.replace(site, **more)})


MADE = {
    "embeddings": lambda flat, backbone: zoo.InputTokens(flat[:, :HIDDEN]),
    "embeddings of tasks": lambda flat, backbone: zoo.InputTokens(flat[:, :HIDDEN].expand(TASKS, -1, -1)),
    "as tokens with tasks": lambda flat, backbone: zoo.TaskTokens(flat[:, :HIDDEN].expand(TASKS, -1, -1)),
    "keys and values": lambda flat, backbone: keys_and_values(flat, backbone, {}),
    "gates": lambda flat, backbone: keys_and_values(flat, backbone, {"gates": lambda key: key.new_ones(1)}),
    "scores": lambda flat, backbone: keys_and_values(
        flat, backbone, {"scores": lambda key: key.new_ones(key.shape[:2])}
    ),
}
"""What a hook may return, from one row of numbers per token."""

LAYERS = (
    rf"returned (Layer|Gated|Scored)Tokens \(keys and values of decoder.*\), but num_tasks is 3; expected InputTokens "
    rf"with embeddings of shape \({TASKS}, {COUNT}, {HIDDEN}\), .* leave num_tasks out of the Config, add a prompt for"
)
REFUSED = {
    (
        "embeddings",
        TASKS,
    ): rf"returned embeddings of shape \({COUNT}, {HIDDEN}\); expected \({TASKS}, {COUNT}, {HIDDEN}",
    ("embeddings of tasks", None): rf"shape \({TASKS}, {COUNT}, {HIDDEN}\); expected \({COUNT}, {HIDDEN}\)",
    ("as tokens with tasks", None): rf"shape \({TASKS}, {COUNT}, {HIDDEN}\); expected \({COUNT}, {HIDDEN}\)",
    ("keys and values", TASKS): LAYERS,
    ("gates", TASKS): LAYERS,
    ("scores", TASKS): LAYERS,
}
"""What does not fit the tasks, and the message."""
ACCEPTED = [(made, tasks) for made in MADE for tasks in (None, TASKS) if (made, tasks) not in REFUSED]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options."""

    num_virtual_tokens: int = COUNT
    num_tasks: int | None = None


class Parameters(nn.Module):
    """One row of numbers for each token."""

    def __init__(self, config, backbone):
        super().__init__()
        features = sum(layer.features for layer in backbone.layers["decoder"])
        self.flat = nn.Parameter(torch.empty(config.num_virtual_tokens, features))

    def initialize(self, config, backbone):
        nn.init.normal_(self.flat)


def plugin(returned, hook="build_virtual_tokens", **parts):
    """Return a method with a hook that returns some tokens; its other hooks return what fits its tasks."""

    def tokens_of(name, config, parameters, backbone):
        fitting = "embeddings" if config.tasks is None else "embeddings of tasks"
        return MADE[returned if name == hook else fitting](parameters.flat, backbone)

    class Tasked:
        """Tasks of any kind."""

        @zoo.hookimpl
        def build_virtual_tokens(self, config, parameters, backbone):
            return tokens_of("build_virtual_tokens", config, parameters, backbone)

        @zoo.hookimpl
        def inject(self, tokens, config, parameters, backbone):
            if hook != "inject":
                return zoo.Placement(tokens)
            return zoo.Placement(tokens_of("inject", config, parameters, backbone))

        @zoo.hookimpl
        def merge(self, config, parameters, backbone):
            name = "build_virtual_tokens" if hook != "merge" else "merge"
            return tokens_of(name, config, parameters, backbone)

    made = Tasked()
    for name, part in {"Config": Config, "Parameters": Parameters, **parts}.items():
        setattr(made, name, part)
    return made


@pytest.mark.parametrize("hook", ["build_virtual_tokens", "inject", "merge"])
@pytest.mark.parametrize(("returned", "tasks"), REFUSED)
def test_tokens_that_do_not_fit_the_tasks_are_refused_before_the_model_is_changed(returned, tasks, hook):
    text = rf"^method 'tasked' \(zoo\.register\), hook '{hook}', .*{REFUSED[returned, tasks]}"
    with registered(tasked=plugin(returned, hook)):
        bare = tiny_model("llama")
        with pytest.raises(zoo.ShapeError, match=text):
            zoo.get_method("tasked")(bare, num_tasks=tasks)
        assert not hasattr(bare, "prompts")
        prompted = zoo.get_method("prompt_tuning")(bare, num_virtual_tokens=2)
        with pytest.raises(zoo.ShapeError, match=text):
            prompted.prompts.add("more", "tasked", num_tasks=tasks)
        assert prompted.prompts.keys() == ["default"]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:method 'tasked'.*on which no token depends")
@pytest.mark.parametrize(("returned", "tasks"), ACCEPTED)
def test_tokens_that_fit_the_tasks_are_taken_merged_and_loaded(returned, tasks, tmp_path):
    with registered(tasked=plugin(returned)):
        prompted = zoo.get_method("tasked")(tiny_model("llama"), num_tasks=tasks).eval()
        chosen = {} if tasks is None else {"task_ids": [1, 2]}
        expected = prompted(IDS, **chosen).logits
        zoo.merge(prompted)
        prompted.save_pretrained(tmp_path)
        torch.testing.assert_close(prompted(IDS, **chosen).logits, expected)
        loaded = zoo.load(tiny_model("llama"), tmp_path).eval()
        torch.testing.assert_close(loaded(IDS, **chosen).logits, expected)


@pytest.mark.parametrize("is_installed", [True, False])
@pytest.mark.parametrize(("returned", "tasks"), REFUSED)
def test_saved_merged_tokens_that_do_not_fit_the_tasks_are_refused(returned, tasks, is_installed, tmp_path):
    with registered(tasked=plugin(returned)):
        fitting = None if tasks else TASKS
        prompted = zoo.get_method("tasked")(tiny_model("llama"), num_tasks=fitting)
        zoo.merge(prompted)
        prompted.save_pretrained(tmp_path)
    index, tensors = prompt_folder.read(tmp_path)
    entry = index.prompts["default"]
    changed = dataclasses.replace(entry, config={**entry.config, "num_tasks": tasks})
    named = {f"prompts.default.{key}": tensor for key, tensor in tensors["default"].items()}
    prompt_folder.write(tmp_path, dataclasses.replace(index, prompts={"default": changed}), named)
    bare = tiny_model("llama")
    plugins = {"tasked": plugin(returned)} if is_installed else {}
    with registered(**plugins), pytest.raises(zoo.CheckpointError, match=r"num_tasks is 3|has shape .*; expected \("):
        zoo.load(bare, tmp_path)
    assert not hasattr(bare, "prompts")


@pytest.mark.parametrize(("returned", "tasks"), REFUSED)
def test_plain_tokens_read_from_peft_that_do_not_fit_the_tasks_are_refused(returned, tasks, tmp_path):
    @zoo.hookimpl
    def read_peft(backbone):
        flat = torch.randn(COUNT, sum(layer.features for layer in backbone.layers["decoder"]))
        return zoo.PeftPrompt({"num_tasks": tasks}, tokens=MADE[returned](flat, backbone))

    export_as(tmp_path, "prefix_tuning")
    text = rf"^method 'tasked' \(zoo\.register\), hook 'read_peft', .*{REFUSED[returned, tasks]}"
    tasked = plugin(returned, PEFT_TYPES=("TASKED",), read_peft=read_peft)
    with registered(tasked=tasked), pytest.raises(zoo.ShapeError, match=text):
        zoo.load(tiny_model("llama"), tmp_path)


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_plain_tokens_that_the_host_reads_from_peft_have_no_tasks(method, tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class AlwaysTasks(Config):
        num_tasks: int | None = TASKS
        init: str = "random"

    export_as(tmp_path, method)
    returned = "keys and values" if method == "prefix_tuning" else "embeddings"
    tasked = plugin("embeddings of tasks", PEFT_TYPES=("TASKED",), Config=AlwaysTasks)
    with registered(tasked=tasked), pytest.raises(zoo.ShapeError, match=REFUSED[returned, TASKS]):
        zoo.load(tiny_model("llama"), tmp_path)


def export_as(folder, method):
    """Write a prompt in PEFT's format, under a type of the plugin's own."""
    zoo.export(zoo.get_method(method)(tiny_model("llama"), num_virtual_tokens=COUNT), folder, to="peft")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(method.upper(), "TASKED"))
    tensors = folder / "adapter_model.safetensors"
    save_file(load_file(tensors), tensors)  # as PEFT writes it
