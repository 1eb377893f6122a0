"""Additions to the server's app: the front, and routes that list prompts.

vLLM loads this if `VLLM_PLUGINS` names `soft_prompt`. The front runs inside vLLM's own check of API keys, so requests
without a key learn nothing.
"""

from argparse import Namespace
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from starlette.datastructures import State

from softprompt_zoo_vllm.catalog import PromptRefusedError
from softprompt_zoo_vllm.front import Front, headers_of
from softprompt_zoo_vllm.gate import Gate, PromptForbiddenError, gate_of

LONGEST_PAGE = 10_000


class Endpoints:
    """vLLM's `EndpointPlugin`."""

    name = "soft_prompt"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._gate: Gate | None = None
        self._served: Any = None

    def attach_router(self, app: FastAPI) -> None:
        """Put the front before the app's routes, and add routes that list prompts; none of them writes."""
        app.add_middleware(Front, gate=lambda: self._gate, models=self._models)
        app.add_api_route("/v1/soft_prompts", self.list_prompts, methods=["GET"])
        app.add_api_route("/v1/soft_prompts/{name}", self.show_prompt, methods=["GET"])

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Open the bank; a server whose bank cannot be read does not start."""
        self._served = state.openai_serving_models
        self._gate = gate_of(engine_client.vllm_config.kv_transfer_config)

    async def list_prompts(
        self,
        request: Request,
        prefix: str = "",
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 1000,
    ) -> dict[str, Any]:
        """Return sorted names of prompts that the request may use; for the next page, set `after` to the last one."""
        names = await self._open().names(prefix, after, limit + 1, headers_of(request.scope))
        entries = [{"id": name, "object": "soft_prompt"} for name in names[:limit]]
        return {"object": "list", "data": entries, "has_more": len(names) > limit}

    async def show_prompt(self, request: Request, name: str) -> dict[str, Any]:
        """Return the bank's entry of a prompt."""
        try:
            entry = await self._open().find(name, headers_of(request.scope))
        except PromptForbiddenError as error:
            raise HTTPException(403, str(error)) from error
        except PromptRefusedError as error:
            raise HTTPException(404, str(error)) from error
        return {"id": entry.name, "object": "soft_prompt", "num_tokens": entry.num_tokens, "stamp": entry.stamp}

    def _models(self) -> Collection[str]:
        """Return the names of the models and LoRA adapters that are currently served."""
        return {*(model.name for model in self._served.base_model_paths), *self._served.lora_requests}

    def _open(self) -> Gate:
        if self._gate is None:
            raise HTTPException(404, "this server has no bank of prompts; start it with softprompt-zoo serve")
        return self._gate
