"""Converting a prompt to its record and back."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.bank.records import INSTEAD, Record, decode, encode
from softprompt_zoo.errors import (
    CheckpointError,
    UnsupportedError,
)
from softprompt_zoo.files.damage import check_numbers, is_finite
from softprompt_zoo.model.lending import Ready
from softprompt_zoo.prompt.fits import fitting, fitting_head, fitting_tokens
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.token_checks import check_range
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.tokens.kinds import PlainTokens, check_virtual_tokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

HEAD = "head."
"""Prefix of the names of a trained head's tensors."""


def encode_prompt(name: str, prompt: Prompt, backbone: Backbone, dtype: torch.dtype | None) -> bytes:
    """Encode a prompt as a record of its plain tokens and its trained head.

    Args:
        name: Its name.
        prompt: The prompt. Not changed.
        backbone: Sizes of the bank's model.
        dtype: The dtype in which to store virtual tokens; `None` keeps their own.

    Returns:
        The record.

    Raises:
        TypeError: If it is not a prompt.
        BackboneMismatchError: If it is for a model with different sizes.
        UnsupportedError: If it has no values, values that `dtype` cannot hold, or its own wrappers.
    """
    if not isinstance(prompt, Prompt):
        raise TypeError(f"prompt {name!r} is {type(prompt).__name__}; expected a prompt, such as model.prompts[…]")
    prompt.refuse_weight(f"prompt {name!r}", "a bank")
    _refuse_wrappers(name, prompt)
    with fitting(f"prompt {name!r} does not fit the bank's model"):
        tokens = fitting_tokens(prompt, backbone, f"prompt {name!r}")
    tensors = {key: _cast(tensor, key, name, dtype) for key, tensor in tokens.tensors().items()}
    if prompt.head is not None:
        tensors |= {HEAD + key: tensor for key, tensor in prompt.head.state_dict().items()}
    method = prompt.loaded
    return encode(name, tensors, method.name, method.distribution, method.version, prompt.config.to_dict())


def _refuse_wrappers(name: str, prompt: Prompt) -> None:
    """Refuse wrappers, which would have no effect on a prompt from a bank."""
    if prompt.wrappers:
        raise UnsupportedError(
            f"prompt {name!r} has wrappers around its hooks ({', '.join(prompt.wrappers)}), but a bank keeps only "
            "virtual tokens, without wrappers; save it with model.save_pretrained, which keeps them"
        )


class RecordReader:
    """Makes prompts from records, at little cost each if many were trained alike.

    Args:
        bank: The bank, for messages.
        backbone: Sizes of the model.
        device: The device to put them on.
        dtype: The dtype of the virtual tokens; `None` for the one they are stored in.
    """

    def __init__(self, bank: str, backbone: Backbone, device: torch.device, dtype: torch.dtype | None) -> None:
        self._bank = bank
        self._backbone = backbone
        self._device = device
        self._dtype = dtype
        self._templates: dict[bytes, Prompt] = {}

    def prompt(self, name: str, data: memoryview) -> Prompt:
        """Make a prompt from a record.

        Args:
            name: Its name.
            data: The record; the prompt does not reference it.

        Returns:
            The prompt, merged, in eval mode and without gradients.

        Raises:
            CheckpointError: If the record is damaged or does not fit the method or the model.
            UnknownMethodError: If its method is not installed.
        """
        record = decode(name, data, self._bank)
        template = self._template(name, record)
        tokens, head = self._parts(name, record)
        prompt = Prompt(template.loaded, template.config, PlainTokens(tokens), head).requires_grad_(False)
        with self._fitting(name):
            self._check(prompt.merged_tokens(self._backbone), template)
        return prompt.eval()  # as merged prompts are used

    @torch.inference_mode(False)  # otherwise the tensors could not be used in training later
    @torch.no_grad()
    def ready(self, name: str, data: memoryview) -> Ready:
        """Prepare a record for a model's rows; arguments and errors as in `prompt`."""
        record = decode(name, data, self._bank)
        template = self._template(name, record)
        tokens, head = self._parts(name, record)
        template.learned = _Stored(tokens)
        size = sum(t.nbytes for t in tokens.values())
        size += 0 if head is None else sum(parameter.nbytes for parameter in head.parameters())
        with self._fitting(name):
            placement = template.place(self._backbone)
            self._check(placement.tokens, template)
        return Ready(record.stamp, placement, head, size)

    def _check(self, tokens: VirtualTokens, template: Prompt) -> None:
        check_virtual_tokens(tokens, self._backbone, template.num_virtual_tokens, template.config.tasks, "the entry")

    def _fitting(self, name: str) -> AbstractContextManager[None]:
        return fitting(f"entry {name!r} of {self._bank} does not fit this model", kind=CheckpointError)

    def _parts(self, name: str, record: Record) -> tuple[dict[str, Tensor], nn.ModuleDict | None]:
        where = f"entry {name!r} of {self._bank}"
        _check_finite(record.tensors, where)
        tokens, state = _split(record.tensors)
        if self._dtype is not None:
            check_range(tokens, self._dtype, where)
        tokens = {key: tensor.to(self._device, self._dtype) for key, tensor in tokens.items()}
        head = fitting_head(state, self._backbone, where)
        # In eval mode: no dropout while the model trains.
        return tokens, None if head is None else head.requires_grad_(False).eval().to(self._device)

    def _template(self, name: str, record: Record) -> Prompt:
        """Make a prompt without tokens, shared by records with the same header."""
        if record.header_text not in self._templates:
            where = f"entry {name!r} of {self._bank}"
            header = record.header
            method = registry.lookup_saved(header.method, header.distribution, header.version, where)
            try:
                config = method.read_options(record.header.config)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{where} does not fit its method {method.name!r}: {error}") from error
            if not all(tensor.is_floating_point() for tensor in _tokens(record).values()):
                raise CheckpointError(f"{where} has virtual tokens that are not floating-point numbers; {INSTEAD}")
            self._templates[record.header_text] = Prompt(method, config, _Stored({}))
        return self._templates[record.header_text]


def _tokens(record: Record) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in record.tensors.items() if not key.startswith(HEAD)}


class _Stored(PlainTokens):
    """Untrained plain tokens, not as torch parameters, which take longer to create than the tokens to read."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        nn.Module.__init__(self)
        self.__dict__["tensors"] = tensors


def _cast(tensor: Tensor, key: str, name: str, dtype: torch.dtype | None) -> Tensor:
    check_numbers({key: tensor}, f"prompt {name!r}")
    if dtype is None:
        return tensor
    cast = tensor.to(dtype)
    if not is_finite(cast):
        raise UnsupportedError(
            f"{key!r} of prompt {name!r} has values up to {float(tensor.abs().max()):.3g}, which {dtype} cannot hold; "
            "open the bank with another dtype"
        )
    return cast


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(
                f"{where} holds NaN or infinity in {key!r}; add the prompt again with overwrite=True, or delete it"
            )


def _split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an entry's tensors into those of its tokens and those of its trained head."""
    head = {key.removeprefix(HEAD): tensor for key, tensor in tensors.items() if key.startswith(HEAD)}
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(HEAD)}, head
