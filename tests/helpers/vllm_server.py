"""vLLM in this process or as a server, started as a user would start it, for the duration of a block."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

START_SECONDS = 400
ANSWER_SECONDS = 120
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}


@contextlib.contextmanager
def offline(folder, **options):
    """Start vLLM's in-process engine on a checkpoint; it ends with the block."""
    import vllm

    engine = vllm.LLM(str(folder), **OPTIONS, **options)
    try:
        yield engine
    finally:
        engine.llm_engine.engine_core.shutdown()


@contextlib.contextmanager
def serving(folder, log, *options):
    """Run a server on a checkpoint, and kill it and everything it started at the end of the block.

    Args:
        folder: The checkpoint; clients call it `served`.
        log: The file for its output.
        options: More command-line options.

    Yields:
        A client of the server.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--port", str(port)]
    command += ["--served-model-name", "served", "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    with log.open("w") as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=file, start_new_session=True)
    try:
        client = Client(port)
        client.wait(process, log)
        yield client
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Client:
    """A client that sends requests to a local port.

    Args:
        port: The port.
    """

    def __init__(self, port):
        self.port = port

    def send(self, method, path, body=None):
        """Send a request; return the status and text of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def ask(self, path, body, new_tokens):
        """Request a greedy answer; return its status and JSON."""
        sampling = {"temperature": 0, "max_tokens": new_tokens, "return_token_ids": True}
        status, text = self.send("POST", path, {"model": "served", **sampling, **body})
        return status, json.loads(text)

    def ask_all(self, path, bodies, new_tokens):
        """Send requests together; return the token ids of each answer."""
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda body: self.ask(path, body, new_tokens), bodies))
        assert [status for status, _ in answers] == [200] * len(answers), answers
        return [answer["choices"][0]["token_ids"] for _, answer in answers]

    def wait(self, process, log):
        """Wait until the server answers."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert process.poll() is None, log.read_text()[-5000:]
            with contextlib.suppress(OSError):
                if self.send("GET", "/health")[0] == 200:
                    return
            time.sleep(0.5)
        raise TimeoutError(log.read_text()[-5000:])
