"""The KV connector that vLLM calls, one in the scheduler's process and one in each worker.

A request consists of placeholders and its text. The scheduler's side reports that the placeholders are computed
elsewhere, and the workers' side writes the prompt's keys and values into their blocks before the text is computed.
"""

import dataclasses
from typing import Any

from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)

import softprompt_zoo as zoo
from softprompt_zoo_vllm.catalog import Catalog
from softprompt_zoo_vllm.checkpoint import check_checkpoint
from softprompt_zoo_vllm.layers import find_layers
from softprompt_zoo_vllm.loading import Loader
from softprompt_zoo_vllm.scheduling import Planner
from softprompt_zoo_vllm.settings import Settings, check_deployment
from softprompt_zoo_vllm.steps import Step


@dataclasses.dataclass
class Metadata(KVConnectorMetadata):
    """What vLLM passes from the scheduler to the workers."""

    step: Step


class SoftPromptConnector(KVConnectorBase_V1, SupportsHMA):
    """Soft prompts from a bank in the paged cache.

    Args:
        vllm_config: vLLM's configuration; see `Settings` for `kv_connector_extra_config`.
        role: Whether this is the scheduler's side or a worker's.
        kv_cache_config: Groups of the cache, and their blocks.

    Raises:
        ValueError: If soft prompts cannot work in this deployment; says what to do.
        zoo.ZooError: If the bank cannot be opened, or is for another model.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check_deployment(vllm_config)
        settings = Settings.read(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._reader = zoo.PrefixReader(settings.bank, storage_options=settings.storage_options)
        catalog, model = Catalog(self._reader), vllm_config.model_config
        block_sizes = [group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups]
        if role == KVConnectorRole.SCHEDULER:
            check_checkpoint(model, self._reader)
            self._planner = Planner(settings, catalog, block_sizes, model.max_model_len)
        else:
            self._loader = Loader(settings, catalog, block_sizes, model.dtype)

    # The scheduler's side

    def on_new_request(self, request: Any) -> None:
        """Look up a request's prompt."""
        self._planner.add(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens are loaded; see `Planner.matched_tokens`."""
        return self._planner.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Record a request's blocks."""
        self._planner.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Return what the workers do in this step."""
        return Metadata(self._planner.take_step())

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Return which prompt a request used, for its response; its blocks may be freed."""
        return False, self._planner.finish(request)

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Like `request_finished`, for a cache with several groups."""
        return False, self._planner.finish(request)

    # A worker's side

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """Find the layers for which prompts have keys and values."""
        self._loader.place(find_layers(self._vllm_config, self._kv_cache_config, kv_caches, self._reader.identity))

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load the prompts of this step."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Metadata)
        self._loader.run(metadata.step)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Return the loads that are finished."""
        done, failed = self._loader.take_results()
        return KVConnectorTransferResults(finished_recving=done, failed_recving=failed)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: no forward begins before its requests' loads are finished."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Do nothing: nothing is saved."""

    def wait_for_save(self) -> None:
        """Do nothing: nothing is saved."""

    def shutdown(self) -> None:
        """Close the bank."""
        self._reader.close()
