"""The parameter groups that a prompt's method defines for an optimizer."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from softprompt_zoo.errors import PluginError
from softprompt_zoo.prompt.prompt import Prompt


def own_groups(prompt: Prompt, learning_rate: float) -> list[dict[str, Any]]:
    """Return the parameter groups of a prompt's method.

    Args:
        prompt: The prompt.
        learning_rate: The rate that the user chose.

    Returns:
        Groups whose `"params"` are lists; empty if the method defines none.

    Raises:
        PluginError: If the hook breaks its contract.
    """
    found = None if prompt.is_merged else prompt.call("parameter_groups", learning_rate=learning_rate)
    return [] if found is None else [_listed(group, prompt) for group in found]


def _listed(group: Any, prompt: Prompt) -> dict[str, Any]:
    """Return a group with its parameters as a list.

    torch also accepts a single tensor, and iterators, which can only be read once.
    """
    params = group.get("params") if isinstance(group, Mapping) else None
    if not isinstance(params, Iterable):
        raise PluginError(
            f"{prompt.loaded.describe('parameter_groups')} returned a group that is {type(group).__name__}; "
            "expected a list of dictionaries with the parameters of each as 'params'"
        )
    return {**group, "params": [params] if isinstance(params, Tensor) else list(params)}
