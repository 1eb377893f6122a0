"""The option `source_task`: the tasks of another prompt from which a new one starts."""

from typing import Any

from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.methods.parts.initialization import INITS
from softprompt_zoo.shapes import Float

SOURCE_TASKS = ("average", "shared", "each")


def check_source_task(source: Any, init: Any) -> None:
    """Refuse a `source_task` that is not a valid choice, or that needs a prompt if `init` is not one."""
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
            f"source_task is {source!r}, which chooses a part of another prompt, but init is {init!r}; give a "
            "prompt or a saved folder as init, or leave source_task out"
        )


def check_has_task(source: int, tasks: int) -> None:
    """Refuse the number of a task that the other prompt does not have."""
    if source >= tasks:
        raise ValueError(f"source_task is {source}, but the init prompt has {tasks} tasks, counted from 0")


def of_source(factors: Float[Tensor, "tasks ..."], source: str | int) -> Float[Tensor, "..."]:
    """Select the factors of one of the source's tasks, of all, or their mean."""
    if isinstance(source, int):
        check_has_task(source, factors.shape[0])
        return factors[source]
    return factors.mean(dim=0) if source == "average" else factors


def embeddings_of_source(
    embeddings: Float[Tensor, "... tokens hidden"], num_tasks: int | None, source: str | int
) -> Float[Tensor, "tokens hidden"]:
    """Return the plain tokens to start from; if there are tasks, those of one.

    Args:
        embeddings: Those of the other prompt, for each task if it has tasks.
        num_tasks: The number of its tasks; `None` if it has none.
        source: The option `source_task`.

    Returns:
        The embeddings of one task.

    Raises:
        ValueError: If it names a task that does not exist.
        UnsupportedError: If it asks for factors, which plain tokens do not have.
    """
    if num_tasks is None:
        if source == "each" or not isinstance(source, str):
            raise ValueError(f"source_task is {source!r}, but the init prompt has no tasks; leave source_task out")
        return embeddings
    if isinstance(source, str):
        raise UnsupportedError(
            f"source_task is {source!r}, but the init prompt is merged and no longer has factors; give one that is "
            "not merged, or the number of one task"
        )
    check_has_task(source, num_tasks)
    return embeddings[source]


def _is_choice(source: str | int) -> bool:
    return source >= 0 if isinstance(source, int) else source in SOURCE_TASKS
