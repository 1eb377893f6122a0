"""Adapter tuning: small bottleneck networks after the blocks of a frozen model.

Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019 (arXiv 1902.00751), section 2.1:
`h + up(gelu(down(h)))`, near the identity at the start. Differs: one adapter after each block rather than two inside
it, since any model's blocks can be found by trying; the up projection starts at zero.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.writing import write_tensors
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.candidates.candidate import Fitted, Options
from softprompt_zoo.training.comparison.candidates.restoring import frozen, head_to_train, save_head
from softprompt_zoo.training.comparison.candidates.sizing import sized
from softprompt_zoo.training.comparison.choices import Choices
from softprompt_zoo.training.comparison.trial import Trial
from softprompt_zoo.trial.examination import examine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BOTTLENECK = 64
"""Width of the bottleneck: the middle of the sizes that the paper tries, 8, 64 and 256."""
PLACE = "bottleneck_adapters"
"""Name of the model's submodule that holds the adapters during training."""


class AdapterTuning:
    """A bottleneck adapter after each block; a `Candidate`."""

    name = "adapter-tuning"
    recipe: Recipe | None = Recipe(
        learning_rate=1e-3, steps=200, source="between the paper's 3e-4 and 3e-3, section 3.2; our choice"
    )
    is_trained = True
    varies = True

    def variants(self, choices: Choices, bench: Bench) -> Sequence[Options]:
        """Return its only variant."""
        if choices.parameters is not None:
            return [sized(self, {}, "bottleneck", choices.parameters, bench)]
        return [{"bottleneck": BOTTLENECK}]

    @contextlib.contextmanager
    def put_on(self, bench: Bench, trial: Trial) -> Iterator[Fitted]:
        """Add adapters after the blocks, and remove them again."""
        from transformers import Trainer

        model = bench.model
        blocks = find_blocks(model)
        adapters = [Adapter(width, trial.options["bottleneck"]).to(model.device) for width in blocks.values()]
        with frozen(model), head_to_train(bench) as head:
            head.requires_grad_(True)
            model.add_module(PLACE, nn.ModuleList(adapters))
            handles = [
                block.register_forward_hook(adapter.follow) for block, adapter in zip(blocks, adapters, strict=True)
            ]

            def save(folder: Path) -> None:
                write_tensors(folder / "adapters.safetensors", model.get_submodule(PLACE).state_dict(), {})
                save_head(head, folder)

            try:
                yield Fitted(model=model, trainer=Trainer, save=save)
            finally:
                for handle in handles:
                    handle.remove()
                delattr(model, PLACE)


class Adapter(nn.Module):
    """A bottleneck with a residual connection."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Adapt hidden states, `(..., width)`; computes in float32."""
        adapted: Tensor = self.up(functional.gelu(self.down(hidden.float())))
        return hidden + adapted.to(hidden.dtype)

    def follow(self, block: nn.Module, arguments: Any, output: Any) -> Any:
        """Adapt the output of a block; a torch hook. Other parts of a tuple, such as a cache, are left alone."""
        return self(output) if isinstance(output, Tensor) else (self(output[0]), *output[1:])


def find_blocks(model: "PreTrainedModel") -> Mapping[nn.Module, int]:
    """Find the blocks of a model: the entries of its layer lists that contain its attention modules.

    Args:
        model: The model. Not changed.

    Returns:
        The width of the hidden states by block, in the order of the layers.

    Raises:
        UnsupportedError: If there are none.
    """
    backbone, _ = examine(model)
    names = {name for found in backbone.module_names.values() for name in found}
    modules = dict(model.named_modules())
    blocks = {_block_around(name, modules): None for name in sorted(names, key=_numbers)}
    found = [block for block in blocks if block is not None]
    if not found:
        raise UnsupportedError(f"{type(model).__name__} has no list of blocks to put adapters after")
    return dict.fromkeys(found, backbone.hidden_size)


def _block_around(name: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Return the outermost entry of a module list that contains a module."""
    parts = name.split(".")
    paths = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for outer, inner in itertools.pairwise(paths):
        if isinstance(modules[outer], nn.ModuleList):
            return modules[inner]
    return None


def _numbers(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts layer 10 after layer 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
