"""Export prompts as keys and values, for engines that keep a cache of them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from softprompt_zoo.backbone import identity
from softprompt_zoo.files import keys_values
from softprompt_zoo.model.engine_prefix import engine_prefix
from softprompt_zoo.model.plain_prefix import PrefixMaker
from softprompt_zoo.operations.new_folder import check_free, moved_into_place
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.token_checks import check_range

FOLDED = "folded"
"""The name of a combination."""


@torch.no_grad()
def export_keys_values(
    model: PreTrainedModel, directory: Path, prompts: Mapping[str, Prompt], task: int | None = None
) -> None:
    """Write prompts as one prefix.

    Args:
        model: Their model. Not changed.
        directory: The folder to write; it must be missing or empty.
        prompts: The prompts by name, in order.
        task: The task to use for those that have tasks.

    Raises:
        ValueError: If the directory is not empty, or a prompt does not have that task.
        UnsupportedError: If they cannot become one prefix in an engine; says why. Nothing is written.
    """
    check_free(directory)
    maker = PrefixMaker.of(model)
    backbone = maker.backbone
    folded = engine_prefix(maker, prompts, task)
    name = next(iter(prompts)) if len(prompts) == 1 else FOLDED
    tokens = folded.merged_tokens(backbone)
    check_range(tokens.tensors(), backbone.dtype, f"prompt {name!r}")
    [(site, shapes)] = backbone.layers.items()
    own = tokens.map(lambda layer: layer.to(backbone.dtype)).at(site)
    index = keys_values.Index(
        name=name,
        num_tokens=tokens.count,
        dtype=str(backbone.dtype).removeprefix("torch."),
        windows=[shape.window for shape in shapes],
        shared_with=[shape.shared_with for shape in shapes],
        model=identity.describe(backbone),
    )
    with moved_into_place(directory) as folder:
        keys_values.write(folder, index, own, maker.stacks[site].cache_argument)  # type: ignore[arg-type]
