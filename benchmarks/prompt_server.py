"""A server that `softprompt-zoo serve` starts, and requests to it."""

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

STARTS_WITHIN = 300


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def server(model: str, bank: str | Path, log: Path, *options: str) -> Iterator[str]:
    """Start a server, and stop it at the end of the block.

    Args:
        model: The model's folder.
        bank: The bank of prompts for the model.
        log: File for the server's output.
        *options: Options of the engine.

    Yields:
        The server's address.

    Raises:
        RuntimeError: If the server does not start; the message names the log.
    """
    address = f"http://127.0.0.1:{(port := free_port())}"
    serve = [sys.executable, "-m", "softprompt_zoo", "serve", model, "--bank", str(bank), "--"]
    options = ("--port", str(port), "--served-model-name", "base", "--dtype", "float32", "--enforce-eager", *options)
    with log.open("w") as printed:
        process = subprocess.Popen([*serve, *options], stdout=printed, stderr=printed, start_new_session=True)
        try:
            _wait(process, address, log)
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start; see {log}")


def complete(address: str, name: str | None, ids: list[int], length: int) -> list[int] | str:
    """Ask for a greedy completion.

    Args:
        address: The server's address.
        name: The prompt's name; `None` for no prompt.
        ids: Token ids of the text.
        length: Number of tokens of the answer.

    Returns:
        Token ids of the answer, or the server's message if it refuses the request.
    """
    body = {"model": "base", "prompt": ids, "max_tokens": length, "min_tokens": length, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    if name is not None:
        body["kv_transfer_params"] = {"soft_prompt": name}
    request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            found: list[int] = json.load(answer)["choices"][0]["token_ids"]
            return found
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read().decode()}"


def complete_all(addresses: list[str], requests: Iterable[tuple[str | None, list[int]]], length: int) -> list[Any]:
    """Ask for completions, all at once, from the servers in turn."""
    rows = list(requests)
    with concurrent.futures.ThreadPoolExecutor(len(rows)) as threads:
        asked = [
            threads.submit(complete, addresses[index % len(addresses)], name, ids, length)
            for index, (name, ids) in enumerate(rows)
        ]
        return [one.result() for one in asked]
