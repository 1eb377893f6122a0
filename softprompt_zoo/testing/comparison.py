"""The criterion for two tensors to be equal."""

from torch import Tensor

TOLERANCE = 1e-5
"""Allowed difference as a fraction of `max(1, largest value)`, in float32."""


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    """Fail unless two tensors agree within the suite's tolerance.

    Args:
        actual: The computed tensor.
        expected: The expected tensor, of the same shape.
        what: The name of the comparison, for the message.

    Raises:
        AssertionError: If they differ.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    scale = max(1.0, float(expected.detach().abs().max()))
    difference = float((actual - expected).detach().abs().max())
    assert difference <= TOLERANCE * scale, f"{what}: differs by {difference:.2e} at a scale of {scale:.1f}"
