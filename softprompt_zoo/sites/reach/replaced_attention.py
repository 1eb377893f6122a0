"""Replaces attention for one call, in stacks that compute their scores themselves: DeBERTa's and MPNet's.

Such a stack does not pass keywords down. Its own forward runs on a view of the stack, made for one call, in which the
attention modules are replaced by the functions of `deberta_and_mpnet`. Nothing is written to modules.
"""

import functools
from collections.abc import Sequence
from typing import Any

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.backbone.probe import STATE_KEYWORD, AttentionCall
from softprompt_zoo.backbone.replaced_forward import check_view, note_prompted, rebind, restore
from softprompt_zoo.backbone.stand_in import stand_in
from softprompt_zoo.sites.reach.attention_in_config import AttentionInConfig
from softprompt_zoo.sites.reach.deberta_and_mpnet import KINDS, Kind
from softprompt_zoo.sites.reach.reach import Look
from softprompt_zoo.sites.reach.views import view
from softprompt_zoo.sites.stack_facts import StackFacts
from softprompt_zoo.sites.state import CallState, KeyValueRecording
from softprompt_zoo.tokens.layer_shape import LayerShape

_BASE = "_softprompt_carried"
"""Attribute of our class that holds the stack's own class."""


class ReplacedAttention(AttentionInConfig):
    """For encoders whose attention computation is known."""

    keeps_keywords = True

    def find(self, look: Look) -> Sequence[AttentionCall]:
        """Look for attention modules of a known kind in every layer."""
        layers = () if look.error else part_of(part_of(look.module, "encoder"), "layer", ())
        kinds = [_kind_of(layer) for layer in layers]
        return [_call_of(layer, kind) for layer, kind in zip(layers, kinds, strict=True) if kind] if all(kinds) else ()

    def install(self, stack: StackFacts, model: Any) -> None:
        """Give the stack a class whose forward takes the state, unless the model's prompted class already does."""
        super().install(stack, model)
        module: Any = stack.module
        if module is not model:
            base: Any = type(module)
            module.__class__ = carrying_class(base)
            rebind(module, _carrying_function)

    def remove(self, stack: StackFacts) -> None:
        """Undo `install`."""
        super().remove(stack)
        module: Any = stack.module
        base = vars(type(module)).get(_BASE)
        if base is not None:
            restore(module)
            module.__class__ = base

    def run(self, module: Any, forward: Any, kwargs: dict[str, Any]) -> Any:
        """Run the stack's own forward on a view with the state."""
        return _run(module, forward, (), kwargs)


@functools.cache
def carrying_class(base: Any) -> Any:
    """Make the subclass whose forward takes the state."""

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return base(*args, **kwargs) if args or kwargs else base.__new__(cls)

    members = {"forward": _carrying_function(base.forward), "__new__": new, _BASE: base}
    return stand_in(base, carrying_class, **members)


def _carrying_function(function: Any) -> Any:
    """Make the forward that takes the state, from that of the class or from a function set on a module."""

    @functools.wraps(function)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _run(self, function, args, kwargs)

    return note_prompted(forward)


def _run(module: Any, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    state = kwargs.pop(STATE_KEYWORD, None)
    return forward(module if state is None else _view_of_stack(module, state), *args, **kwargs)


def _kind_of(layer: Any) -> Kind | None:
    attention = part_of(layer, "attention")
    return next((kind for kind in KINDS if kind.is_in(attention)), None)


def _call_of(layer: Any, kind: Kind) -> AttentionCall:
    attention = part_of(layer.attention, kind.name)
    heads = attention.num_attention_heads
    projection = part_of(attention, kind.key_projection)
    shape = LayerShape(heads, projection.out_features // heads, heads, hidden_size=projection.in_features)
    return AttentionCall(attention, shape, is_cross=False, is_causal=False)


def _view_of_stack(module: Any, state: CallState | KeyValueRecording) -> Any:
    layers = []
    for index, layer in enumerate(module.encoder.layer):
        for part in (layer, layer.attention):
            check_view(part)
        kind: Any = _kind_of(layer)
        attend = functools.partial(kind.attend, part_of(layer.attention, kind.name), state, index)
        layers.append(view(layer, attention=view(layer.attention, **{kind.name: attend})))
    check_view(module.encoder)
    return view(module, encoder=view(module.encoder, layer=layers))
