"""A method on a tiny model, of the first family on which it works: to see what it keeps and what it can do."""

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
from softprompt_zoo.trial.examination import inspect_backbone

FAMILIES = ("gpt2", "bert", "t5")
"""A tiny model of each, in the order in which they are tried."""


def tried(method: LoadedMethod, wrappers: Mapping[str, Mapping[str, Any]]) -> Subject:
    """Put a method with its example options on a tiny model.

    Args:
        method: The method, within the wrappers that shall run around it.
        wrappers: Those that are chosen, with their options.

    Returns:
        The model, with the prompt `"default"` off its start values.

    Raises:
        UnsupportedError: If it works on no family; says why not on the first.
        Exception: What its hooks raise.
    """
    refusals = []
    for family in FAMILIES:
        model = tiny_model(family)
        backbone, stacks = inspect_backbone(model)
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
    """Draw the same numbers each time, and leave out warnings of what is found and told otherwise."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        yield
