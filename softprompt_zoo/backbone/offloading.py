"""Weights that accelerate keeps elsewhere and loads for each forward: `device_map`, `cpu_offload`."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from softprompt_zoo.backbone.replaced_forward import is_replaced
from softprompt_zoo.errors import UnsupportedError


def is_offloaded(part: nn.Module, hooked: Iterable[nn.Module]) -> bool:
    """Return whether a module's weights are elsewhere and are loaded by the forward of one of the modules `hooked`.

    A model that is entirely on the `meta` device has no such forward.
    """
    return any(parameter.is_meta for parameter in part.parameters()) and any(is_replaced(module) for module in hooked)


def check_embeddings(model: Any) -> None:
    """Refuse a model whose embedding table is offloaded: prompts read it outside the forward that loads it.

    Args:
        model: The model. Not changed.

    Raises:
        UnsupportedError: If it is offloaded.
    """
    embeddings = _embeddings(model)
    if isinstance(embeddings, nn.Module) and is_offloaded(embeddings, model.modules()):
        name = next((name for name, module in model.named_modules() if module is embeddings), "the embeddings")
        raise UnsupportedError(
            f"the embedding table of {type(model).__name__}, {name!r}, is offloaded (its weights are elsewhere until "
            f"accelerate brings them in), and prompts read it; keep it on a device, with a device_map such as "
            f"{{{name!r}: 0, …}}; layers may stay offloaded"
        )


def _embeddings(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # refused later, with the reason
        return None


def check_head(name: str, module: nn.Module) -> None:
    """Refuse to copy a task head whose weights are offloaded.

    Args:
        name: Its name in the model.
        module: The head, or a part of it. Not changed.

    Raises:
        UnsupportedError: If it is offloaded.
    """
    if is_offloaded(module, module.modules()):
        raise UnsupportedError(
            f"the task head {name!r} is offloaded (its weights are elsewhere until accelerate brings them in), so "
            "it cannot be copied for the prompt to train; keep it on a device, with a device_map such as "
            f"{{{name!r}: 0, …}}, or choose train_head=False"
        )
