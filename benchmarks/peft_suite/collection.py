"""A pytest plugin that runs only PEFT's tests of prompts, offline, with PEFT or this library under PEFT's names."""

import contextlib
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from peft_suite import stand_in
from peft_suite.hub import QUOTES
from peft_suite.not_applicable import reason_of

OF_ONE_METHOD = ("test_cpt", "test_cartridge", "test_adaption_prompt", "test_multitask_prompt_tuning")
"""Files in which all tests are about prompts."""
CONFIGS = ("PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig", "AdaptionPromptConfig", "CPTConfig")
"""Configs whose names identify the tests of prompts in the other files."""


@contextlib.contextmanager
def _offline(model_id: str) -> Iterator[None]:
    yield


def _quotes(*args: Any, **kwargs: Any) -> Any:
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"quote": QUOTES})})


def _sentences(*args: Any, **kwargs: Any) -> Any:
    rows = datasets.Dataset.from_dict({"sentence": QUOTES, "label": [index % 2 for index in range(len(QUOTES))]})
    return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))


def pytest_addoption(parser: Any) -> None:
    """Add the options that `peft_tests.py` passes on."""
    parser.addoption("--behind", default="peft", help="whose prompts stand behind PEFT's names: peft, softprompt_zoo")
    parser.addoption("--outcomes", default=None, help="the JSON file for the outcome of every test")


def pytest_configure(config: Any) -> None:
    """Replace the hub's data with local data, and on request PEFT with this library, before importing the tests."""
    datasets.load_dataset = _sentences
    if config.getoption("--behind") == "softprompt_zoo":
        stand_in.install()
    utils = importlib.import_module("tests.testing_utils")
    utils.hub_online_once, utils.load_dataset_english_quotes = _offline, _quotes


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep only the tests of prompts."""
    items[:] = [item for item in items if _is_of_prompts(item)]


def _is_of_prompts(item: Any) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    config = parameters.get("config_cls")
    if inspect.isclass(config):
        return issubclass(config, stand_in.PROMPT_CONFIGS)
    return item.path.stem in OF_ONE_METHOD or any(name in inspect.getsource(item.function) for name in CONFIGS)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """Skip the tests that do not apply to this library."""
    if item.config.getoption("--behind") == "softprompt_zoo":
        reason = reason_of(item)
        if reason is not None:
            pytest.skip(f"not applicable: {reason}")


def pytest_runtest_logreport(report: Any) -> None:
    """Record a test's outcome."""
    if report.when == "call" or report.outcome != "passed":
        message = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            message = str(report.longrepr[2])
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(getattr(crash, "message", report.longrepr))[:400]
        OUTCOMES.setdefault(report.nodeid, (report.outcome, message))


OUTCOMES: dict[str, tuple[str, str]] = {}


def pytest_sessionfinish(session: Any) -> None:
    """Write the outcomes to a file."""
    path = session.config.getoption("--outcomes")
    if path and not hasattr(session.config, "workerinput"):
        Path(path).write_text(json.dumps(OUTCOMES, indent=1), "utf-8")
