"""The worker's side: writing the keys and values of prompts into the blocks of the paged cache."""

import concurrent.futures
import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo_vllm.catalog import Catalog, PromptRefusedError
from softprompt_zoo_vllm.executors import executor_for
from softprompt_zoo_vllm.settings import Settings
from softprompt_zoo_vllm.steps import Load, Step
from softprompt_zoo_vllm.tables import Table, TableCache

logger = logging.getLogger(f"vllm.{__name__}")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer's place in the cache."""

    index: int
    """Index of the layer in the model."""
    group: int
    """Group of the cache, whose layers share block ids."""
    module: Any
    """vLLM's `Attention`."""
    heads: slice
    """The model's key-value heads that are on this worker."""

    def write(self, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """Write keys and values `(tokens, kv_heads, head_dim)` at slots `(tokens,)`.

        The backend's own writer is used, which handles layout, packing and number format.
        """
        self.module.impl.do_kv_cache_update(self.module, key, value, self.module.kv_cache, slots)


class Loader:
    """Loads the prompts of a step, each into the blocks of the request that named it.

    A load is reported only when it has been written or has failed, possibly in a later step if the bank is slow; until
    then, vLLM leaves the blocks with the request, even if it was aborted.

    Args:
        settings: The deployment's settings.
        catalog: The bank.
        block_sizes: Tokens per block, for each group of the cache.
        dtype: The model's dtype.
    """

    def __init__(self, settings: Settings, catalog: Catalog, block_sizes: Sequence[int], dtype: torch.dtype) -> None:
        self._catalog = catalog
        self._block_sizes = block_sizes
        self._dtype = dtype
        self._tables = TableCache(settings.cache_bytes)
        self._executor = executor_for(settings.is_local)
        self._layers: list[Layer] = []
        self._waiting: list[tuple[Load, concurrent.futures.Future[Table]]] = []
        self._done: set[str] = set()
        self._failed: set[str] = set()

    def place(self, layers: Iterable[Layer]) -> None:
        """Set the layers that keys and values are written to."""
        self._layers = sorted(layers, key=lambda layer: layer.index)

    def run(self, step: Step) -> None:
        """Start a step's loads, and write all that have been read."""
        self._done.update(step.refused)
        self._failed.update(step.refused)
        self._waiting += [(load, self._executor.submit(self._table, load)) for load in step.loads]
        ready = [(load, coming) for load, coming in self._waiting if coming.done()]
        self._waiting = [(load, coming) for load, coming in self._waiting if not coming.done()]
        self._write([(load, table) for load, coming in ready if (table := self._result(load, coming)) is not None])
        self._done.update(load.request_id for load, _ in ready)

    def take_results(self) -> tuple[set[str], set[str]]:
        """Return the requests whose loads have finished since the last call, and those that failed."""
        done, failed = self._done, self._failed
        self._done, self._failed = set(), set()
        return done, failed

    def _result(self, load: Load, coming: concurrent.futures.Future[Table]) -> Table | None:
        """Return the table that was read; a failed load ends its request with an error."""
        try:
            return coming.result()
        except Exception as error:
            reason = str(error) if isinstance(error, PromptRefusedError) else repr(error)
            logger.error("request %s ends with an error: %s", load.request_id, reason)
            self._failed.add(load.request_id)
            return None

    def _table(self, load: Load) -> Table:
        """Return a prompt's keys and values on the device, in the model's dtype."""
        kept = self._tables.get(load.name, load.stamp)
        if kept is not None:
            return kept
        prefix = self._catalog.read(load.name)
        table = Table(tuple(self._own(*prefix.layers[layer.index], layer) for layer in self._layers))
        self._tables.put(load.name, prefix.stamp, table)
        if prefix.stamp != load.stamp:
            raise PromptRefusedError(f"the soft prompt {load.name!r} was just replaced; send the request again")
        return table

    def _own(self, key: Tensor, value: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Return this worker's heads of a layer, tokens first."""
        return self._ready(key[layer.heads], layer), self._ready(value[layer.heads], layer)

    def _ready(self, heads: Tensor, layer: Layer) -> Tensor:
        """Return keys or values `(kv_heads, tokens, head_dim)` in the cache's form, tokens first."""
        ready = heads.transpose(0, 1).to(layer.module.kv_cache.device, self._dtype).contiguous()
        # What was read is finite. Non-finite values would stay in a block for later requests.
        if heads.dtype != self._dtype and not bool(ready.isfinite().all()):
            raise PromptRefusedError(f"the prompt has values that {self._dtype} cannot hold")
        return ready

    @torch.no_grad()
    def _write(self, loads: list[tuple[Load, Table]]) -> None:
        """Write prompts, all at once in each layer."""
        if not loads or not self._layers:
            return
        places = [self._slots([load for load, _ in loads], group) for group in range(len(self._block_sizes))]
        for position, layer in enumerate(self._layers):
            kept, slots = places[layer.group]
            key, value = (
                _together([table.layers[position][half][load.begin : load.end] for load, table in loads])[kept]
                for half in range(2)
            )
            layer.write(key, value, slots)

    def _slots(self, loads: Sequence[Load], group: int) -> tuple[slice | Tensor, Tensor]:
        """Return where a group stores the tokens of loads, one load after the other.

        Returns:
            Which tokens it stores, all of them or a mask `(tokens,)`, because a window may have moved past some; and
            their slots.
        """
        size, slots = self._block_sizes[group], []
        for load in loads:
            tokens = torch.arange(load.begin, load.end)
            blocks = torch.tensor([-1 if block is None else block for block in load.blocks[group]])[tokens // size]
            slots.append(torch.where(blocks < 0, -1, blocks * size + tokens % size))
        device = self._layers[0].module.kv_cache.device
        together = torch.cat(slots)
        kept = together >= 0
        if bool(kept.all()):
            return slice(None), together.to(device)
        return kept.to(device), together[kept].to(device)


def _together(parts: list[Tensor]) -> Tensor:
    """Return tokens `(tokens, kv_heads, head_dim)`, one load after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
