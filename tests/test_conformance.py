"""Every registered method on every tiny model: the registry is the matrix; half of it is in the default run."""

import pytest

import softprompt_zoo as zoo
from softprompt_zoo.testing import TINY_MODELS, ConformanceSuite


@pytest.mark.parametrize("architecture", TINY_MODELS)
class TestEveryMethod(ConformanceSuite):
    in_turns = True

    @pytest.fixture(autouse=True, params=zoo.list_methods())
    def _method(self, request):
        self.method = request.param
        self.options, self.longer = zoo.get_method(self.method).example_options
