"""The server's front: it looks up and authorizes the prompts of requests, and names them in the responses."""

import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from softprompt_zoo_vllm.admission import Admission, admission, no_bank
from softprompt_zoo_vllm.answers import Receive, Send, Told, error_body, read_body, receive_again, send_json
from softprompt_zoo_vllm.catalog import PromptRefusedError
from softprompt_zoo_vllm.gate import Gate, PromptForbiddenError
from softprompt_zoo_vllm.naming import Named, read_name

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
TRIES = 20
"""Number of attempts for a request whose prompt is replaced between lookup and reading."""
TRIES_UNCHANGED = 5
"""Number of consecutive attempts if the prompt is valid and unchanged; it may have been different in between."""


class Front:
    """ASGI middleware of a server with a bank.

    `"model": "BASE:alice"` is the model BASE with alice's prompt, for clients that cannot send anything else. A
    response with a prompt, including a stream, has the header `X-Soft-Prompt`.

    Args:
        app: The app that answers.
        gate: Returns the gate to the server's bank, once the server is up.
        models: Returns the names of the served models.
    """

    def __init__(
        self, app: Application, gate: Callable[[], Gate | None], models: Callable[[], Collection[str]]
    ) -> None:
        self._app = app
        self._gate = gate
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "POST" or _is_form(scope):
            await self._app(scope, receive, send)
            return
        data = await read_body(receive)
        try:
            named = self._named(scope, data)
            came = await self._admit(scope, named)
        except PromptRefusedError as error:
            await send_json(send, *error_body(error, 403 if isinstance(error, PromptForbiddenError) else 400))
            return
        if named is not None:
            data = json.dumps(named.body).encode()
        await self._answer(_with_length(scope, len(data)), data, receive, send, came)

    def _named(self, scope: Scope, data: bytes) -> Named | None:
        """Find the prompt that a request names; invalid JSON is left for the server to refuse."""
        try:
            body = json.loads(data)
        except ValueError:
            return None
        return read_name(scope["path"].removeprefix(scope.get("root_path", "")), body, self._models())

    async def _admit(self, scope: Scope, named: Named | None) -> Admission:
        """Look up the prompt that a request names."""
        gate = self._gate()
        if named is None or named.name is None:
            return Admission()
        if gate is None:
            raise no_bank(named.name)
        return Admission(await gate.find(named.name, headers_of(scope)))

    async def _answer(self, scope: Scope, data: bytes, receive: Receive, send: Send, came: Admission) -> None:
        """Answer a request, again if its prompt was replaced before it was read, and name the prompt used."""
        gate, entry = self._gate(), came.entry
        if gate is None or entry is None:
            await self._pass_on(scope, receive_again(data, receive), send, came)
            return
        tries = unchanged = 0
        while tries < TRIES and unchanged < TRIES_UNCHANGED:
            told = Told(send, entry, gate.look_again)
            await self._pass_on(dict(scope), receive_again(data, receive), told, Admission(entry))
            if told.now is None:
                return
            tries, unchanged, entry = tries + 1, 0 if told.was_replaced else unchanged + 1, told.now
        if told.was_replaced:
            problem = f"the soft prompt {entry.name!r} was replaced each time before it could be read; ask again later"
            await send_json(send, *error_body(PromptRefusedError(problem), 503))
        else:
            await told.send_failure()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, came: Admission) -> None:
        """Let the server answer an admitted request."""
        token = admission.set(came)
        try:
            await self._app(scope, receive, send)
        finally:
            admission.reset(token)


def headers_of(scope: Scope) -> dict[str, str]:
    """Return a request's HTTP headers, names in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _is_form(scope: Scope) -> bool:
    """Return whether a request contains a form, such as an audio file, which cannot name a prompt."""
    return headers_of(scope).get("content-type", "").startswith("multipart/")


def _with_length(scope: Scope, length: int) -> Scope:
    """Return a scope whose headers have the body's length."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}
