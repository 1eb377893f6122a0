"""What a bank makes of a prompt before it stores it."""

from typing import Any

import torch

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.bank.restoring import encode_prompt
from softprompt_zoo.config.checks import check_boolean
from softprompt_zoo.errors import BankError, UnsupportedError
from softprompt_zoo.model.engine_prefix import check_model, engine_prefix
from softprompt_zoo.model.plain_prefix import PrefixMaker
from softprompt_zoo.prompt.fits import fitting
from softprompt_zoo.prompt.prompt import Prompt

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class StoredForm:
    """The form in which a bank stores prompts: in which numbers, and whether as prefixes for engines.

    Args:
        address: The bank, for messages.
        model: The model that it is for: itself, its sizes, or `None`.
        dtype: What virtual tokens are stored in; `None` for the dtype they have.
        as_prefix: Whether each prompt is made a plain prefix, which takes the model itself.

    Raises:
        ValueError: If a bank stores no such numbers.
        UnsupportedError: If the model is not causal, and prefixes are asked for.
    """

    def __init__(self, address: str, model: Any, dtype: torch.dtype | None, as_prefix: bool) -> None:
        _check_dtype(dtype)
        check_boolean("as_prefix", as_prefix)
        self._address = address
        self._dtype = dtype
        self._as_prefix = as_prefix
        self._maker: PrefixMaker | None = None
        if as_prefix and model is not None and not isinstance(model, Backbone):
            self._maker = PrefixMaker.of(model)
            check_model(self._maker)

    @property
    def backbone(self) -> Backbone | None:
        """Sizes of the model, where it was examined."""
        return None if self._maker is None else self._maker.backbone

    def of(self, name: str, prompt: Prompt) -> Prompt:
        """Return a prompt as it is stored.

        Args:
            name: Its name.
            prompt: The prompt. Not changed.

        Returns:
            It, or the prefix that has its outputs.

        Raises:
            BankError: If it takes the model, which the bank was opened without.
            BackboneMismatchError: If the prompt is for a model of other sizes.
            UnsupportedError: If it cannot be a prefix; says why.
        """
        if not self._as_prefix or not isinstance(prompt, Prompt):  # which is refused where all are encoded
            return prompt
        if self._maker is None:
            raise BankError(
                f"the bank {self._address} was opened without the model itself, which it takes to make prefixes of "
                f"prompts; open it with zoo.PromptBank({self._address!r}, model, as_prefix=True)"
            )
        if prompt.config.tasks is not None:
            raise UnsupportedError(
                f"prompt {name!r} has {prompt.config.tasks} tasks and a prefix holds one; make one with "
                "zoo.fold(model, …, task=…), and add that"
            )
        with fitting(f"prompt {name!r} does not fit the bank's model"):
            return engine_prefix(self._maker, {name: prompt})

    def encode(self, name: str, prompt: Prompt, backbone: Backbone) -> bytes:
        """Turn a prompt that has the form into a record; arguments and errors as of `encode_prompt`."""
        return encode_prompt(name, prompt, backbone, self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maker": None}  # a copy is opened without the model


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}, or None")
