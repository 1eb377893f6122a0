"""Every registered method on every tiny model: the registry is the matrix; a third of it is in the default run.

The default run checks each promise of each method on some models, each promise on each model with at least two methods,
as one may be refused there, and each method on each model. The slow tests check the rest.
"""

from types import MappingProxyType

import pytest

import softprompt_zoo as zoo
from softprompt_zoo.testing import TINY_MODELS, ConformanceSuite


@pytest.mark.parametrize("architecture", TINY_MODELS)
class TestEveryMethod(ConformanceSuite):
    turns = 3
    in_turns = MappingProxyType({"_method": zoo.list_methods(), "architecture": [*TINY_MODELS]})

    @pytest.fixture(autouse=True, params=in_turns["_method"])
    def _method(self, request):
        self.method = request.param
        self.options, self.longer = zoo.get_method(self.method).example_options
