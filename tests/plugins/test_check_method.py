"""`check_method`: the promises checked in one line, with a summary of those that are not kept."""

import os

import pytest
import torch
from torch import nn

import softprompt_zoo as zoo
from softprompt_zoo.testing import check_method


class Growing:
    """A method whose prompt changes with every forward."""

    NAME = "growing"
    Config = zoo.MethodConfig

    class Parameters(nn.Module):
        def __init__(self, config, backbone):
            super().__init__()
            self.embeddings = nn.Parameter(torch.ones(config.num_virtual_tokens, backbone.hidden_size))
            self.calls = 0

        def initialize(self, config, backbone):
            pass

    @staticmethod
    @zoo.hookimpl
    def build_virtual_tokens(parameters):
        parameters.calls += 1
        return zoo.InputTokens(parameters.embeddings * parameters.calls)


@pytest.fixture
def growing():
    zoo.register(Growing)
    yield
    zoo.unregister("growing")


def test_a_method_that_keeps_its_promises(monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    checked = check_method("prompt", architectures=["llama"], promises=(2, 8))
    assert checked.is_kept
    lines = str(checked).splitlines()
    assert lines[0] == "prompt_tuning: 4 passed"
    assert "  ✓ promise 02 detach gives the base model: 1 passed" in lines
    assert os.environ["PYTEST_ADDOPTS"] == "--no-such-option"


def test_what_a_method_does_not_keep_is_said(growing):
    with pytest.raises(AssertionError, match=r"✗ promise 03 rows do not depend") as found:
        check_method("growing", architectures=["llama"], promises=(2, 3))
    assert "✓ promise 02 disabled gives the base model: 1 passed" in str(found.value)
    checked = check_method("growing", architectures=["llama"], promises=(3,), raises=False)
    assert {check.outcome for check in checked.checks} == {"failed"}
    assert "differs by" in checked.failed[0].reason
    assert repr(checked).startswith("growing: 2 failed")


def test_a_method_that_is_refused_everywhere_does_not_pass():
    with pytest.raises(AssertionError, match="is refused on every model"):
        check_method("prefix", {"sites": ["encoder"]}, architectures=["llama"], promises=(1,))
    with pytest.raises(zoo.UnknownMethodError):
        check_method("no_such_method")
