"""The command that starts vLLM with a bank."""

import importlib.util
import json
import sys
from importlib import metadata

import pytest
from softprompt_zoo_vllm import serving

import softprompt_zoo as zoo


@pytest.fixture(autouse=True)
def program(tmp_path, monkeypatch):
    """Pretend that vLLM is installed; return its program, which is found although its folder is not on the path."""
    for name in ("vllm", "python"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(metadata, "version", lambda name: "0.32.0")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return tmp_path / "vllm"


def test_the_command_has_bank_name_and_front(program):
    command = serving.command("folder", "s3://bucket/bank", "smollm2", ["--port", "8001"])
    environment, plugins = command[1].split("=")
    assert (command[0], environment, plugins.split(",")[-1]) == ("env", "VLLM_PLUGINS", "soft_prompt")
    assert command[2:7] == [str(program), "serve", "folder", "--served-model-name", "smollm2"]
    options = dict(option.removeprefix("--kv-transfer-config.").split("=", 1) for option in command[7:10])
    expected = serving.engine_arguments("s3://bucket/bank")["kv_transfer_config"]
    assert {key: json.loads(value) for key, value in options.items()} == expected
    assert command[10:] == ["--port", "8001"]


def test_a_users_own_name_and_plugins_stay(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "mine,soft_prompt")
    command = serving.command("folder", "bank", "smollm2", ["--served-model-name", "own"])
    assert command[1] == "VLLM_PLUGINS=mine,soft_prompt"
    assert "smollm2" not in command


@pytest.mark.parametrize(
    "option", ["--kv-transfer-config", "--kv_transfer_config={}", "--kv-transfer-config.kv_connector=Other"]
)
def test_the_connector_cannot_be_taken_away(option):
    with pytest.raises(ValueError, match="--kv-transfer-config would take the place of the connector"):
        serving.command("folder", "bank", "smollm2", [option])


def test_a_build_for_a_cpu_has_another_name_and_so_another_command(program, monkeypatch):

    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    command = serving.command("folder", "bank", "smollm2", [])
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", "folder"]
    assert command[2:9] == [sys.executable, *module, "--served-model-name", "smollm2"]


def test_a_missing_engine_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(zoo.MissingPackageError, match="pip install vllm"):
        serving.command("folder", "bank", "smollm2", [])


def test_arguments_in_python():
    expected = {
        "kv_connector": "SoftPrompt",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"bank": "bank", "cache_bytes": 5},
    }
    assert serving.engine_arguments("bank", cache_bytes=5) == {"kv_transfer_config": expected}
    assert serving.request_arguments("alice") == {"extra_args": {"kv_transfer_params": {"soft_prompt": "alice"}}}
    assert serving.request_arguments(None) == {}
