"""A cache that records which module passes it the keys and values of each layer."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.eval_mode import eval_mode
from softprompt_zoo.backbone.lookup import config_value, part_of
from softprompt_zoo.backbone.probe import PROBE_LENGTH, AttentionCall, Idle
from softprompt_zoo.shapes import Float
from softprompt_zoo.sites.reach.cache_view import CacheView
from softprompt_zoo.sites.reach.reach import Look
from softprompt_zoo.tokens.layer_shape import LayerShape


@torch.no_grad()
def run_on_view(look: Look) -> dict[int, AttentionCall]:
    """Run a stack on a few tokens with a recording cache. The stack is not changed.

    Args:
        look: What an earlier run has shown about the stack; this one is as idle.

    Returns:
        Layer to the call by the module that passed its keys and values; empty if none did, or the run failed.
    """
    view = _NotingView()
    weight: Any = look.embedding.weight
    ids = torch.arange(PROBE_LENGTH, device=weight.device)[None] % weight.shape[0]
    handles = [m.register_forward_pre_hook(view.enter, prepend=True) for m in look.module.modules()]
    handles += [m.register_forward_hook(view.leave, always_call=True) for m in look.module.modules()]
    try:
        with eval_mode([look.module]), Idle() if look.is_idle else contextlib.nullcontext():
            look.module(input_ids=ids, use_cache=True, **{look.cache_argument: view})
    except Exception:
        return {}  # no cache of a known form; the reason found earlier says more
    finally:
        for handle in handles:
            handle.remove()
    return view.found


class _NotingView(CacheView):
    """Records which module passes the keys and values of each layer."""

    def __init__(self) -> None:
        super().__init__(None, None, None, "decoder")
        self.found: dict[int, AttentionCall] = {}
        self._running: list[nn.Module] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()

    def update(
        self,
        key_states: Float[Tensor, "rows kv_heads length head_dim"],
        value_states: Float[Tensor, "rows kv_heads length value_dim"],
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "rows kv_heads length head_dim"], Float[Tensor, "rows kv_heads length value_dim"]]:
        module = self._running[-1]
        heads = next((h for h in (part_of(module, n) for n in _HEADS) if isinstance(h, int)), 0)
        shape = LayerShape(key_states.shape[1], key_states.shape[3], heads, _window(module), value_states.shape[3])
        self.found[layer_idx] = AttentionCall(module, shape, is_cross=False, is_causal=True)
        return key_states, value_states


_HEADS = ("num_attention_heads", "num_heads", "n_heads")


def _window(module: Any) -> int | None:
    """Return the width of an attention's sliding window, as far as it is known."""
    config = part_of(module, "config")
    if part_of(module, "attention_type") == "local":
        window: int | None = config_value(config, "window_size")
    else:
        window = part_of(module, "sliding_window") or config_value(config, "sliding_window")
    return window
