"""The method that loads a PEFT type: found without importing the others."""

import dataclasses

import pytest

from softprompt_zoo.registry.registry import Registry


@pytest.fixture
def loaded(monkeypatch):
    """Return the names of the methods whose plugins were loaded."""
    names = []
    load = Registry._load
    monkeypatch.setattr(
        Registry, "_load", lambda self, candidate: names.append(candidate.name) or load(self, candidate)
    )
    return names


def test_only_the_method_that_declares_a_type_is_loaded(loaded):
    assert Registry().reader_of("PREFIX_TUNING").name == "prefix_tuning"
    assert loaded == ["prefix_tuning"]


def test_where_none_declares_it_all_are_asked(loaded, monkeypatch):
    registry = Registry()
    candidates = {
        name: dataclasses.replace(candidate, peft_types=()) for name, candidate in registry.candidates().items()
    }
    monkeypatch.setattr(registry, "candidates", lambda: candidates)
    assert registry.reader_of("PREFIX_TUNING").name == "prefix_tuning"
    assert "cpt" in loaded


def test_an_unknown_type_has_none():
    assert Registry().reader_of("LORA") is None
