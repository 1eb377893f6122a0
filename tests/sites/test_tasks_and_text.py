"""Tasks of prompts that depend on the rows' text: refused where tokens would, allowed beside changed embeddings."""

import dataclasses

import pytest
import torch
from helpers.text_methods import Maps, Reads, registered
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.comparison import assert_equal

IDS = torch.randint(5, 90, (2, 6), generator=torch.Generator().manual_seed(0))


class Tasks(Reads):
    """Tokens for each task, that are made from the text."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(zoo.MethodConfig):
        """Options."""

        num_virtual_tokens: int = 4
        num_tasks: int | None = 3

    class Parameters(nn.Module):
        """The tokens of each task."""

        def __init__(self, config, backbone):
            super().__init__()
            sizes = (config.num_virtual_tokens, backbone.hidden_size)
            tasks = () if config.num_tasks is None else (config.num_tasks,)
            self.base = nn.Parameter(torch.empty(*tasks, *sizes))

        def initialize(self, config, backbone):
            nn.init.normal_(self.base)

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters, text):
        rows = text.embeddings.shape[0]
        return zoo.InputTokens(parameters.base.expand(rows, *parameters.base.shape))


class PlacesTasks(Tasks):
    """Tokens for each task, that are placed by the text."""

    @zoo.hookimpl
    def build_virtual_tokens(self, parameters):
        return zoo.InputTokens(parameters.base)

    @zoo.hookimpl
    def inject(self, tokens, text):
        return zoo.Placement(tokens)


class MapsBesideTasks(Tasks):
    """Tokens for each task, and a change of the text's embeddings."""

    build_virtual_tokens = PlacesTasks.build_virtual_tokens
    map_text = Maps.map_text

    class Parameters(Tasks.Parameters):
        """The tokens of each task, and the offsets."""

        def __init__(self, config, backbone):
            super().__init__(config, backbone)
            self.offsets = nn.Parameter(torch.zeros(16, backbone.hidden_size))


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
@pytest.mark.parametrize(("plugin", "hook"), [(Tasks, "build_virtual_tokens"), (PlacesTasks, "inject")])
def test_tasks_of_tokens_that_depend_on_the_text_are_refused(architecture, plugin, hook):
    with registered(tasked=plugin()):
        bare = tiny_model(architecture)
        with pytest.raises(zoo.UnsupportedError, match=f"{hook}', asks for the rows' text, but num_tasks is 3"):
            zoo.get_method("tasked")(bare)
        assert not hasattr(bare, "prompts")
        prompted = zoo.get_method("prompt_tuning")(bare, num_virtual_tokens=2)
        with pytest.raises(zoo.UnsupportedError, match="num_tasks is 3"):
            prompted.prompts.add("more", "tasked")
        assert prompted.prompts.keys() == ["default"]
        prompted.prompts.add("more", "tasked", num_tasks=None)
        assert prompted.prompts["more"].config.tasks is None


@torch.no_grad()
def test_a_change_of_the_text_may_stand_beside_tasks():
    with registered(tasked=MapsBesideTasks()):
        prompted = zoo.get_method("tasked")(tiny_model("llama")).eval()
        both = prompted(IDS, task_ids=[1, 2]).logits
        for row, task in enumerate([1, 2]):
            assert_equal(both[row : row + 1], prompted(IDS[row : row + 1], task_ids=[task]).logits, f"row {row}")
