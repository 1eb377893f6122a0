"""Try a new prompt that reads or changes the rows' text on a few words."""

import torch

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import PluginError, UnsupportedError
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.sample_text import sample_batch, sample_text

CLOSE = 1e-4
"""How much a row's tokens may differ when there are other rows, as a fraction of the largest number."""
ROUNDINGS = 8
"""The same in rounding errors of the model's dtype, if larger: tokens are computed from the model's states."""


def check_place_of_text(prompt: Prompt, backbone: Backbone) -> None:
    """Refuse a new prompt that does more than constant tokens can, on a model that has no place for that.

    Args:
        prompt: The prompt; nothing happens if its tokens are constant and it does not change the text.
        backbone: Sizes of the model.

    Raises:
        UnsupportedError: If the model reads no tokens, or has no place for other embeddings.
    """
    beyond, problem = prompt.beyond_tokens, backbone.inside.input_problem
    if beyond is None or problem is None:
        return
    if beyond.maps_text or (beyond.reads_text and not backbone.inside.reads_tokens):
        raise UnsupportedError(
            f"method {prompt.method!r} {beyond.description}, but this model has no place for that: {problem}; choose a "
            "method on keys and values"
        )


@torch.no_grad()
def check_text_hooks(prompt: Prompt, backbone: Backbone) -> None:
    """Check that a new prompt's hooks on the text keep their contract.

    Args:
        prompt: The prompt; nothing happens if its tokens are constant and it does not change the text.
        backbone: Sizes of the model.

    Raises:
        PluginError: If a row's tokens depend on other rows or on padding.
        ShapeError: If a shape is wrong.
    """
    beyond = prompt.beyond_tokens
    if beyond is None or backbone.device.type == "meta":
        return
    was_training = prompt.learned.training
    prompt.learned.eval()
    try:
        if beyond.makes_rows:
            _check_rows(prompt, backbone)
        if beyond.maps_text:
            prompt.map_text(backbone, sample_text(backbone))
    finally:
        prompt.learned.train(was_training)


def _check_rows(prompt: Prompt, backbone: Backbone) -> None:
    """Refuse tokens of a row that differ when a longer row is in the batch."""
    texts = sample_text(backbone), sample_batch(backbone)
    alone, in_batch = (prompt.place_rows(backbone, text)[0].tokens.tensors() for text in texts)
    allowed = max(CLOSE, ROUNDINGS * torch.finfo(backbone.dtype).eps)
    for name, expected in alone.items():
        difference = float((in_batch[name] - expected).abs().max())
        if difference > allowed * max(1.0, float(expected.abs().max())):
            raise PluginError(
                f"{prompt.loaded.describe('build_virtual_tokens')} builds other {name} for a row in a batch, next to a "
                f"longer row, than for the row alone (they differ by {difference:.2g}); a row's tokens may depend only "
                "on its own text, which text.mask tells apart from padding"
            )
