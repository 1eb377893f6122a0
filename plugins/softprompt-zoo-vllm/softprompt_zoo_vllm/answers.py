"""Bodies of HTTP requests and answers, as ASGI hands them over."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import softprompt_zoo as zoo
from softprompt_zoo_vllm.admission import PARAMETER
from softprompt_zoo_vllm.catalog import PromptRefusedError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
HEADER = b"x-soft-prompt"
"""Header of an answer that had a prompt."""
ERROR_EVENT = b'data: {"error":'
NOTHING = b"data: [DONE]"
ENGINE_FAILED = 500
"""Status of a request that failed in the engine."""
KINDS = {400: "BadRequestError", 403: "ForbiddenError", 503: "ServiceUnavailableError"}
"""Types of errors, as vLLM and OpenAI name them."""


async def read_body(receive: Receive) -> bytes:
    """Read a request's whole body; what a client leaves unsent is missing."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def receive_again(data: bytes, receive: Receive) -> Receive:
    """Return what hands over a body that was read, and then what comes behind it: that the client has gone."""
    waiting = [{"type": "http.request", "body": data, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def error_body(error: Exception, status: int) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of an error, as vLLM's own look."""
    return status, {"error": {"message": str(error), "type": KINDS[status], "param": PARAMETER, "code": status}}


async def send_json(send: Send, status: int, content: Any) -> None:
    """Send a whole answer."""
    data = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


class Told:
    """Sends an answer with a header that says which prompt it had.

    A stream that begins with an error gets its status. vLLM does not say why a request failed in the engine; where the
    prompt is what is wrong, 400 and the reason take the place of its 500. Where it is sound, it may have been replaced
    between its look-up and its reading, and be by now what it was before; nothing is sent of such a failure unless it
    is told to.

    Args:
        send: Sends.
        entry: The prompt, as it was looked up.
        look_again: Reads the prompt whole.
    """

    def __init__(
        self, send: Send, entry: zoo.PrefixEntry, look_again: Callable[[str], Awaitable[zoo.PrefixEntry]]
    ) -> None:
        self._send = send
        self._entry = entry
        self._look_again = look_again
        self._held: list[Message] = []
        self.now: zoo.PrefixEntry | None = None
        """The prompt as it is now, if the request failed although it is sound, and nothing was sent."""

    @property
    def was_replaced(self) -> bool:
        """Whether another prompt has taken the place of the one that a request failed with."""
        return self.now is not None and self.now.stamp != self._entry.stamp

    async def __call__(self, message: Message) -> None:
        """Send the next message, or hold it until it is known whether the answer is an error."""
        if message["type"] == "http.response.start":
            self._held = [message]
        elif not self._held:
            await self._send(message)
        else:
            self._held.append(message)
            await self._decide()

    async def _decide(self) -> None:
        start, *bodies = self._held
        status = _status(start, bodies[0])
        if status < 400:
            await self._release([(HEADER, self._entry.name.encode())])
        elif not bodies[-1].get("more_body", False):
            await self._fail(status)

    async def _fail(self, status: int) -> None:
        """Send an error, with the reason if the prompt is to blame, or hold it if the prompt may have been replaced."""
        if status != ENGINE_FAILED:
            await self.send_failure()
            return
        try:
            self.now = await self._look_again(self._entry.name)
        except PromptRefusedError as error:
            await send_json(self._send, *error_body(error, 400))

    async def send_failure(self) -> None:
        """Send the server's own words of a request that failed."""
        start, first, *_ = self._held
        status = _status(start, first)
        if start["status"] != status:
            await send_json(self._send, status, _event(first))
        else:
            await self._release([])

    async def _release(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Send what was held, with more headers."""
        (start, *bodies), self._held = self._held, []
        await self._send({**start, "headers": [*start.get("headers", []), *headers]})
        for body in bodies:
            await self._send(body)


def _status(start: Message, body: Message) -> int:
    """Return an answer's status, that of the error with which a stream begins included."""
    status: int = start["status"]
    error = _event(body).get("error") if status < 400 else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and code >= 400 else status


def _event(body: Message) -> dict[str, Any]:
    """Return the first event of a stream that begins with an error, or is over at once; nothing of any other answer."""
    data = bytes(body.get("body", b""))
    if data.startswith(NOTHING):  # vLLM 0.31 says no more of a request that failed in the engine
        return {"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}
    if not data.startswith(ERROR_EVENT):
        return {}
    event: dict[str, Any] = json.loads(data.removeprefix(b"data: ").split(b"\n\n")[0])
    return event
