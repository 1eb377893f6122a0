"""Fixtures for the engines' tests: models with prompts, and settings that let vLLM run on a small machine."""

import os

import pytest
from helpers import served_models

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.fixture(scope="session", params=["tiny", "smollm2"])
def served(request, tmp_path_factory):
    """Each model in turn."""
    return getattr(served_models, request.param)(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def written(served):
    """What the prompted model writes after each text."""
    return [served.written(name, served.ids(text)) for name, text in served.rows]


@pytest.fixture(scope="session")
def written_in_chats(served):
    """What the prompted model answers to each chat."""
    return [served.written(name, served.chat_ids(text)) for name, text in served.rows]
