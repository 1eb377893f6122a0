"""A server in its own process, as `softprompt-zoo serve` starts it, and its clients."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
START_SECONDS = 240
KEY = "a key"


class Client:
    """A client that sends requests to a local port.

    Args:
        port: The port.
        user: The user who sends.
    """

    def __init__(self, port, user="alice"):
        self.port = port
        self.headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "x-user": user}

    def send(self, method, path, body=None, headers=None):
        """Send a request; return the answer's status, headers in lower case, and text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, self.headers if headers is None else headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()

    def post(self, path, **body):
        """Return status and JSON of an answer."""
        status, _, text = self.send("POST", path, body)
        return status, json.loads(text)

    def get(self, path):
        """Return status and JSON of an answer."""
        status, _, text = self.send("GET", path)
        return status, json.loads(text)


def complete(client, name, ids):
    """Ask for a greedy completion, and return status and tokens, or what the server says instead."""
    body = {"temperature": 0, "max_tokens": 16, "min_tokens": 16, "ignore_eos": True, "return_token_ids": True}
    chosen = {} if name is None else {"kv_transfer_params": {"soft_prompt": name}}
    status, answer = client.post("/v1/completions", model="tiny", prompt=ids, **body, **chosen)
    return status, answer["choices"][0]["token_ids"] if status == 200 else answer


@contextlib.contextmanager
def serving(place, folder, *options, front=True):
    """Run a server until the end of the block, and yield its port."""
    process, port = start(place, folder, *options, front=front)
    try:
        yield port
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        kill(process)


def start(place, folder, *options, front=True):
    """Start a server in its own session; return its process and port once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["--port", str(port), "--api-key", KEY, "--dtype", "float32", "--enforce-eager", "--block-size", "32"]
    command = [sys.executable, "-m", "softprompt_zoo", "serve", place.checkpoint, "--bank", place.bank, "--"]
    command += ["--served-model-name", "tiny", "--max-model-len", "256", *common, *options]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=_environment(folder, front), stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait(process, port, log)
    except BaseException:
        kill(process)
        raise
    return process, port


def kill(process):
    """Kill a server and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder, front):
    """Return an environment that contains this package as pip would install it."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text("utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    if not front:
        groups = [(group, entries) for group, entries in groups if group != "vllm.endpoint_plugins"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in entries.items()) for group, entries in groups
    ]
    (info / "entry_points.txt").write_text("".join(lines))
    paths = [str(folder), str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _wait(process, port, log):
    """Wait until the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-5000:]
        with contextlib.suppress(OSError):
            if Client(port).send("GET", "/health")[0] == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(log.read_text()[-5000:])
