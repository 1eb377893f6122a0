"""A `PeftModel` around a prompted model: saves and resumes the prompts, and reverts to its own class without them."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.peft_layers import model_inside
from softprompt_zoo.backbone.stand_in import stand_in
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files import peft_folder, prompt_folder
from softprompt_zoo.files.reading import read_tensors
from softprompt_zoo.files.weight_adapter_files import FOLDER, read
from softprompt_zoo.files.weight_adapters import WRAPPED, out_of_reach
from softprompt_zoo.sites.request import Request

if TYPE_CHECKING:  # the class that the mixin precedes
    from peft import PeftModel as OwnClass
else:
    OwnClass = object


class PromptedPeftModel(OwnClass):
    """How a `PeftModel` differs from its own class while the model inside has prompts."""

    _softprompt_wrapper: type
    get_base_model: Any
    active_adapters: list[str]

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        # Checked here, since an error within PEFT's forward would leave the names of this call in all layers.
        if kwargs.get("adapter_names") is not None:
            _refuse_shared_pass(self.get_base_model().prompts, kwargs)
        return super()._enable_peft_forward_hooks(*args, **kwargs)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Create an instance of PEFT's own class; without arguments, an empty object, as copying requires."""
        return cls._softprompt_wrapper(*args, **kwargs) if args or kwargs else super().__new__(cls)

    def forward(self, *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
        """Run PEFT's forward, which does not pass `task_ids` on."""
        if task_ids is not None:
            raise UnsupportedError(
                "PEFT's forward does not pass task_ids on; call the model inside: model.get_base_model()(…, task_ids=…)"
            )
        return super().forward(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the prompts, and PEFT's adapter where PEFT expects it."""
        inside = None if state_dict is None else {key.removeprefix(WRAPPED): t for key, t in state_dict.items()}
        self.get_base_model().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=inside)
        if is_main_process:
            # PEFT keeps an adapter here, and Trainer looks here before it loads the best model.
            folder = Path(save_directory)
            saved = read(folder, {name: f"{FOLDER}/{name}" for name in self.active_adapters[:1]})
            for adapter in saved.values():
                peft_folder.write(folder, adapter.fields, adapter.tensors, {})

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Add a PEFT adapter that leaves the prompts alone."""
        with out_of_reach(self.get_base_model()):
            super().add_adapter(*args, **kwargs)

    def load_adapter(self, model_id: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load a PEFT adapter, or the prompts and adapters of our checkpoint."""
        if not prompt_folder.is_there(Path(model_id)):
            return super().load_adapter(model_id, *args, **kwargs)
        tensors, _ = read_tensors(Path(model_id) / prompt_folder.TENSOR_FILE)
        return self.get_base_model().load_state_dict(tensors, strict=False)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Load a state of the wrapper, or a checkpoint written by the model inside."""
        # Trainer reads the checkpoint written by the model inside.
        if any(key.startswith(WRAPPED) for key in state_dict):
            return super().load_state_dict(state_dict, *args, **kwargs)
        return self.get_base_model().load_state_dict(state_dict, *args, **kwargs)


def wrap(model: Any) -> None:
    """Let a `PeftModel` save and resume the prompts of the model inside; any other model is left alone."""
    if model_inside(model) is not model and not isinstance(model, PromptedPeftModel):
        kind: Any = type(model)
        model.__class__ = prompted_wrapper(kind)


def unwrap(model: Any) -> None:
    """Undo `wrap`."""
    if isinstance(model, PromptedPeftModel):
        model.__class__ = model._softprompt_wrapper


@functools.cache
def prompted_wrapper(wrapper: Any) -> Any:
    """Make the subclass for a `PeftModel` around a prompted model."""
    return stand_in(wrapper, prompted_wrapper, PromptedPeftModel, _softprompt_wrapper=wrapper)


@torch.no_grad()
def _refuse_shared_pass(prompts: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse per-row adapters if a single pass computes keys and values that all rows share."""
    call = prompts.resolve(Request.read(kwargs, prompts.keys()), None)
    if prompts.backbone.kind.is_causal and any(call.input_tokens(part) for part in call.selection.combinations):
        raise UnsupportedError(
            "adapter_names gives each row its own adapter, but a prompt at the input embeddings passes through this "
            "model once for all rows; use a method on keys and values, or call the model "
            "once for each adapter, after set_adapter"
        )
