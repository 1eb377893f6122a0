"""A method on a tiny model, of the first family on which it works, to find out what it can do."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model.attachment import attach
from softprompt_zoo.model.making import make_prompt
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.testing.models import tiny_model
from softprompt_zoo.testing.subject import Subject
from softprompt_zoo.trial.examination import examine

FAMILIES = ("gpt2", "bert", "t5")
"""Families of tiny models, in the order in which they are tried."""


def tried(method: LoadedMethod, wrappers: Mapping[str, Mapping[str, Any]]) -> Subject:
    """Attach a prompt of a method with its example options to a tiny model.

    Args:
        method: The method, including the wrappers to run around it.
        wrappers: The chosen wrappers and their options.

    Returns:
        The model, with a prompt `"default"` that is moved away from its start values.

    Raises:
        UnsupportedError: If it works on no family; the message says why not on the first one.
        Exception: Whatever its hooks raise.
    """
    refusals = []
    for family in FAMILIES:
        model = tiny_model(family)
        backbone, stacks = examine(model)
        try:
            prompt = make_prompt(method, method.example_options[0], backbone, wrappers)
        except UnsupportedError as error:
            refusals.append(error)
            continue
        attach(model, backbone, stacks, {"default": prompt})
        model.prompts.choose(("default",))
        subject = Subject(family, model)
        subject.disturb("default")
        return subject
    raise refusals[0]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Fix the random seed, and suppress warnings about what is reported otherwise."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        yield
