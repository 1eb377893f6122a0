"""Training on a quantized base: what transformers' `Trainer` requires, and what bitsandbytes does to the weights.

`Trainer` accepts a quantized model if it is PEFT's, or if its quantizer supports training the model itself. A prompted
model therefore exposes its quantizer with that answer; `is_trainable` still says whether gradients flow through it.

On a CPU, bitsandbytes repacks a 4-bit layer in its first forward in eval mode without gradients. A packed layer has
rounded scales and silently passes no gradients. A layer in training mode computes the same unpacked.
"""

import functools
from typing import Any

from torch import nn

from softprompt_zoo.backbone.lookup import part_of


def trainable_view(quantizer: Any) -> Any:
    """Return a quantizer that reports its model as trainable itself.

    Args:
        quantizer: transformers' quantizer. Not changed.

    Returns:
        An object of a subclass of its class, which shares its attributes.
    """
    base: Any = type(quantizer)
    view = object.__new__(_trainable_class(base))
    view.__dict__ = quantizer.__dict__
    return view


def keep_unpacked(model: nn.Module) -> None:
    """Put the layers that would be packed into training mode, and unpack those already packed.

    Args:
        model: Any module. Changed in place.
    """
    for module in model.modules():
        state = part_of(module._parameters.get("weight"), "quant_state")
        if state is not None:
            module.training = True
            if part_of(state, "packing_format_for_cpu", False):
                module.state_dict()  # makes bitsandbytes unpack


@functools.cache
def _trainable_class(base: Any) -> Any:
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**names, "is_qat_trainable": True})
