"""Trained task heads: every row of a call goes through the head of its prompt.

The model's own forward runs on a view of the model in which the prompt's copies stand for the head's modules. The
view lives for one call; nothing is written on modules, which two threads or two calls would share.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.errors import BackboneMismatchError, UnsupportedError
from softprompt_zoo.sites.adapter_layers import plain_copy
from softprompt_zoo.sites.offloading import check_head
from softprompt_zoo.sites.views import view


def find_heads(model: Any, stacks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Find the modules behind a model's last layer: its children outside the backbone that have parameters.

    Args:
        model: A transformers model.
        stacks: The modules of its stacks.

    Returns:
        The modules by name, of a task head or of what predicts words.
    """
    backbone = [model.base_model]
    if model.base_model is model:
        if not model.config.is_encoder_decoder:
            return {}
        # T5ForQuestionAnswering has its stacks as children, and no model around them.
        backbone = [*stacks, model.get_input_embeddings()]
    own = {id(module) for module in backbone}
    children = {name: child for name, child in model.named_children() if id(child) not in own}
    return {name: child for name, child in children.items() if next(child.parameters(), None) is not None}


def task_head(model: Any, heads: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return a model's heads if they are for a task: what predicts words is no task head."""
    return {} if model.get_output_embeddings() is not None else dict(heads)


def copy_head(modules: Mapping[str, nn.Module]) -> nn.ModuleDict | None:
    """Copy a task head, for a prompt to train.

    Args:
        modules: The model's own modules, which PEFT may have wrapped. Not changed.

    Returns:
        Trainable copies by name, in float32 at least, with the values that an adapter on them gives now; `None` if
        there are no modules.

    Raises:
        UnsupportedError: If PEFT cannot merge an adapter on one of them, or one is offloaded.
    """
    copies = {}
    for name, module in modules.items():
        check_head(name, module)
        dtype = torch.promote_types(_dtype(module), torch.float32)
        copies[name] = plain_copy(module, dtype).requires_grad_()
    return nn.ModuleDict(copies) if copies else None


def copy_saved_head(names: Iterable[str], modules: Mapping[str, nn.Module], where: str) -> nn.ModuleDict | None:
    """Copy those modules of a model's task head that a saved prompt has trained.

    Args:
        names: Names of the modules.
        modules: The model's own heads. Not changed.
        where: Where the prompt was read, for messages.

    Returns:
        The copies, as `copy_head` makes them.

    Raises:
        BackboneMismatchError: If the model lacks one of them.
    """
    chosen = {}
    for name in names:
        if name not in modules:
            raise BackboneMismatchError(
                f"{where} has a trained task head {name!r}; this model has {', '.join(modules) or 'none'}; use it "
                "with a model of the class it was trained with"
            )
        chosen[name] = modules[name]
    return copy_head(chosen)


def check_resizable(model: Any, heads: Mapping[str, nn.ModuleDict | None]) -> None:
    """Refuse to resize the vocabulary under prompts that predict words with a head of their own.

    Args:
        model: The prompted model.
        heads: The head of each prompt by the prompt's name.

    Raises:
        UnsupportedError: If one has rows for words.
    """
    output = model.get_output_embeddings()
    for prompt, head in heads.items():
        for name in head or ():
            if any(module is output for module in model.get_submodule(name).modules()):
                raise UnsupportedError(
                    f"prompt {prompt!r} has a trained task head {name!r} for the vocabulary as it is, which would not "
                    "be resized; remove the prompt first, or train it again on the resized model"
                )


def with_heads(model: Any, heads: Sequence[nn.ModuleDict | None], rows: Tensor | None) -> Any:
    """Return what the model's forward shall take as `self`.

    Args:
        model: The prompted model. Not changed.
        heads: The head of each combination; `None` for the model's own.
        rows: `(rows,)` index of each row's combination; `None` if all rows share the only one.

    Returns:
        The model, or a view of it with the heads in place.
    """
    names: dict[str, None] = {}
    for head in heads:
        if head is not None:
            names.update(dict.fromkeys(head))
    if not names:
        return model
    replaced = {}
    for name in names:
        own = getattr(model, name)
        parts = []
        for head in heads:
            parts.append(head[name] if head is not None and name in head else own)
        replaced[name] = _Chosen(own, parts, rows)
    return view(model, **replaced)


class _Chosen:
    """Stands for one module of the head: calls every distinct copy once, and each row takes its own."""

    def __init__(self, own: nn.Module, parts: list[nn.Module], rows: Tensor | None) -> None:
        self._own = own
        self._distinct = list(dict.fromkeys(parts))
        self._rows = rows
        self._index = [self._distinct.index(part) for part in parts]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = [_call(part, args, kwargs) for part in self._distinct]
        if len(outputs) == 1:
            return outputs[0]
        if self._rows is None or not all(isinstance(output, Tensor) for output in outputs):
            raise UnsupportedError(
                f"{type(self._own).__name__} returns no single tensor, of which rows could take their own head's; give "
                "all rows of the batch the same prompt"
            )
        count = outputs[0].shape[0]
        rows = self._rows.to(outputs[0].device)
        rows = rows.repeat_interleave(count // rows.shape[0])  # multiple choice: rows * choices
        index = torch.tensor(self._index, device=rows.device)[rows]
        return torch.stack(outputs)[index, torch.arange(count, device=rows.device)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._distinct[0] if len(self._distinct) == 1 else self._own, name)


def _call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a head that may be of a higher precision than the model."""
    dtype = _dtype(module)
    given = dtype
    for value in args:
        if isinstance(value, Tensor) and value.is_floating_point():
            given = value.dtype
            break
    if given == dtype:
        return module(*args, **kwargs)
    output = module(*[_cast(value, dtype) for value in args], **{k: _cast(value, dtype) for k, value in kwargs.items()})
    return _cast(output, given)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
