"""The prompts of a server, as seen by the process that receives requests."""

import asyncio
import itertools
import logging
from collections.abc import Mapping
from typing import Any

import softprompt_zoo as zoo
from softprompt_zoo_vllm.authorization import is_allowed, load_authorizer
from softprompt_zoo_vllm.catalog import Catalog, PromptRefusedError
from softprompt_zoo_vllm.executors import executor_for
from softprompt_zoo_vllm.register import CONNECTOR
from softprompt_zoo_vllm.settings import Settings

logger = logging.getLogger(f"vllm.{__name__}")
_gates: dict[str, "Gate"] = {}


class PromptForbiddenError(PromptRefusedError):
    """A request may not use the prompt it names."""


class Gate:
    """Finds prompts, and decides who may use them.

    Args:
        settings: The deployment's settings.

    Raises:
        ValueError: If `authorize` does not name a function.
        ZooError: If the bank cannot be opened.
    """

    def __init__(self, settings: Settings) -> None:
        self._authorize = None if settings.authorize is None else load_authorizer(settings.authorize)
        self._reader = zoo.PrefixReader(settings.bank, storage_options=settings.storage_options)
        self._executor = executor_for(settings.is_local)
        self.catalog = Catalog(self._reader, suggests=not self.is_guarded)
        """The bank's prompts."""

    @property
    def is_guarded(self) -> bool:
        """Whether a request's headers decide which prompts it may use."""
        return self._authorize is not None

    async def find(self, name: Any, headers: Mapping[str, str]) -> zoo.PrefixEntry:
        """Look up a prompt for a request.

        Args:
            name: The name in the request.
            headers: Its HTTP headers, names in lower case.

        Returns:
            The bank's entry.

        Raises:
            PromptForbiddenError: If the request may not use it, whether or not it exists.
            PromptRefusedError: If there is no such prompt, or it cannot be served; with the reason.
        """
        if isinstance(name, str) and not await self._is_allowed(name, headers):
            raise PromptForbiddenError(f"this request may not use the soft prompt {name!r}")
        return await asyncio.wrap_future(self._executor.submit(self.catalog.find, name))

    async def look_again(self, name: str) -> zoo.PrefixEntry:
        """Read a prompt with which a request has failed, and return its current entry.

        Args:
            name: Its name.

        Returns:
            The bank's entry.

        Raises:
            PromptRefusedError: If it no longer exists, is damaged or has non-finite values.
        """
        return (await asyncio.to_thread(self.catalog.read, name)).entry

    async def names(self, prefix: str, after: str, limit: int, headers: Mapping[str, str]) -> list[str]:
        """List prompts that a request may use.

        Args:
            prefix: Only names that begin with it.
            after: Only names that sort after it.
            limit: Maximum number of names.
            headers: The request's HTTP headers, names in lower case.

        Returns:
            The names, sorted.
        """
        found: list[str] = []
        while len(found) < limit:
            page = await asyncio.to_thread(self._page, prefix, after, limit)
            found += [name for name in page if await self._is_allowed(name, headers)]
            if len(page) < limit:
                break
            after = page[-1]
        return found[:limit]

    def _page(self, prefix: str, after: str, limit: int) -> list[str]:
        behind = itertools.dropwhile(lambda name: name <= after, self._reader.names(prefix))
        return list(itertools.islice(behind, limit))

    async def _is_allowed(self, name: str, headers: Mapping[str, str]) -> bool:
        if self._authorize is None:
            return True
        try:
            return await is_allowed(self._authorize, name, headers)
        except Exception:
            logger.exception("authorize failed for the soft prompt %r, which is refused", name)
            return False


def gate_of(transfer: Any) -> Gate | None:
    """Return the gate to a deployment's bank, the same one for the whole process.

    Args:
        transfer: vLLM's `KVTransferConfig`, or `None`.

    Returns:
        The gate; `None` if the deployment has no bank.

    Raises:
        ValueError: If the configuration is wrong.
        ZooError: If the bank cannot be opened.
    """
    extra = None if transfer is None else _extra(transfer.kv_connector, transfer.kv_connector_extra_config)
    if extra is None:
        return None
    key = repr(extra)
    if key not in _gates:
        _gates[key] = Gate(Settings.read(extra))
    return _gates[key]


def _extra(connector: str | None, extra: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find our part of the configuration, also if there are several connectors."""
    if connector == CONNECTOR:
        return extra
    parts = [
        _extra(part.get("kv_connector"), part.get("kv_connector_extra_config", {}))
        for part in extra.get("connectors", [])
    ]
    return next((part for part in parts if part is not None), None)
