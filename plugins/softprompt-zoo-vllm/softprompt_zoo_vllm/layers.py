"""Where a worker's layers keep keys and values."""

from collections.abc import Iterable, Mapping
from typing import Any

from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.models.utils import extract_layer_index

import softprompt_zoo as zoo
from softprompt_zoo_vllm.loading import Layer


def find_layers(config: Any, cache: Any, names: Iterable[str], identity: Mapping[str, Any]) -> list[Layer]:
    """Find the layers that have their own cache on this worker.

    Args:
        config: vLLM's `VllmConfig`.
        cache: vLLM's `KVCacheConfig`.
        names: Names of the layers.
        identity: The bank's description of its model.

    Returns:
        The layers.

    Raises:
        ValueError: If a layer's backend has no way to write keys and values.
        zoo.BackboneMismatchError: If the bank is for layers of different sizes.
    """
    groups = {name: index for index, group in enumerate(cache.kv_cache_groups) for name in group.layer_names}
    modules = config.compilation_config.static_forward_context
    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    total = config.model_config.get_total_num_kv_heads()
    begin = rank * total // ranks
    [sizes] = identity["backbone"]["layers"].values()
    found = []
    for name in names:
        module = modules[name]
        if getattr(module, "kv_sharing_target_layer_name", None) is not None:
            continue
        check_writer(name, module)
        index = extract_layer_index(name)
        _check_sizes(name, index, sizes, (total, module.head_size))
        found.append(Layer(index, groups[name], module, slice(begin, begin + module.num_kv_heads)))
    return found


def check_writer(name: str, module: Any) -> None:
    """Refuse a layer whose keys and values can only be written by its own forward.

    Args:
        name: The layer's name.
        module: The layer.

    Raises:
        ValueError: If it is such a layer.
    """
    implementation = getattr(module, "impl", None)
    if not hasattr(implementation, "do_kv_cache_update") or not hasattr(module, "num_kv_heads"):
        raise ValueError(
            f"layer {name} ({type(module).__name__} with {type(implementation).__name__}) has no place for the keys "
            "and values of a soft prompt; choose another attention backend with --attention-backend"
        )


def _check_sizes(name: str, index: int, sizes: list[list[int]], own: tuple[int, int]) -> None:
    expected = tuple(sizes[index][:2]) if index < len(sizes) else None
    if expected != own:
        raise zoo.BackboneMismatchError(
            f"layer {name} has {own[0]} key-value heads of width {own[1]}, but the bank is for a model with "
            f"{'no such layer' if expected is None else '{} of width {}'.format(*expected)}; serve the model that the "
            "bank was created with"
        )
