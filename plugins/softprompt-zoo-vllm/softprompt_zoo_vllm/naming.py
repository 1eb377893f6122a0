"""Finding the prompt that an HTTP request's body names, and checking that its route can serve it."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from softprompt_zoo_vllm.catalog import PromptRefusedError
from softprompt_zoo_vllm.settings import KEY

PARAMETERS = "kv_transfer_params"
SERVED = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/cohere/v2/chat",
    "/inference/v1/generate",
)
"""Routes on which vLLM passes on `kv_transfer_params`; all others would lose the prompt."""
COUNTING = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
"""Routes that only process text, for which a prompt in the model's name makes no difference."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A request's body in the form that the server understands, and the prompt that it names."""

    body: Mapping[str, Any]
    name: Any
    """`None` if it names none."""


def read_name(path: str, body: Any, models: Collection[str]) -> Named | None:
    """Find the prompt that a request names, as `MODEL:NAME` or in its parameters.

    Args:
        path: The route.
        body: The request's JSON. Not changed.
        models: Names of the served models.

    Returns:
        The prompt, and the body with the prompt's name only in the parameters; `None` if there is nothing to do.

    Raises:
        PromptRefusedError: If the request would be answered without its prompt, or names two.
    """
    if not isinstance(body, dict):
        return None
    model, suffix = _split(body.get("model"), models)
    names = [name for name in (suffix, *_parameters(body)) if name is not None]
    if not names:
        return None
    if path in COUNTING:
        return Named({**body, "model": model}, None)
    for name in names[1:]:
        if name != names[0]:
            raise PromptRefusedError(f"the request names two soft prompts, {names[0]!r} and {name!r}; name one")
    _check_route(path, body, names[0])
    if suffix is not None:
        body = {**body, "model": model, PARAMETERS: {**(body.get(PARAMETERS) or {}), KEY: suffix}}
    return Named(body, names[0])


def _split(model: Any, models: Collection[str]) -> tuple[Any, str | None]:
    """Split `MODEL:NAME`; a served model may have a colon in its name."""
    if not isinstance(model, str) or model in models:
        return model, None
    bases = [base for base in models if model.startswith(f"{base}:")]
    if not bases:
        return model, None
    base = max(bases, key=len)
    return base, model[len(base) + 1 :]


def _parameters(body: Mapping[str, Any]) -> list[Any]:
    """Return the value at each place that vLLM reads."""
    places = [body, (body.get("sampling_params") or {})]
    places.append(places[1].get("extra_args") or {} if isinstance(places[1], dict) else {})
    found = [place.get(PARAMETERS) for place in places if isinstance(place, dict)]
    return [parameters.get(KEY) for parameters in found if isinstance(parameters, dict)]


def _check_route(path: str, body: Mapping[str, Any], name: Any) -> None:
    """Refuse a request that vLLM would answer without its prompt."""
    if path not in SERVED:
        raise PromptRefusedError(
            f"{path} would answer without the soft prompt {name!r}; leave it out, or use one of {', '.join(SERVED)}"
        )
    if body.get("use_beam_search"):
        raise PromptRefusedError(
            f"use_beam_search would answer without the soft prompt {name!r}; leave one of them out"
        )
