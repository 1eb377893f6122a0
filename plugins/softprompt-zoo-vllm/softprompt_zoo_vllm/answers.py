"""Bodies of HTTP requests and answers, as ASGI hands them over."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from softprompt_zoo_vllm.admission import PARAMETER

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
HEADER = b"x-soft-prompt"
"""Header of an answer that had a prompt."""
KINDS = {400: "BadRequestError", 403: "ForbiddenError", 404: "NotFoundError"}
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

    vLLM does not say why a request failed in the engine. Where the prompt is what is wrong, 400 and the reason take the
    place of its 500, and of a stream that begins with the error.

    Args:
        send: Sends.
        name: The prompt.
        damage: Says what is wrong with it, if anything is.
    """

    def __init__(self, send: Send, name: str, damage: Callable[[str], Awaitable[str | None]]) -> None:
        self._send = send
        self._name = name
        self._damage = damage
        self._held: list[Message] = []

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
        if not _is_failure(start, bodies[0]):
            await self._release([(HEADER, self._name.encode())] if start["status"] < 400 else [])
        elif not bodies[-1].get("more_body", False):
            reason = await self._damage(self._name)
            if reason is None:
                await self._release([])
            else:
                self._held = []
                await send_json(self._send, *error_body(ValueError(reason), 400))

    async def _release(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Send what was held, with more headers."""
        (start, *bodies), self._held = self._held, []
        await self._send({**start, "headers": [*start.get("headers", []), *headers]})
        for body in bodies:
            await self._send(body)


def _is_failure(start: Message, body: Message) -> bool:
    """Return whether an answer, or the first event of a stream, is an error of the server's."""
    return start["status"] >= 500 or bytes(body.get("body", b"")).startswith(b'data: {"error"')
