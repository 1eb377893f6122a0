"""Setup for all tests: one torch thread, no plugins that happen to be installed, and the benchmarks as modules."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import from the hub: no test waits for a network

import gc
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from accelerate.utils import memory
from helpers import checked_shapes, products
from helpers.fresh_processes import FreshProcesses
from transformers.utils import logging

gc.disable()  # what is imported during collection stays
memory.gc = types.SimpleNamespace(collect=lambda: 0)  # each training run ends with a collection, slower than the run
checked_shapes.install()

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")

os.environ["OMP_NUM_THREADS"] = "1"  # for processes that tests start; pytest's own workers are already running
os.environ["PYTHONSAFEPATH"] = "1"  # they import what is installed, not what is in the folder they run in
os.environ["SOFTPROMPT_ZOO_PLUGINS"] = ""  # tests that install a plugin allow it


def pytest_collection_finish() -> None:
    """Collect only garbage that tests create, and only rarely: a tiny model has many objects that are soon freed."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Run a file in one process, so that its tests share fixtures and imports."""
    from xdist.scheduler import LoadFileScheduling  # some environments of `noxfile.py` go without

    return LoadFileScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the combinations of a suite that the default run leaves out as slow: see `helpers.products`."""
    for item in items:
        lists = getattr(item.cls, "in_turns", {})
        places = [values.index(item.callspec.params[name]) for name, values in lists.items()]
        if lists and not products.is_in_turn(item.cls.turns, dir(item.cls).index(item.originalname), *places):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Use one torch thread, because tiny models are slower with more.

    This is not a fixture: module fixtures would run before it, with more threads, and sum in another order.
    """
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Reset the number of threads, which a command run by a fixture may have changed."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def benchmark():
    """Import a benchmark by name, and the modules next to it; remove them all afterwards."""
    before, verbosity = set(sys.modules), logging.get_verbosity()
    sys.path.insert(0, BENCHMARKS)
    yield importlib.import_module
    sys.path.remove(BENCHMARKS)
    logging.set_verbosity(verbosity)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(BENCHMARKS):
            del sys.modules[name]


@pytest.fixture(scope="session")
def fresh_processes():
    """Run code in a fresh process."""
    processes = FreshProcesses()
    yield processes
    processes.end()


@pytest.fixture
def llama_adapter():
    """Register the LLaMA-Adapter plugin, a method with gated tokens, without installing its package."""
    file = Path(__file__).parents[1] / "plugins" / "softprompt-zoo-llama-adapter" / "softprompt_zoo_llama_adapter.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    zoo = importlib.import_module("softprompt_zoo")
    zoo.register(module, "llama_adapter")
    yield "llama_adapter"
    zoo.unregister("llama_adapter")
