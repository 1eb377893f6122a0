"""Trained task heads in one forward: every row of a call goes through the head of its prompt.

The model's own forward runs on a view of the model in which the prompt's copies replace the head's modules. The
view lives for one call; modules, which two threads or two calls would share, are not changed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.prompt.task_heads import dtype_of
from softprompt_zoo.shapes import Int
from softprompt_zoo.sites.reach.views import view


def check_resizable(model: Any, heads: Mapping[str, nn.ModuleDict | None]) -> None:
    """Refuse to resize the vocabulary if prompts predict words with their own trained head.

    Args:
        model: The prompted model.
        heads: The head of each prompt, by the prompt's name.

    Raises:
        UnsupportedError: If one has rows for words.
    """
    output = model.get_output_embeddings()
    for prompt, head in heads.items():
        for name in head or ():
            if output in [*model.get_submodule(name).modules()]:
                raise UnsupportedError(
                    f"prompt {prompt!r} has a trained task head {name!r} for the current vocabulary, which would not "
                    "be resized; remove the prompt first, or train it again on the resized model"
                )


def with_heads(model: Any, heads: Sequence[nn.ModuleDict | None], rows: Int[Tensor, " rows"] | None) -> Any:
    """Return what the model's forward should take as `self`.

    Args:
        model: The prompted model. Not changed.
        heads: The head of each combination; `None` for the model's own.
        rows: Index of each row's combination; `None` if all rows share the only one.

    Returns:
        The model, or a view of it with the heads in place.
    """
    names: dict[str, None] = {}
    for head in heads:
        names.update(dict.fromkeys(head or ()))
    if not names:
        return model
    replaced = {}
    for name in names:
        own = getattr(model, name)
        replaced[name] = _HeadPerRow(own, _modules_named(name, heads, own), rows)
    return view(model, **replaced)


def _modules_named(name: str, heads: Sequence[nn.ModuleDict | None], own: nn.Module) -> list[nn.Module]:
    """Return each head's module of that name; the model's own if it has none."""
    found = []
    for head in heads:
        found.append(head[name] if head is not None and name in head else own)
    return found


class _HeadPerRow:
    """Replaces one module of the head: calls every distinct copy once, and each row takes the output of its own."""

    def __init__(self, own: nn.Module, parts: list[nn.Module], rows: Int[Tensor, " rows"] | None) -> None:
        self._own = own
        self._distinct = list(dict.fromkeys(parts))
        self._rows = rows
        self._index = [self._distinct.index(part) for part in parts]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = [_call(part, args, kwargs) for part in self._distinct]
        if len(outputs) == 1:
            return outputs[0]
        return self._of_rows(outputs)

    def _of_rows(self, outputs: list[Any]) -> Any:
        """Select each row's output from its own head."""
        if self._rows is None or not all(isinstance(output, Tensor) for output in outputs):
            raise UnsupportedError(
                f"{type(self._own).__name__} does not return a single tensor from which rows could take their head's "
                "output; give all rows of the batch the same prompt"
            )
        count = outputs[0].shape[0]
        rows = self._rows.to(outputs[0].device)
        rows = rows.repeat_interleave(count // rows.shape[0])  # multiple choice: rows * choices
        index = torch.tensor(self._index, device=rows.device)[rows]
        return torch.stack(outputs)[index, torch.arange(count, device=rows.device)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._distinct[0] if len(self._distinct) == 1 else self._own, name)


def _call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a head that may have a higher precision than the model."""
    dtype = dtype_of(module)
    given = _dtype_given(args, dtype)
    if given == dtype:
        return module(*args, **kwargs)
    output = module(*[_cast(value, dtype) for value in args], **{k: _cast(value, dtype) for k, value in kwargs.items()})
    return _cast(output, given)


def _dtype_given(args: tuple[Any, ...], default: torch.dtype) -> torch.dtype:
    """Return the dtype of the states among the arguments."""
    for value in args:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
    return default


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
