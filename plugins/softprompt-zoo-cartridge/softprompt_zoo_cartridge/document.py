"""The document that a cartridge's teacher sees; it must be given again after loading."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

import softprompt_zoo as zoo
from softprompt_zoo_cartridge.text import document_ids


class Document:
    """The token ids `(tokens,)` of a document, and the model's keys and values of them."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self._read: tuple[Any, zoo.LayerTokens] | None = None

    @classmethod
    def given(cls, document: Any, config: Any, backbone: zoo.Backbone, tokenizer: Any) -> Self:
        """Tokenize the document that the user gave.

        Args:
            document: A text, or token ids.
            config: The user's options.
            backbone: Sizes of the model.
            tokenizer: The model's tokenizer, for a text.

        Raises:
            ValueError: If the document cannot be tokenized.
            UnsupportedError: If it leaves no room for text in the model's positions.
        """
        ids = document_ids(document, tokenizer, chat=config.chat, vocab_size=backbone.vocab_size)
        if backbone.max_positions is not None and len(ids) >= backbone.max_positions:
            raise zoo.UnsupportedError(
                f"document has {len(ids)} tokens, which leaves no room for text in the model's "
                f"{backbone.max_positions} positions; give at most {backbone.max_positions - 1}, or train with "
                "loss='tokens' on conversations of self_study, which shows the model a chunk at a time"
            )
        return cls(ids)

    @torch.no_grad()
    def states(self, backbone: zoo.Backbone, device: torch.device) -> zoo.LayerTokens:
        """Return the keys and values of the whole document, which the model reads only once."""
        ids = self.ids.to(device)
        word = backbone.embed(ids[:1])
        place = (word.device, word.dtype)  # the model may have been moved or cast since
        if self._read is None or self._read[0] != place:
            self._read = (place, backbone.keys_values(ids))
        return self._read[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None}


def needed(document: Document | None, what: str) -> Document:
    """Return a document, which must exist.

    Args:
        document: The cartridge's document.
        what: Why it is needed, for the message.

    Raises:
        UnsupportedError: If there is none.
    """
    if document is None:
        raise zoo.UnsupportedError(
            f"this cartridge {what} but has no document, which is not saved; give it with "
            "softprompt_zoo_cartridge.set_document(model, document, tokenizer=…)"
        )
    return document


def set_document(
    model: Any, document: "str | Sequence[int] | Tensor", *, tokenizer: Any = None, name: str | None = None
) -> None:
    """Give a cartridge its teacher's document; needed after loading because the document is not saved.

    Args:
        model: A model with a cartridge. Only the cartridge is changed.
        document: The whole text, or its token ids.
        tokenizer: The model's tokenizer, for a text.
        name: The prompt's name; by default the active one.

    Raises:
        ValueError: If several prompts are active and no name is given, or the document cannot be tokenized.
        UnsupportedError: If the prompt is not a cartridge, or is merged, or the document is too long for the model.
    """
    prompt = cartridge_of(model, name)
    prompt.learned.document = Document.given(document, prompt.config, model.prompts.backbone, tokenizer)


def cartridge_of(model: Any, name: str | None) -> Any:
    """Return a model's prompt, which must be a cartridge that is not merged.

    Args:
        model: A prompted model.
        name: The prompt's name; `None` for the active one.

    Raises:
        ValueError: If several prompts are active and no name is given.
        UnsupportedError: If it is not such a prompt.
    """
    host = model.prompts
    if name is None and len(host.active) != 1:
        raise ValueError(f"{len(host.active)} prompts are active; name the cartridge with name=…")
    prompt = host[name or host.active[0]]
    if prompt.is_merged or prompt.method != "cartridge":
        kind = f"a merged {prompt.method}" if prompt.is_merged else f"of the method {prompt.method}"
        raise zoo.UnsupportedError(f"prompt {name or host.active[0]!r} is {kind}; only a cartridge has a document")
    return prompt
