"""Refusing a server's requests whose prompt cannot be used, before they enter the engine.

vLLM has no hook that sees a request with its tokens and its configuration together, so `install` adds one to
`AsyncLLM`, through which all of a server's requests pass. `vllm.LLM` in Python has no such check: there, a batch is a
single call, which one bad request would abort; instead, the request fails alone, in the engine.
"""

import contextvars
import dataclasses
import functools
import re
from typing import Any

import softprompt_zoo as zoo
from softprompt_zoo_vllm.catalog import PromptRefusedError
from softprompt_zoo_vllm.gate import Gate, gate_of
from softprompt_zoo_vllm.requests import length_problem, problem_of, prompt_of
from softprompt_zoo_vllm.settings import KEY

PARAMETER = f"kv_transfer_params.{KEY}"
"""The parameter that errors name as wrong."""
_BEAM = re.compile(r"-beam-\d+$")


@dataclasses.dataclass(frozen=True)
class Admission:
    """Marks a request that came through `Front`, which looks up prompts without delaying other requests."""

    entry: zoo.PrefixEntry | None = None
    """Its prompt, if it named one."""


admission: contextvars.ContextVar[Admission | None] = contextvars.ContextVar("admission", default=None)
"""Belongs to the current HTTP request; no client can forge it."""


@functools.cache
def install() -> None:
    """Make vLLM check the requests of servers; may be called repeatedly."""
    from vllm.v1.engine.async_llm import AsyncLLM

    start = AsyncLLM.__init__

    @functools.wraps(start)
    def start_and_check(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        _check_inputs(self.input_processor, self.vllm_config)

    AsyncLLM.__init__ = start_and_check


def _check_inputs(processor: Any, config: Any) -> None:
    """Make a server's `InputProcessor` check its results, for rendered prompts and for those it renders itself."""
    process, process_later = processor.process_inputs, processor.process_inputs_async

    def process_and_check(*args: Any, **options: Any) -> Any:
        made = process(*args, **options)
        _check(made, config)
        return made

    async def process_later_and_check(*args: Any, **options: Any) -> Any:
        made = await process_later(*args, **options)
        _check(made, config)
        return made

    processor.process_inputs, processor.process_inputs_async = process_and_check, process_later_and_check


def _may_concern_us(made: Any) -> bool:
    """Return whether a request, vLLM's `EngineCoreRequest`, names a prompt, or may have lost the name."""
    extra = made.pooling_params.extra_kwargs if made.sampling_params is None else made.sampling_params.extra_args
    return bool(extra and extra.get("kv_transfer_params")) or _BEAM.search(made.request_id) is not None


def _check(made: Any, config: Any) -> None:
    """Refuse a request whose prompt cannot be used."""
    if not _may_concern_us(made):
        return
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.request import Request

    try:
        check(Request.from_engine_core_request(made, None), gate_of(config.kv_transfer_config), config.model_config)
    except PromptRefusedError as error:
        raise VLLMValidationError(str(error), parameter=PARAMETER) from error


def check(request: Any, gate: Gate | None, model_config: Any) -> None:
    """Refuse a request whose prompt cannot be used.

    Args:
        request: vLLM's `Request`.
        gate: The gate to the server's bank, if it has one.
        model_config: vLLM's `ModelConfig`.

    Raises:
        PromptRefusedError: With the reason.
    """
    came = admission.get()
    name = prompt_of(request)
    if name is None:
        if came is None and gate is not None and _BEAM.search(request.request_id):
            raise PromptRefusedError(
                "use_beam_search drops a request's soft prompt, and this server cannot tell whether there was one; "
                "leave it out, or ask the operator to start the server with VLLM_PLUGINS=soft_prompt"
            )
        return
    if gate is None:
        raise no_bank(name)
    entry = _entry(name, came, gate)
    problem = (
        _stream_problem(request) or problem_of(request) or length_problem(request, entry, model_config.max_model_len)
    )
    if problem is not None:
        raise PromptRefusedError(problem)


def no_bank(name: Any) -> PromptRefusedError:
    """Return the error for a request that names a prompt on a server without a bank."""
    return PromptRefusedError(
        f"the request names the soft prompt {name!r}, but this server has no bank of prompts; ask its operator "
        "to start it with softprompt-zoo serve"
    )


def _entry(name: Any, came: Admission | None, gate: Gate) -> zoo.PrefixEntry:
    """Return the bank's entry of a prompt that a request may use."""
    if came is not None and came.entry is not None and came.entry.name == name:
        return came.entry
    if gate.is_guarded:
        raise PromptRefusedError(
            f"whether the request may use the soft prompt {name!r} depends on its HTTP headers, but it came without; "
            "ask the operator to start the server with VLLM_PLUGINS=soft_prompt, or to remove authorize from its "
            "configuration"
        )
    return gate.catalog.find(name)


def _stream_problem(request: Any) -> str | None:
    if request.resumable:
        return "a soft prompt cannot be combined with text that is sent in pieces; send the text as a whole"
    return None
