"""Whether a classifier's head reads only one token: determined by disturbing the others."""

from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.trial.twin import twin

TEXT_LENGTH = 4
"""Number of tokens in the text for the trial."""


@torch.no_grad()
def check_pooling(model: Any, name: str) -> None:
    """Refuse to let a head read a prompt's first token if it reads all tokens, for example their mean.

    Args:
        model: The prompted model. Not changed: a copy of it is tried.
        name: The prompt.

    Raises:
        UnsupportedError: If the head reads tokens other than the first.
    """
    backbone = model.prompts.backbone
    if backbone.device.type == "meta":
        return
    tried = twin(model)
    ids = torch.arange(TEXT_LENGTH, device=backbone.device)[None] % backbone.vocab_size
    expected: Tensor = tried(input_ids=ids, prompts=name).logits
    stack = next(iter(tried._softprompt_stacks.values())).module
    stack.register_forward_hook(_disturb)
    if not torch.equal(tried(input_ids=ids, prompts=name).logits, expected):
        raise UnsupportedError(
            f"pools_prompt is True, but the head of {type(model).__name__} reads more tokens than the first one, in "
            "PEFT also the virtual ones; leave it out"
        )


def _disturb(module: Any, args: Any, output: Any) -> Any:
    """Change what a stack returns for all tokens except the first. A forward hook."""
    states = output["last_hidden_state"]
    output["last_hidden_state"] = torch.cat([states[:, :1], states[:, 1:] + 1.0], dim=1)
    return output
