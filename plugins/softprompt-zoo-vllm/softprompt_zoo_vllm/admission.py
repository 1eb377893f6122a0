"""A server's requests that cannot have the prompt they name are refused before they enter the engine.

vLLM has no hook that sees a request with its tokens and its configuration together, so `install` adds one to
`AsyncLLM`, through which every request passes that a server takes. In Python, `vllm.LLM` has none: there a batch is one
call, which one bad request would end; it ends alone, in the engine.
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
"""What an error says is wrong."""
_BEAM = re.compile(r"-beam-\d+$")


@dataclasses.dataclass(frozen=True)
class Admission:
    """That a request came through `Front`, which looks prompts up without keeping others waiting."""

    entry: zoo.PrefixEntry | None = None
    """Its prompt, if it named one."""


admission: contextvars.ContextVar[Admission | None] = contextvars.ContextVar("admission", default=None)
"""Of the HTTP request that is being answered; no client can forge it."""


@functools.cache
def install() -> None:
    """Have vLLM check the requests that servers take; it may be called again."""
    from vllm.v1.engine.async_llm import AsyncLLM

    start = AsyncLLM.__init__

    @functools.wraps(start)
    def start_and_check(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        _check_inputs(self.input_processor, self.vllm_config)

    AsyncLLM.__init__ = start_and_check


def _check_inputs(processor: Any, config: Any) -> None:
    """Have a server's `InputProcessor` check what it makes, for rendered prompts and for those it renders itself."""
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
    """Return whether a request, vLLM's `EngineCoreRequest`, names a prompt, or is one of those that lose its name."""
    extra = made.pooling_params.extra_kwargs if made.sampling_params is None else made.sampling_params.extra_args
    return bool(extra and extra.get("kv_transfer_params")) or _BEAM.search(made.request_id) is not None


def _check(made: Any, config: Any) -> None:
    """Refuse a request that cannot have its prompt."""
    if not _may_concern_us(made):
        return
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.request import Request

    try:
        check(Request.from_engine_core_request(made, None), gate_of(config.kv_transfer_config), config.model_config)
    except PromptRefusedError as error:
        raise VLLMValidationError(str(error), parameter=PARAMETER) from error


def check(request: Any, gate: Gate | None, model_config: Any) -> None:
    """Refuse a request that cannot have its prompt.

    Args:
        request: vLLM's `Request`.
        gate: To the server's bank, if it has one.
        model_config: vLLM's `ModelConfig`.

    Raises:
        PromptRefusedError: Says why.
    """
    came = admission.get()
    name = prompt_of(request)
    if name is None:
        if came is None and gate is not None and _BEAM.search(request.request_id):
            raise PromptRefusedError(
                "use_beam_search drops a request's soft prompt, and this server cannot tell whether there was one; "
                "leave it out, or have the server started with VLLM_PLUGINS=soft_prompt"
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
    """Return why a server without a bank refuses a request that names a prompt."""
    return PromptRefusedError(
        f"the request names the soft prompt {name!r}, but this server has no bank of prompts; ask its operator "
        "to start it with softprompt-zoo serve"
    )


def _entry(name: Any, came: Admission | None, gate: Gate) -> zoo.PrefixEntry:
    """Return what the bank says of a prompt that a request may have."""
    if came is not None and came.entry is not None and came.entry.name == name:
        return came.entry
    if gate.is_guarded:
        raise PromptRefusedError(
            f"whether the request may use the soft prompt {name!r} depends on its HTTP headers, and it came without; "
            "have the server started with VLLM_PLUGINS=soft_prompt, or take authorize out of its configuration"
        )
    return gate.catalog.find(name)


def _stream_problem(request: Any) -> str | None:
    if request.resumable:
        return "a soft prompt cannot be had with text that is sent in pieces; send the text as a whole"
    return None
