"""vLLM's requests: checking whether they can have a prompt, and making room for it in front of their text."""

import hashlib
import json
from typing import Any

import softprompt_zoo as zoo
from softprompt_zoo_vllm.catalog import PromptRefusedError
from softprompt_zoo_vllm.settings import KEY, Settings


def prompt_of(request: Any) -> Any:
    """Return the prompt that a request names; `None` if it names none.

    Raises:
        PromptRefusedError: If its `kv_transfer_params` are not a dictionary.
    """
    given = request.kv_transfer_params or {}
    if not isinstance(given, dict):
        raise PromptRefusedError(f'kv_transfer_params is {given!r}; expected {{"{KEY}": NAME}}')
    return given.get(KEY)


def problem_of(request: Any) -> str | None:
    """Return why a request cannot have any prompt; `None` if it can."""
    if request.pooling_params is not None:
        return "a soft prompt cannot be combined with a pooling request, which vLLM runs without it; leave one out"
    if request.skip_reading_prefix_cache or request.sampling_params.prompt_logprobs is not None:
        return (
            "a soft prompt cannot be combined with prompt_logprobs (or echo with logprobs, or "
            "skip_reading_prefix_cache), which vLLM computes without it; leave one out"
        )
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return "a soft prompt cannot be combined with prompt_embeds; leave one out"
    if request.mm_features:
        return "a soft prompt cannot be combined with images, audio or video; leave one out"
    return None


def length_problem(request: Any, entry: zoo.PrefixEntry, max_model_len: int) -> str | None:
    """Return why a prompt does not fit in front of a request's text; `None` if it does."""
    text = request.num_prompt_tokens
    if entry.num_tokens + text < max_model_len:
        return None
    return (
        f"the soft prompt {entry.name!r} of {entry.num_tokens} tokens and a text of {text} leave no room for an answer "
        f"within the {max_model_len} tokens of the context; shorten the text"
    )


def make_room(request: Any, entry: zoo.PrefixEntry, settings: Settings) -> None:
    """Put placeholders in front of a request that has not been processed yet, and isolate its cached blocks.

    The salt includes the prompt's name and content, so that blocks are shared neither with other prompts nor with the
    same prompt before it was replaced; and a secret, so that no request without the prompt can use that salt.

    Args:
        request: vLLM's `Request`. Changed.
        entry: The prompt.
        settings: The deployment's settings.
    """
    ids = [settings.placeholder] * entry.num_tokens
    request.prompt_token_ids = ids + list(request.prompt_token_ids)
    request._all_token_ids[:0] = ids  # its view `all_token_ids` stays valid
    request.num_prompt_tokens += entry.num_tokens
    salted = json.dumps([settings.secret, request.cache_salt, entry.name, entry.stamp])
    request.cache_salt = hashlib.sha256(salted.encode()).hexdigest()
    request.block_hashes.clear()  # in place: others may refer to the list
    request.update_block_hashes()


def take_room_back(request: Any, entry: zoo.PrefixEntry, salt: str | None) -> None:
    """Undo `make_room` for a request of which nothing has been computed.

    Args:
        request: vLLM's `Request`. Changed.
        entry: The prompt that it has room for.
        salt: The request's original salt.
    """
    request.prompt_token_ids = request.prompt_token_ids[entry.num_tokens :]
    del request._all_token_ids[: entry.num_tokens]
    request.num_prompt_tokens -= entry.num_tokens
    request.cache_salt = salt
