"""The function that replaces attention while a stack is inspected, recording its callers and their sizes."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.shapes import Bool, Float, Shaped
from softprompt_zoo.tokens.layer_shape import LayerShape

STATE_KEYWORD = "softprompt_zoo"
"""Forward keyword that carries the state of one run of a stack down to its attention.

Whoever runs the stack chooses the state; the hook before the forward chooses it if the keyword is not there yet:

- `CallState`, from that hook (`sites.hooks`): the prompts that the rows see. The ways to the attention in `sites.reach`
  and the hook after the forward read it.
- `KeyValueRecording`, from `sites.shared_pass` and `trial.projections`: `sites.reach` writes keys and values into it.
- `Probe`, from `trial.stacks`: the attention function here writes calls into it.
- `None`, from `sites.text_states` and `trial.stacks`: the stack runs as if it had no prompts. The hook passes it to a
  model that is itself the stack if no row sees a prompt, so that the model's class knows that the hook has run.

The way from the model to its stacks has keywords of its own: `REQUEST_KEYWORD` of `sites.request`, `CALL_KEYWORD` of
`sites.call`.
"""

PROBE = "softprompt_zoo_probe"
PROBE_LENGTH = 3
PROBE_ENCODER_LENGTH = 5


class AttentionCall(NamedTuple):
    """One call of attention."""

    module: nn.Module
    shape: LayerShape
    is_cross: bool
    is_causal: bool


@dataclasses.dataclass
class Probe:
    """Collects the attention calls of one stack, in order."""

    calls: list[AttentionCall] = dataclasses.field(default_factory=list)
    keys: dict[bool, list[Float[Tensor, "rows kv_heads length head_dim"]]] = dataclasses.field(
        default_factory=lambda: {False: [], True: []}
    )
    """The keys of every layer, of self-attention and of cross-attention."""

    widths: dict[int, int] = dataclasses.field(default_factory=dict)
    """Module id to the width of the hidden states that the module was called with."""

    def note_width(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the width of a module's input. A forward pre-hook."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, Tensor) and hidden.ndim == 3:
            self.widths[id(module)] = hidden.shape[2]

    def source(self, key: Float[Tensor, "rows kv_heads length head_dim"], is_cross: bool) -> int | None:
        """Record a layer's keys; return the earlier layer that computed them, `None` if it computed them itself."""
        seen = self.keys[is_cross]
        seen.append(key)
        return next((layer for layer, earlier in enumerate(seen[:-1]) if earlier is key), None)


class Idle(TorchFunctionMode):
    """Makes linear layers return zeros, to find the callers of attention and their sizes without reading weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, or return zeros if it is that of a linear layer."""
        return (_idle_linear if func is functional.linear else func)(*args, **(kwargs or {}))


def _idle_linear(
    input: Float[Tensor, "... inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "... outputs"]:
    return input.new_zeros(*input.shape[:-1], weight.shape[0])


class _Seen(NamedTuple):
    """The positions that a layer's mask hides."""

    window: int | None
    is_causal: bool | None


_SEEN = "_softprompt_seen"
"""Attribute of the probe's masks that holds a `_Seen`."""


def _probe_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads length head_dim"],
    key: Float[Tensor, "rows kv_heads key_length head_dim"],
    value: Float[Tensor, "rows kv_heads key_length value_dim"],
    attention_mask: Shaped[Tensor, "..."] | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows length heads value_dim"], None]:
    """Record the call if it has the keyword, and return a result of the right shape."""
    probe = kwargs.get(STATE_KEYWORD)
    if isinstance(probe, Probe):
        window, is_causal = _hides(module, attention_mask, kwargs)
        is_cross = key.shape[2] == PROBE_ENCODER_LENGTH and query.shape[2] == PROBE_LENGTH
        source = probe.source(key, is_cross)
        sizes = key.shape[1], key.shape[3], query.shape[1], window, value.shape[3], source
        shape = LayerShape(*sizes, probe.widths.get(id(module), 0))
        probe.calls.append(AttentionCall(module, shape, is_cross, bool(is_causal) and not is_cross))
    output = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    return output, None


def _hides(module: nn.Module, mask: Shaped[Tensor, "..."] | None, kwargs: dict[str, Any]) -> _Seen:
    """Return what a layer hides, according to its mask, or else to its arguments and attributes."""
    told = _told(module, kwargs)
    seen: _Seen | None = getattr(mask, _SEEN, None)
    if seen is not None:  # the arguments need not agree with the mask
        return _Seen(seen.window, told.is_causal if seen.is_causal is None else seen.is_causal)
    return told if told.is_causal is not None else _Seen(told.window, _is_causal(mask))


def _told(module: nn.Module, kwargs: dict[str, Any]) -> _Seen:
    """Return what a layer is asked to hide, by the call's arguments or else by its own attributes."""
    window = kwargs["sliding_window"] if "sliding_window" in kwargs else part_of(module, "sliding_window")
    is_causal = kwargs.get("is_causal")
    return _Seen(window, part_of(module, "is_causal") if is_causal is None else is_causal)


def _probe_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    local_size: int | None = None,
    device: Any = "cpu",
    **kwargs: Any,
) -> Bool[Tensor, "rows 1 length key_length"]:
    """Build a mask without padding that records what it hides; no values are read, as there may be none."""
    mask = torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)
    is_causal = None if q_length == 1 else _hides_later(mask_function)
    # The size of a bidirectional window is the greatest distance seen, that of a causal one the number of tokens.
    window = local_size + 1 if local_size is not None and is_causal is False else local_size
    mask = mask if is_causal is False else mask.tril()
    setattr(mask, _SEEN, _Seen(window, is_causal))
    return mask


def _hides_later(mask_function: Callable[..., Any]) -> bool | None:
    """Return whether a mask hides the second token from the first; `None` if unknown."""
    nothing, one = torch.tensor(0), torch.tensor(1)
    try:
        return not bool(mask_function(nothing, nothing, nothing, one))
    except Exception:  # it reads its tokens, which may be on another device
        return None


def _is_causal(mask: Shaped[Tensor, "..."] | None) -> bool:
    """Return whether a mask that the model built itself hides later tokens; if unknown, assume it does."""
    if mask is None or mask.ndim != 4 or mask.shape[-1] < 2:
        return True
    if mask.shape[2] == 1:
        return False
    return mask.is_meta or bool((mask[:, :, 0, 0] != mask[:, :, 0, 1]).any())


AttentionInterface.register(PROBE, _probe_attention)
AttentionMaskInterface.register(PROBE, _probe_mask)
