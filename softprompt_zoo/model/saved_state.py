"""Whether a method's parameters can be saved: checked when a prompt is created, as after training it is too late."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.memory import address, num_bytes
from softprompt_zoo.errors import PluginError
from softprompt_zoo.shapes import Shaped

if TYPE_CHECKING:
    from softprompt_zoo.backbone.backbone import Backbone


def check_can_be_saved(learned: nn.Module, backbone: "Backbone", source: str) -> None:
    """Refuse parameters that no file can hold.

    Args:
        learned: A method's `Parameters`.
        backbone: What is known about the model.
        source: Where they come from, for the message.

    Raises:
        PluginError: If their state has more than dense tensors, or one of them is part of another or of the model.
    """
    state = learned.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            kind = getattr(tensor, "layout", type(tensor).__name__)
            raise PluginError(f"{source} keeps {name!r}, of {kind}, in its state_dict; expected only dense tensors")
    held = backbone.inside.find_part(state)
    if held is not None:
        raise PluginError(
            f"{source} holds {held!r}, which is part of the model and would be saved with every prompt; keep a copy "
            "of what is trained, and take the rest from the backbone"
        )
    _check_apart(state, source)


def _check_apart(state: Mapping[str, Shaped[Tensor, "..."]], source: str) -> None:
    """Refuse tensors that share memory: a file would store their numbers twice."""
    spans = sorted((address(t), address(t) + num_bytes(t), name) for name, t in state.items() if address(t))
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            raise PluginError(
                f"{source} has {first!r} and {second!r} in the same memory, but a file stores every number once; keep "
                "such a tensor under one name"
            )
