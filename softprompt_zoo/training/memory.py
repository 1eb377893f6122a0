"""Estimate the memory of a training step, and return how much is free."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

OPTIMIZER_STATES = 2
"""Numbers that AdamW keeps per trained parameter; other optimizers keep as many or fewer."""


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Estimated bytes of a training step, without temporary tensors and without the savings of recomputation."""

    weights: int
    """The model and its prompt."""
    training: int
    """Gradients and optimizer states of the trained parameters."""
    row: int
    """The activations that the forward pass of one row keeps for the backward pass."""

    def of_rows(self, rows: int) -> int:
        """Return the bytes of a step that processes this many rows at once."""
        return self.weights + self.training + rows * self.row

    def rows_in(self, room: int) -> int:
        """Return how many rows fit into this many bytes."""
        return max(0, (room - self.weights - self.training) // max(self.row, 1))


def estimate(model: nn.Module, row: Mapping[str, Tensor]) -> StepMemory:
    """Estimate the memory of a step with a forward pass; on the meta device, nothing is computed.

    Args:
        model: A model with a prompt; its mode is not changed.
        row: A batch of only the longest row, with labels.
    """
    held = {StorageWeakRef(tensor.untyped_storage()): tensor for tensor in (*model.parameters(), *model.buffers())}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return StepMemory(
        weights=sum(tensor.untyped_storage().nbytes() for tensor in held.values()),
        training=(1 + OPTIMIZER_STATES) * sum(parameter.nbytes for parameter in trained),
        row=_kept(model, row, frozenset(held)),
    )


def _kept(model: Any, batch: Mapping[str, Tensor], held: frozenset[StorageWeakRef]) -> int:
    """Count the bytes that a forward pass keeps, each storage once, without the weights."""
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        kept[StorageWeakRef(memory)] = memory.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).loss  # keeps the graph alive, so that no storage is reused while counting
    count = sum(size for memory, size in kept.items() if memory not in held)
    del loss
    return count


def free_memory(device: torch.device) -> int:
    """Return the free bytes: of the GPU's own memory, else of main memory, which other accelerators share."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
