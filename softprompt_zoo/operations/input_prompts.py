"""The embeddings of input-level prompts, for the exports that can hold only these."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.damage import check_numbers
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.operations.given import check_idle_task
from softprompt_zoo.prompt.plain import one_task
from softprompt_zoo.prompt.token_checks import check_range
from softprompt_zoo.shapes import Float


def input_tokens(
    prompts: Prompts, names: Sequence[str] | None, task: int | None, to: str
) -> dict[str, Float[Tensor, "_ hidden"]]:
    """Return the plain tokens of prompts at the input embeddings.

    Args:
        prompts: The model's prompts.
        names: The prompts to use; by default the active ones.
        task: The task to use, for prompts with several.
        to: The export format, for messages.

    Returns:
        Embeddings `(tokens, hidden)` by name.

    Raises:
        ValueError: If a prompt does not have that task, or none has tasks.
        UnsupportedError: If none is active, or one has keys and values, or a weight.
    """
    wanted = prompts.active if names is None else tuple(names)
    if not wanted:
        known = ", ".join(map(repr, prompts)) or "none"
        raise UnsupportedError(f"no prompt is active; name one of {known} with name=…")
    found = {name: _embeddings_of(prompts, name, task, to) for name in wanted}
    check_idle_task(task, map(prompts.__getitem__, wanted))
    return found


def _embeddings_of(prompts: Prompts, name: str, task: int | None, to: str) -> Float[Tensor, "tokens hidden"]:
    prompts[name].refuse_weight(f"prompt {name!r}", f"to={to!r}")
    tokens = prompts[name].merged_tokens(prompts.backbone)
    if tokens.num_tasks is not None:
        if task is None:
            raise UnsupportedError(
                f"prompt {name!r} has {tokens.num_tasks} tasks, but to={to!r} holds one; choose it with task=…"
            )
        tokens = one_task(tokens, task, name)
    if tokens.at_input is None:
        raise UnsupportedError(
            f"prompt {name!r} has keys and values, which are not embeddings of tokens; to={to!r} holds prompts at "
            'the input embeddings only; export it with to="peft", or train a method at the input embeddings'
        )
    return tokens.at_input


def check_input_numbers(tokens: Mapping[str, Float[Tensor, "_ hidden"]], dtype: torch.dtype) -> None:
    """Refuse numbers with which some engines would answer other requests, too, with NaN.

    Args:
        tokens: What `input_tokens` returned.
        dtype: The dtype that they are written in.

    Raises:
        UnsupportedError: If a number is NaN or infinite, or becomes so in that dtype.
    """
    for name, own in tokens.items():
        tensors = {"embeddings": own}
        check_numbers(tensors, f"prompt {name!r}")
        check_range(tensors, dtype, f"prompt {name!r}")
