"""A separate registry for each test, and the plugins it finds installed."""

import pytest
from sound_plugins import Installed

from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.registry import discovery
from softprompt_zoo.registry import registry as looked_up
from softprompt_zoo.registry.registry import Registry


@pytest.fixture
def installed(monkeypatch):
    fake = Installed()
    built_in = discovery.find_plugins()[: len(BUILTINS)]
    monkeypatch.setattr(discovery, "find_plugins", lambda: built_in + fake.methods + fake.wrappers)
    before = looked_up.fingerprint()
    monkeypatch.setattr(looked_up, "fingerprint", lambda: (*before, len(fake.methods), len(fake.wrappers)))
    return fake


@pytest.fixture
def registry(installed):
    return Registry()
