"""Which tasks of another prompt a new one starts from: the option `source_task`."""

from typing import Any

from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.methods.parts.initialization import INITS
from softprompt_zoo.shapes import Float

SOURCE_TASKS = ("average", "shared", "each")


def check_source_task(source: Any, init: Any) -> None:
    """Refuse a `source_task` that is no choice, or says what to take from a prompt where `init` is none."""
    choices = f"expected one of {', '.join(map(repr, SOURCE_TASKS))}, or the number of a task"
    if isinstance(source, bool) or not isinstance(source, str | int):
        raise TypeError(f"source_task is {source!r} ({type(source).__name__}); {choices}")
    if not _is_choice(source):
        raise ValueError(f"source_task is {source!r}; {choices}")
    if source != "average":
        _check_starts_from_prompt(source, init)


def _check_starts_from_prompt(source: str | int, init: Any) -> None:
    if isinstance(init, str) and init in INITS:
        raise ValueError(
            f"source_task is {source!r}, which says what to take from another prompt, but init is {init!r}; give a "
            "prompt or a saved folder as init, or leave source_task out"
        )


def check_has_task(source: int, tasks: int) -> None:
    """Refuse the number of a task that the other prompt does not have."""
    if source >= tasks:
        raise ValueError(f"source_task is {source}; the init prompt has {tasks} tasks, counted from 0")


def of_source(factors: Float[Tensor, "tasks ..."], source: str | int) -> Float[Tensor, "..."]:
    """Choose among the factors of the source's tasks: one's, their mean, or all."""
    if isinstance(source, int):
        check_has_task(source, factors.shape[0])
        return factors[source]
    return factors.mean(dim=0) if source == "average" else factors


def embeddings_of_source(
    embeddings: Float[Tensor, "... tokens hidden"], num_tasks: int | None, source: str | int
) -> Float[Tensor, "tokens hidden"]:
    """Return the plain tokens to start from, of one task if there are tasks.

    Args:
        embeddings: Of the other prompt, those of each task if it has tasks.
        num_tasks: Its tasks; `None` if it has none.
        source: The option `source_task`.

    Returns:
        Those of one task.

    Raises:
        ValueError: If it names a task that is not there.
        UnsupportedError: If it asks for factors, which plain tokens do not have.
    """
    if num_tasks is None:
        if source == "each" or not isinstance(source, str):
            raise ValueError(f"source_task is {source!r}, and the init prompt has no tasks; leave source_task out")
        return embeddings
    if isinstance(source, str):
        raise UnsupportedError(
            f"source_task is {source!r}, and the init prompt is merged: it has no factors any more; give one that is "
            "not merged, or the number of one task"
        )
    check_has_task(source, num_tasks)
    return embeddings[source]


def _is_choice(source: str | int) -> bool:
    return source >= 0 if isinstance(source, int) else source in SOURCE_TASKS
