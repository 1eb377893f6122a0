"""Who may name which prompt: a deployment's own function, asked for every request."""

import importlib
import inspect
from collections.abc import Awaitable, Mapping
from typing import Protocol


class Authorizer(Protocol):
    """What `authorize` of the configuration names."""

    def __call__(self, name: str, headers: Mapping[str, str]) -> bool | Awaitable[bool]:
        """Say whether a request may have a prompt.

        Args:
            name: What the request names; a prompt of this name need not be there.
            headers: The request's HTTP headers, names in lower case.

        Returns:
            Whether it may. What it raises is a refusal too, and stands in the log.
        """


def load_authorizer(path: str) -> Authorizer:
    """Import a deployment's function.

    Args:
        path: `module:function`.

    Returns:
        The function.

    Raises:
        ValueError: If there is none.
    """
    module, _, attribute = path.partition(":")
    try:
        function: Authorizer = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"authorize is {path!r}; expected module:function, but {error}") from error
    if not callable(function):
        raise ValueError(f"authorize is {path!r}, which is {function!r}; expected a function")
    return function


async def is_allowed(authorize: Authorizer, name: str, headers: Mapping[str, str]) -> bool:
    """Ask, and wait for the answer.

    Args:
        authorize: Whom to ask.
        name: The prompt.
        headers: The request's.

    Returns:
        Whether the answer is `True`; anything else, a number or text too, is a no.
    """
    answer = authorize(name, headers)
    if inspect.isawaitable(answer):
        answer = await answer
    return answer is True
