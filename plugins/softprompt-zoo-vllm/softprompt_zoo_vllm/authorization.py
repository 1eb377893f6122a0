"""Who may use which prompt: a function of the deployment, called for every request."""

import importlib
import inspect
from collections.abc import Awaitable, Mapping
from typing import Protocol


class Authorizer(Protocol):
    """The function that `authorize` in the configuration names."""

    def __call__(self, name: str, headers: Mapping[str, str]) -> bool | Awaitable[bool]:
        """Return whether a request may use a prompt.

        Args:
            name: The name in the request; a prompt of this name need not exist.
            headers: The request's HTTP headers, names in lower case.

        Returns:
            Whether it may. An exception is a refusal, too, and is logged.
        """


def load_authorizer(path: str) -> Authorizer:
    """Import the deployment's function.

    Args:
        path: `module:function`.

    Returns:
        The function.

    Raises:
        ValueError: If there is no such function.
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
    """Call the deployment's function, and await its result if necessary.

    Args:
        authorize: The function.
        name: The prompt's name.
        headers: The request's HTTP headers.

    Returns:
        Whether the result is `True`; anything else, including numbers and texts, is a refusal.
    """
    answer = authorize(name, headers)
    if inspect.isawaitable(answer):
        answer = await answer
    return answer is True
