"""A quantized base that is trained on: what transformers' `Trainer` asks of it, and what bitsandbytes does to it.

`Trainer` takes a quantized model if it is PEFT's, or if its quantizer says that the model is trained as it is. So a
prompted model shows its quantizer with that answer; whether gradients get through is still its `is_trainable`.

On a CPU bitsandbytes packs the 4 bits of a layer anew in its first forward in eval mode without gradients. Packed, it
rounds its scales and is left out of gradients, without an error. A layer in training mode computes the same unpacked.
"""

import functools
from typing import Any

from torch import nn

from softprompt_zoo.backbone.lookup import part_of


def trainable_view(quantizer: Any) -> Any:
    """Return a quantizer that says of its model that it is trained as it is.

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
    """Put the layers that would be packed into training mode; what is packed already is unpacked.

    Args:
        model: Any module. Changed in place.
    """
    for module in model.modules():
        state = part_of(module._parameters.get("weight"), "quant_state")
        if state is not None:
            module.training = True
            if part_of(state, "packing_format_for_cpu", False):
                module.state_dict()  # which bitsandbytes unpacks for


@functools.cache
def _trainable_class(base: Any) -> Any:
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**names, "is_qat_trainable": True})
