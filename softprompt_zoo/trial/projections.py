"""Turns hidden states into keys and values by the frozen projections of single attention layers."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.eval_mode import eval_mode
from softprompt_zoo.backbone.probe import PROBE, STATE_KEYWORD
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import KeyValueRecording
from softprompt_zoo.tokens.layer_tokens import LayerTokens
from softprompt_zoo.tokens.site_tokens import SiteTokens
from softprompt_zoo.trial.twin import twins
from softprompt_zoo.trial.words import is_ready, ready

RUN_LENGTH = 3
"""Tokens in the run that shows how a layer is called; different from the single token that replaces them."""

MASKS = ("attention_mask", "mask")
"""Names of the mask argument in attention modules; a single token needs no mask."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class Projector:
    """Calls attention layers on their own, with each token as a row of one position, the first."""

    def __init__(self, stacks: Mapping[str, Stack]) -> None:
        self._stacks = stacks
        self._calls: dict[Any, list[_Call]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_stacks": self._stacks, "_calls": {}}

    def __call__(self, site: str, states: Sequence[Tensor | None]) -> LayerTokens:
        """Project hidden states.

        Args:
            site: The site of a self-attention.
            states: Per layer, `(tokens, hidden)`, or `None` for a layer without tokens.

        Returns:
            Keys and values per layer as attention sees them at the first position, where a rotary embedding
            changes nothing; `None` where `states` is. Gradients flow to the states.

        Raises:
            UnsupportedError: If the width of the layers' states differs from that of the embeddings.
            UnsupportedError: If the model calls its attention in a nonstandard way.
        """
        stack = self._stacks[site]
        stack.reach.refuse_single_layers(stack)
        keys: list[Tensor | None] = []
        values: list[Tensor | None] = []
        calls = self._recorded(stack, site)
        # An attached model is ready already; what `ready` changes could be neither compiled nor shared by threads.
        with contextlib.nullcontext() if is_ready(stack) else ready(self._stacks):
            for layer, hidden in enumerate(states):
                if hidden is None:
                    keys.append(None)
                    values.append(None)
                    continue
                recorded = KeyValueRecording(is_alone=True)
                _call(stack.attentions[site][layer], calls[layer], hidden, recorded)
                [key], [value] = recorded.keys.values(), recorded.values.values()
                keys.append(key[:, :, 0].transpose(0, 1))
                values.append(value[:, :, 0].transpose(0, 1))
        return LayerTokens({site: SiteTokens(tuple(keys), tuple(values))})

    def _recorded(self, stack: Stack, site: str) -> list[_Call]:
        weight: Any = stack.embedding.weight
        key = (site, weight.device, weight.dtype)
        if key in self._calls:
            return self._calls[key]
        elsewhere = self._recorded_elsewhere(site) if torch.compiler.is_compiling() else None
        if elsewhere is not None:
            return _moved(elsewhere, weight)
        self._calls[key] = _record(stack, site, weight)
        return self._calls[key]

    def _recorded_elsewhere(self, site: str) -> list[_Call] | None:
        """Return calls recorded on another device or in another dtype; `None` if there are none."""
        for (known, device, _), calls in self._calls.items():
            if known == site and device.type != "meta":
                return calls
        return None


def _moved(calls: list[_Call], like: Tensor) -> list[_Call]:
    """Move calls to the model's current device and dtype: none can be recorded while compiling."""
    return [(_move(args, like), _move(kwargs, like)) for args, kwargs in calls]


@torch.inference_mode(False)
@torch.no_grad()
def _record(stack: Stack, site: str, weight: Tensor) -> list[_Call]:
    """Run a stack once and record how its attention layers are called, cut to one position."""
    calls: list[_Call] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {
            name: None if name in MASKS else _cut(value) for name, value in kwargs.items() if name != STATE_KEYWORD
        }
        calls.append((tuple(_cut(value) for value in args), named))

    made = twins(stack.module, stack.attentions[site])  # other threads may be running the model
    for module in set(stack.attentions[site]):
        made[id(module)].register_forward_pre_hook(note, with_kwargs=True)
    ids = torch.arange(RUN_LENGTH, device=weight.device)[None] % weight.shape[0]
    inputs = {**stack.reading(ids), STATE_KEYWORD: KeyValueRecording()}
    if not stack.is_audio_encoder:
        inputs |= {"attention_mask": torch.ones_like(ids), "use_cache": False}
    alone: Any = made[id(stack.module)]
    # The probe needs no mask; building one reads values, which the meta device does not have.
    with eval_mode([alone], PROBE):
        alone(**inputs)
    return calls


def _cut(value: Any) -> Any:
    """Cut a value with one entry per position to the first one."""
    if isinstance(value, tuple):
        return tuple(_cut(part) for part in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1 and value.shape[0] == RUN_LENGTH:
        return value[:1]
    return value[:, :1] if value.ndim > 1 and value.shape[1] == RUN_LENGTH else value


def _move(value: Any, like: Tensor) -> Any:
    """Move recorded arguments to a device, and cast floating-point ones to a dtype."""
    if isinstance(value, tuple):
        return tuple([_move(part, like) for part in value])
    if isinstance(value, dict):
        return {name: _move(part, like) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)


def _call(module: Any, call: _Call, hidden: Tensor, recorded: KeyValueRecording) -> None:
    args, kwargs = call
    is_named = "hidden_states" in kwargs
    template: Any = kwargs["hidden_states"] if is_named else args[0]
    if template.shape[-1] != hidden.shape[-1]:
        raise UnsupportedError(
            f"the layers of this model take states of width {template.shape[-1]} and its embeddings have width "
            f"{hidden.shape[-1]}, which a prompt of hidden states cannot bridge; choose a method at keys and values"
        )
    rows = hidden[:, None, :].to(device=template.device, dtype=template.dtype)
    kwargs = {**kwargs, STATE_KEYWORD: recorded}
    if is_named:
        module(*args, **{**kwargs, "hidden_states": rows})
        return
    # The positional arguments after the states: a mask would be 4-D.
    rest = [None if isinstance(value, Tensor) and value.ndim == 4 else value for value in args[1:]]
    module(rows, *rest, **kwargs)
