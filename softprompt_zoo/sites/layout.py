"""Where text and virtual tokens are: virtual ones before the text as real positions, or inside it."""

import dataclasses

from torch import Tensor

from softprompt_zoo.shapes import Float, Int, Shaped


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the text was placed."""

    virtual: int
    """Number of virtual positions before the text in the longest row."""
    text_index: Int[Tensor, "rows length"] | None
    """Position of each text token; `None` if it is `virtual + i` everywhere."""

    def text_only(self, states: Shaped[Tensor, "..."], dim: int = 1) -> Shaped[Tensor, "..."]:
        """Select the text's positions from a tensor.

        Args:
            states: `(rows, …)` with all positions along `dim`.
            dim: The axis of positions.

        Returns:
            The tensor with only the text's positions along `dim`, in the caller's order.
        """
        if self.text_index is None:
            return states.narrow(dim, self.virtual, states.shape[dim] - self.virtual)
        index = self.text_index.repeat_interleave(states.shape[0] // self.text_index.shape[0], dim=0)  # beams
        shape, expanded = [1] * states.ndim, [*states.shape]
        shape[0], shape[dim] = index.shape
        expanded[dim] = index.shape[1]
        return states.gather(dim, index.view(shape).expand(expanded))


@dataclasses.dataclass(frozen=True)
class Slots:
    """Which virtual tokens are inside the text, and where."""

    index: Int[Tensor, "rows length"]
    """Index of the virtual token of the row's prompts at each place, -1 for text."""
    table: Float[Tensor, "combinations tokens hidden"]
    """Per combination, its virtual tokens at the input embeddings, prompt after prompt, padded to the longest."""
    in_generate: bool
    """Whether `generate` runs the forward: its text grows after the slots, and beams repeat the rows."""
