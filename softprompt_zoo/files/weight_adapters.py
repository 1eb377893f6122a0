"""PEFT adapters on the base model, such as LoRA, trained, saved and switched off alongside the prompts.

PEFT is imported only if there is such an adapter. An adapter is injected into the layers of the user's model; a
`PeftModel` is a wrapper around that model. Prompts go into the model, and the wrapper is left as it is.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.peft_layers import (
    adapter_layers,
    adapter_names,
    adapter_parameters,
    check_peft_version,
    original_name,
)
from softprompt_zoo.errors import BackboneMismatchError, CheckpointError, first_line
from softprompt_zoo.files import prompt_folder
from softprompt_zoo.files.module_state import restored_on_error
from softprompt_zoo.files.peft_folder import CONFIG_FILE
from softprompt_zoo.files.weight_adapter_configs import make_config
from softprompt_zoo.files.weight_adapter_files import FOLDER, SavedAdapter
from softprompt_zoo.prompt.task_heads import find_heads, task_head

WRAPPED = "base_model.model."
"""PEFT's prefix for the names of the model inside."""


@contextlib.contextmanager
def out_of_reach(model: nn.Module) -> Iterator[None]:
    """Hide a prompted model's prompts, so that adding an adapter neither injects it into them nor freezes them."""
    prompts: Any = model._modules.pop("prompts")
    stacks: Any = model._softprompt_stacks
    try:
        yield
        heads = find_heads(model, [stack.module for stack in stacks.values()])  # the adapter may have replaced them
        inside = dataclasses.replace(prompts.backbone.inside, task_head=task_head(model, heads), heads=heads)
        prompts.backbone = dataclasses.replace(prompts.backbone, inside=inside)
    finally:
        model._modules["prompts"] = prompts


def collect(model: Any, state_dict: Mapping[str, Tensor] | None) -> dict[str, SavedAdapter]:
    """Read the adapters of a model, for saving.

    Args:
        model: The model inside.
        state_dict: Its state, if the caller gathered it from several devices.

    Returns:
        The adapters by name, the active one last.
    """
    active = {name for _, layer in adapter_layers(model) for name in layer.active_adapters}
    state = _own_state(model, state_dict)
    # PEFT activates the one that is added last.
    return {name: _collected(model, state, name) for name in sorted(adapter_names(model), key=active.__contains__)}


def _collected(model: Any, state: Mapping[str, Tensor], name: str) -> SavedAdapter:
    tensors = {WRAPPED + key: tensor for key, tensor in _peft_state(model, state, name).items()}
    config = model.peft_config[name]
    fields = json.loads(json.dumps({**config.to_dict(), "inference_mode": True}, default=_plain))
    places = {id(tensor): key for key, tensor in state.items()}
    state_names = {key: places[id(tensor)] for key, tensor in tensors.items() if id(tensor) in places}
    return SavedAdapter(fields, tensors, state_names)


def check(model: Any, adapters: Mapping[str, SavedAdapter], directory: Path) -> None:
    """Refuse saved adapters that do not fit a model. Nothing is changed, and no memory is allocated.

    Args:
        model: The model inside; it may have adapters of these names.
        adapters: From `read`.
        directory: The folder they come from, for the message.

    Raises:
        UnsupportedError: If PEFT is not installed or transformers does not accept its adapters, or an adapter requires
            what is not supported from a file.
        CheckpointError: If PEFT does not know the adapter.
        BackboneMismatchError: If the tensors are not those of such an adapter on this model.
    """
    skeleton = _Skeleton(model)
    for name, adapter in adapters.items():
        folder = directory / FOLDER / name
        expected = _shapes(model, name) if name in adapter_names(model) else skeleton.shapes(name, adapter, folder)
        saved = {key: tuple(tensor.shape) for key, tensor in _inside(adapter.tensors).items()}
        if saved != expected:
            wrong = min(saved.items() ^ expected.items())[0]
            raise BackboneMismatchError(
                f"{folder} does not fit this model: tensor {wrong!r} has shape {saved.get(wrong)}; "
                f"expected {expected.get(wrong)}; load it onto the model it was made for"
            )


class _Skeleton:
    """A copy of a model without values, made on first use, on which adapters are tried."""

    def __init__(self, model: Any) -> None:
        self.like = model

    @functools.cached_property
    def model(self) -> Any:
        with torch.device("meta"):
            return _original_class(self.like)(self.like.config)

    def shapes(self, name: str, adapter: SavedAdapter, folder: Path) -> dict[str, tuple[int, ...]]:
        """Return the expected shapes of an adapter's tensors on this model."""
        config = _config(adapter, folder)
        check_peft_version(f"the adapter in {folder}")
        try:
            _without_start(config)
            with torch.device("meta"):
                self.model.add_adapter(config, adapter_name=name)
            return _shapes(self.model, name)
        except Exception as error:  # PEFT's are of all kinds
            raise BackboneMismatchError(f"{folder} does not fit this model: {first_line(error)}") from error


def put(model: Any, adapters: Mapping[str, SavedAdapter], directory: Path, trainable: bool) -> None:
    """Add saved adapters to a model; existing ones get the saved values.

    Args:
        model: The model inside. Changed in place.
        adapters: Adapters that passed `check`.
        directory: The folder they come from.
        trainable: Whether their training can continue. Existing parameters keep their `requires_grad`.

    Raises:
        CheckpointError: If PEFT fails. The model is left changed; see `taken_off_on_error`.
    """
    with _same_gradients(model):
        for name, adapter in adapters.items():
            _put_one(model, name, adapter, directory / FOLDER / name)
    if not trainable:
        for parameter in _parameters_of(model, adapters):
            parameter.requires_grad_(False)


@contextlib.contextmanager
def _same_gradients(model: Any) -> Iterator[None]:
    """Preserve every parameter's `requires_grad`: PEFT freezes all but the adapter that it adds."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    yield
    for parameter, required_grad in before:
        parameter.requires_grad_(required_grad)


def _parameters_of(model: Any, adapters: Iterable[str]) -> list[nn.Parameter]:
    return [parameter for name in adapters for _, parameter in adapter_parameters(model, name)]


def _put_one(model: Any, name: str, adapter: SavedAdapter, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    config = None if name in adapter_names(model) else _config(adapter, folder)
    try:
        if config is not None:
            model.add_adapter(config, adapter_name=name)
        set_peft_model_state_dict(model, _inside(adapter.tensors), adapter_name=name)
    except Exception as error:  # PEFT's are of all kinds
        raise CheckpointError(f"PEFT cannot put {folder} on this model: {first_line(error)}") from error


@contextlib.contextmanager
def taken_off_on_error(model: Any, adapters: Mapping[str, SavedAdapter]) -> Iterator[None]:
    """Restore a model bit for bit if adding adapters, or what follows in the block, fails.

    Args:
        model: The model inside.
        adapters: The adapters added within the block.
    """
    # PEFT also writes into parameters of the base, such as biases.
    named = {original_name(key) for adapter in adapters.values() for key in _inside(adapter.tensors)}
    written = [p for name, p in model.named_parameters(remove_duplicate=False) if original_name(name) in named]
    with restored_on_error(model, [*written, *_parameters_of(model, adapters)]):
        yield


def _own_state(model: Any, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return a model's state without its prompts: PEFT matches parts of names, such as "bias"."""
    found = model.state_dict() if state_dict is None else state_dict
    return {key: tensor for key, tensor in found.items() if not key.startswith(prompt_folder.KEY_PREFIX)}


def _peft_state(model: Any, state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=state, adapter_name=name)
    return tensors


def _shapes(model: Any, name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in _peft_state(model, _own_state(model, None), name).items()}


def _original_class(model: Any) -> Any:
    return getattr(type(model), "_softprompt_base", type(model))


def _config(adapter: SavedAdapter, folder: Path) -> Any:
    return make_config(adapter.fields, _inside(adapter.tensors), folder / CONFIG_FILE)


def _without_start(config: Any) -> None:
    """Turn off a config's start values: some are computed from weights, which a skeleton lacks."""
    for name in ("init_lora_weights", "init_weights"):
        if isinstance(getattr(config, name, None), str):
            setattr(config, name, True)


def _inside(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(WRAPPED): tensor for key, tensor in tensors.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return str(value) if isinstance(value, torch.dtype) else getattr(value, "value", str(value))
