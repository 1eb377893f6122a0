"""Every registered method on every tiny model: the registry is the matrix."""

import pytest

import softprompt_zoo as zoo
from softprompt_zoo.testing import TINY_MODELS, ConformanceSuite


@pytest.mark.parametrize("architecture", TINY_MODELS)
class TestEveryMethod(ConformanceSuite):
    @pytest.fixture(autouse=True, params=zoo.list_methods())
    def _method(self, request):
        self.method = request.param
        self.options, self.longer = zoo.get_method(self.method).example_options
