"""Converting a prompt to the form in which a bank stores it."""

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
    """The form in which a bank stores prompts: their dtype, and whether they become prefixes for engines.

    Args:
        address: The bank, for messages.
        model: The model it is for: the model itself, its sizes, or `None`.
        dtype: The dtype in which virtual tokens are stored; `None` keeps their own.
        as_prefix: Whether each prompt is converted to a plain prefix, which requires the model itself.

    Raises:
        ValueError: If a bank cannot store this dtype.
        UnsupportedError: If `as_prefix` is set and the model is not causal.
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
        """Sizes of the model; `None` if it was not examined."""
        return None if self._maker is None else self._maker.backbone

    def of(self, name: str, prompt: Prompt) -> Prompt:
        """Return a prompt as it is stored.

        Args:
            name: Its name.
            prompt: The prompt. Not changed.

        Returns:
            The prompt itself, or a prefix with the same outputs.

        Raises:
            BankError: If this requires the model, but the bank was opened without it.
            BackboneMismatchError: If the prompt is for a model with different sizes.
            UnsupportedError: If it cannot be a prefix; the message says why.
        """
        if not self._as_prefix or not isinstance(prompt, Prompt):  # refused when it is encoded
            return prompt
        if self._maker is None:
            raise BankError(
                f"the bank {self._address} was opened without the model itself, which is needed to turn prompts into "
                f"prefixes; open it with zoo.PromptBank({self._address!r}, model, as_prefix=True)"
            )
        if prompt.config.tasks is not None:
            raise UnsupportedError(
                f"prompt {name!r} has {prompt.config.tasks} tasks, but a prefix holds only one; make one with "
                "zoo.fold(model, …, task=…) and add that"
            )
        with fitting(f"prompt {name!r} does not fit the bank's model"):
            return engine_prefix(self._maker, {name: prompt})

    def encode(self, name: str, prompt: Prompt, backbone: Backbone) -> bytes:
        """Encode a prompt in this form as a record; arguments and errors as in `encode_prompt`."""
        return encode_prompt(name, prompt, backbone, self._dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maker": None}  # a copy is opened without the model


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}, or None")
