"""Where tensors are in memory: which share it, and which are a part of a model."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from softprompt_zoo.shapes import Shaped


def find_part(modules: Iterable[nn.Module], tensors: Mapping[str, Tensor]) -> str | None:
    """Find a tensor that is a part of some modules.

    Args:
        modules: The modules.
        tensors: Tensors by name.

    Returns:
        Its name; `None` if there is none.
    """
    own = {_storage(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())} - {0}
    return next((name for name, tensor in tensors.items() if _storage(tensor) in own), None)


def address(tensor: Shaped[Tensor, "..."]) -> int:
    """Return the address of a tensor's first number; 0 if it has none or, as on the meta device, no memory."""
    return tensor.data_ptr() if tensor.layout is torch.strided and tensor.numel() else 0


def _storage(tensor: Shaped[Tensor, "..."]) -> int:
    return tensor.untyped_storage().data_ptr() if address(tensor) else 0


def num_bytes(tensor: Shaped[Tensor, "..."]) -> int:
    """Return the number of bytes from a tensor's first number to its last, including gaps."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
