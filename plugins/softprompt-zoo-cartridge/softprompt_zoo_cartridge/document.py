"""The document that a cartridge's teacher sees, given anew after loading."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

import softprompt_zoo as zoo


def set_document(
    model: Any, document: "str | Sequence[int] | Tensor", *, tokenizer: Any = None, name: str | None = None
) -> None:
    """Give a cartridge the document that its teacher sees: after loading, for the document is not saved.

    Args:
        model: A model with a cartridge. Only the cartridge is changed.
        document: The whole text, or its token ids.
        tokenizer: The model's tokenizer, for a text.
        name: The prompt's name; by default the active one.

    Raises:
        ValueError: If several prompts are active and none is named, or the document cannot be tokenised.
        UnsupportedError: If the prompt is no cartridge, or merged, or the document too long for the model.
    """
    host = model.prompts
    if name is None and len(host.active) != 1:
        raise ValueError(f"{len(host.active)} prompts are active; name the cartridge with name=…")
    prompt = host[name or host.active[0]]
    if prompt.is_merged or prompt.method != "cartridge":
        kind = f"a merged {prompt.method}" if prompt.is_merged else f"of the method {prompt.method}"
        raise zoo.UnsupportedError(f"prompt {name or host.active[0]!r} is {kind}; a document is for a cartridge only")
    prompt.learned.set_document(document, prompt.config, host.backbone, tokenizer)
