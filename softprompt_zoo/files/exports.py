"""Reading back what `export` writes for other engines; PEFT's files are read by `peft_import`."""

import dataclasses
import functools
from collections.abc import Callable
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

Prompts = tuple[dict[str, Prompt], tuple[str, ...]]
"""Prompts by name, and the names of the active ones."""
Counts = tuple[dict[str, int], tuple[str, ...]]
"""Numbers of virtual tokens by name, and the names of the active prompts."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that `export` writes; its functions raise `CheckpointError` for damaged folders."""

    is_there: Callable[[Path], bool]
    """Returns whether a folder is in this format."""
    counts: Callable[[Path], Counts]
    """Reads the sizes of a folder's prompts, but no values."""
    read: Callable[[Path, Backbone], Prompts]
    """Reads the prompts for a model; raises `BackboneMismatchError` if they are for another one."""


def format_of(directory: Path) -> Format | None:
    """Return the format of a folder; `None` if it is in none of them."""
    return next((own for own in FORMATS if own.is_there(directory)), None)


def _read_embeddings(
    read: Callable[[Path], tuple[dict[str, Tensor], tuple[str, ...]]], directory: Path, backbone: Backbone
) -> Prompts:
    found, active = read(directory)
    return {name: _input_prompt(own, backbone, directory) for name, own in found.items()}, active


def _input_prompt(found: Tensor, backbone: Backbone, directory: Path) -> Prompt:
    if found.ndim != 2 or found.shape[1] != backbone.hidden_size:
        raise BackboneMismatchError(
            f"{directory} holds embeddings of shape {tuple(found.shape)}; this model needs (tokens, "
            f"{backbone.hidden_size}); load it onto the model it was made for"
        )
    return plain_prompt(InputTokens(found.to(torch.promote_types(backbone.dtype, torch.float32))), backbone)


def _read_keys_values(directory: Path, backbone: Backbone) -> Prompts:
    index, tokens = keys_values.read(directory)
    identity.check(index.model, backbone, str(directory))
    [site] = backbone.layers
    dtype = torch.promote_types(backbone.dtype, torch.float32)
    placed = LayerTokens({site: tokens.map(lambda layer: layer.to(dtype))})
    with fitting(f"{directory} does not match its index", kind=CheckpointError):
        placed.check(backbone, index.num_tokens, None, keys_values.TENSOR_FILE)
    return {index.name: plain_prompt(placed, backbone)}, (index.name,)


FORMATS = (
    Format(vocabulary.is_vocabulary, vocabulary.counts, functools.partial(_read_embeddings, vocabulary.read)),
    Format(embeddings.is_embeddings, embeddings.counts, functools.partial(_read_embeddings, embeddings.read)),
    Format(keys_values.is_keys_values, keys_values.counts, _read_keys_values),
)
