"""Checks of single tensors that a hook returned."""

from torch import Tensor

from softprompt_zoo.errors import ShapeError
from softprompt_zoo.tokens.layer_shape import LayerShape


def check_shape(tensor: object, expected: tuple[int, ...], what: str, source: str) -> None:
    """Check one tensor that a hook returned.

    Args:
        tensor: The returned value.
        expected: The shape it should have.
        what: Its name, for the message.
        source: Plugin and hook, for the message.

    Raises:
        ShapeError: If it is not a floating-point tensor of that shape.
    """
    shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    if shape != expected:
        raise ShapeError(f"{source} returned {what} of shape {shape}; expected {expected}")
    if isinstance(tensor, Tensor) and not tensor.is_floating_point():
        raise ShapeError(f"{source} returned {what} of dtype {tensor.dtype}; expected floating-point numbers")


def check_gate(gate: object, shape: LayerShape, what: str, source: str) -> None:
    """Check the gate of one layer.

    Args:
        gate: `(heads,)` or `(1,)`.
        shape: Sizes of the layer.
        what: The gate's name, for the message.
        source: Plugin and hook, for the message.

    Raises:
        ShapeError: If it has another shape or a wrong dtype.
    """
    if not isinstance(gate, Tensor) or tuple(gate.shape) != (1,):
        check_shape(gate, (shape.heads,), what, source)
