"""Bodies of HTTP requests and responses in ASGI's form."""

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
"""Header of a response that used a prompt."""
ERROR_EVENT = b'data: {"error":'
NOTHING = b"data: [DONE]"
ENGINE_FAILED = 500
"""Status of a request that failed in the engine."""
KINDS = {400: "BadRequestError", 403: "ForbiddenError", 503: "ServiceUnavailableError"}
"""Error types, with vLLM's and OpenAI's names."""


async def read_body(receive: Receive) -> bytes:
    """Read a request's whole body; parts that the client does not send are missing."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def receive_again(data: bytes, receive: Receive) -> Receive:
    """Return a `receive` that replays a body already read, and then passes on later messages such as a disconnect."""
    waiting = [{"type": "http.request", "body": data, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def error_body(error: Exception, status: int) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of an error in vLLM's form."""
    return status, {"error": {"message": str(error), "type": KINDS[status], "param": PARAMETER, "code": status}}


async def send_json(send: Send, status: int, content: Any) -> None:
    """Send a complete JSON response."""
    data = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


class Told:
    """Sends a response with a header that names the prompt that was used.

    A stream that begins with an error gets the error's status. vLLM does not say why a request failed in the engine; if
    the prompt is at fault, 400 and the reason replace its 500. If the prompt is valid, it may have been replaced
    between its lookup and its reading, and may since have its earlier content again; such a failure is only sent by
    `send_failure`.

    Args:
        send: ASGI's `send`.
        entry: The prompt as it was looked up.
        look_again: Reads the whole prompt.
    """

    def __init__(
        self, send: Send, entry: zoo.PrefixEntry, look_again: Callable[[str], Awaitable[zoo.PrefixEntry]]
    ) -> None:
        self._send = send
        self._entry = entry
        self._look_again = look_again
        self._held: list[Message] = []
        self.now: zoo.PrefixEntry | None = None
        """The prompt as it is now, if the request failed although it is valid, and nothing was sent."""

    @property
    def was_replaced(self) -> bool:
        """Whether the prompt with which a request failed has been replaced."""
        return self.now is not None and self.now.stamp != self._entry.stamp

    async def __call__(self, message: Message) -> None:
        """Send the next message, or hold it until it is known whether the response is an error."""
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
        """Send an error, with the reason if the prompt is at fault, or hold it if the prompt may have been replaced."""
        if status != ENGINE_FAILED:
            await self.send_failure()
            return
        try:
            self.now = await self._look_again(self._entry.name)
        except PromptRefusedError as error:
            await send_json(self._send, *error_body(error, 400))

    async def send_failure(self) -> None:
        """Send the server's own response for a failed request."""
        start, first, *_ = self._held
        status = _status(start, first)
        if start["status"] != status:
            await send_json(self._send, status, _event(first))
        else:
            await self._release([])

    async def _release(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the held messages, with additional headers."""
        (start, *bodies), self._held = self._held, []
        await self._send({**start, "headers": [*start.get("headers", []), *headers]})
        for body in bodies:
            await self._send(body)


def _status(start: Message, body: Message) -> int:
    """Return a response's status, or that of the error with which a stream begins."""
    status: int = start["status"]
    error = _event(body).get("error") if status < 400 else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and code >= 400 else status


def _event(body: Message) -> dict[str, Any]:
    """Return the first event of a stream that begins with an error or ends at once; `{}` for any other response."""
    data = bytes(body.get("body", b""))
    if data.startswith(NOTHING):  # vLLM 0.31 sends nothing else for a request that failed in the engine
        return {"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}
    if not data.startswith(ERROR_EVENT):
        return {}
    event: dict[str, Any] = json.loads(data.removeprefix(b"data: ").split(b"\n\n")[0])
    return event
