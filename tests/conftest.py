"""One torch thread per test process: tiny models crawl with more. And the scripts in `benchmarks/` as modules."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def benchmark():
    """What imports a benchmark by name, with the modules beside it; they are gone afterwards."""
    before, verbosity = set(sys.modules), logging.get_verbosity()
    sys.path.insert(0, BENCHMARKS)
    yield importlib.import_module
    sys.path.remove(BENCHMARKS)
    logging.set_verbosity(verbosity)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(BENCHMARKS):
            del sys.modules[name]
