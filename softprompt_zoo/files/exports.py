"""Reading back what `export` writes for other engines; PEFT's files are read by `peft_import`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from softprompt_zoo.backbone import identity
from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import BackboneMismatchError, CheckpointError
from softprompt_zoo.files import embeddings, keys_values, vocabulary
from softprompt_zoo.prompt.fits import fitting
from softprompt_zoo.prompt.plain import plain_prompt
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.tokens.input_tokens import InputTokens
from softprompt_zoo.tokens.layer_tokens import LayerTokens

SavedPrompts = tuple[dict[str, Prompt], tuple[str, ...]]
"""Prompts by name, and the names of the active ones."""


def read_vocabulary(directory: Path, backbone: Backbone) -> SavedPrompts:
    """Read the rows of an extended embedding table as prompts; errors as in `read_embeddings`."""
    return _input_prompts(*vocabulary.read(directory), backbone, directory)


def read_embeddings(directory: Path, backbone: Backbone) -> SavedPrompts:
    """Read embeddings as prompts.

    Args:
        directory: The folder.
        backbone: Sizes of the model that they are for.

    Returns:
        The prompts by name, and the names of the active ones.

    Raises:
        BackboneMismatchError: If they are for another model.
        CheckpointError: If the folder is damaged.
    """
    return _input_prompts(*embeddings.read(directory), backbone, directory)


def _input_prompts(
    found: Mapping[str, Tensor], active: tuple[str, ...], backbone: Backbone, directory: Path
) -> SavedPrompts:
    return {name: _input_prompt(own, backbone, directory) for name, own in found.items()}, active


def _input_prompt(found: Tensor, backbone: Backbone, directory: Path) -> Prompt:
    if found.ndim != 2 or found.shape[1] != backbone.hidden_size:
        raise BackboneMismatchError(
            f"{directory} holds embeddings of shape {tuple(found.shape)}; this model needs (tokens, "
            f"{backbone.hidden_size}); load it onto the model it was made for"
        )
    return plain_prompt(InputTokens(found.to(torch.promote_types(backbone.dtype, torch.float32))), backbone)


def read_keys_values(directory: Path, backbone: Backbone) -> SavedPrompts:
    """Read keys and values as a prefix; result and errors as in `read_embeddings`."""
    index, tokens = keys_values.read(directory)
    identity.check(index.model, backbone, str(directory))
    [site] = backbone.layers
    dtype = torch.promote_types(backbone.dtype, torch.float32)
    placed = LayerTokens({site: tokens.map(lambda layer: layer.to(dtype))})
    with fitting(f"{directory} does not match its index", kind=CheckpointError):
        placed.check(backbone, index.num_tokens, None, keys_values.TENSOR_FILE)
    return {index.name: plain_prompt(placed, backbone)}, (index.name,)
