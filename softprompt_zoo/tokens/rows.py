"""Virtual tokens that differ for each row of a batch, as a hook returns them."""

from torch import Tensor

from softprompt_zoo.errors import ShapeError
from softprompt_zoo.shapes import Float
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def split_rows(tokens: object, rows: int, source: str) -> list[VirtualTokens]:
    """Split tokens whose tensors all have a leading axis of rows.

    Args:
        tokens: What a hook returned.
        rows: Rows of the text that they were made from.
        source: Plugin and hook, for the message.

    Returns:
        The tokens of each row.

    Raises:
        ShapeError: If they are not virtual tokens, or a tensor has a different number of rows.
    """
    if not isinstance(tokens, VirtualTokens):
        raise ShapeError(
            f"{source} returned {type(tokens).__name__}; expected softprompt_zoo.InputTokens or LayerTokens"
        )

    def checked(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not isinstance(tensor, Tensor) or not tensor.ndim or tensor.shape[0] != rows:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ShapeError(
                f"{source} returned a tensor of shape {found} for a text of {rows} rows; it asks for the text, so "
                f"every tensor needs an axis of rows in front: expected ({rows}, ...)"
            )
        return tensor

    tokens.map(checked, gates=checked)
    return [tokens.map(lambda tensor: tensor[row], gates=lambda gate: gate[row]) for row in range(rows)]  # noqa: B023
