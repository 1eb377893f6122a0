"""The base model of a run: its tokenizer, its weights, and whether a run can use it."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from softprompt_zoo.backbone.lookup import config_value
from softprompt_zoo.embedded import EMBEDDED_MODELS, resolve_model
from softprompt_zoo.errors import UnsupportedError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from softprompt_zoo.method import Method
    from softprompt_zoo.training.objectives.rows import TokenRow


class Base:
    """A model by name: tokenizer and config are loaded at once, weights on request."""

    def __init__(self, name: str, progress: Callable[[str], None] | None = None) -> None:
        _check_place(name)
        self.name = name
        """As the user gave it."""
        self.folder = resolve_model(name, progress=progress)
        """What `from_pretrained` takes."""
        self.config: Any = _config(name, self.folder)
        """The model's config; not changed."""
        self.is_encoder_decoder: bool = bool(self.config.is_encoder_decoder)
        """Whether targets go through a separate decoder."""
        self.architecture: str = next(iter(self.config.architectures or []), "")
        """The transformers class that saved it, if known."""
        self.writes_text = _writes_text(self.config, self.architecture)
        """Whether it is a causal language model or an encoder-decoder, rather than an encoder."""
        self.tokenizer = _tokenizer(name, self.folder)
        padding, size = self.tokenizer.pad_token_id, config_value(self.config.get_text_config(), "vocab_size")
        if padding is None or (size is not None and padding >= size):  # a token that was added only to the tokenizer
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def check_writes_text(self) -> None:
        """Refuse a model that does not write text, or whose answers would never end.

        Raises:
            UnsupportedError: If it is such a model.
        """
        if not self.writes_text:
            raise UnsupportedError(
                f"{self.name} ({self.architecture or self.config.model_type}) does not write text; the commands take "
                "causal language models and encoder-decoders. For a classifier, give texts with labels, or attach the "
                "prompt in Python and train it with transformers' Trainer: "
                "zoo.get_method(name)(AutoModelForSequenceClassification.from_pretrained(…))"
            )
        if self.tokenizer.eos_token_id is None:
            raise UnsupportedError(
                f"the tokenizer of {self.name} has no end-of-sequence token, so answers would never end; "
                "set tokenizer.eos_token, save it, and give that folder"
            )

    def load(self, dtype: str = "float32") -> "PreTrainedModel":
        """Load a model that writes text, on the accelerator if there is one.

        Args:
            dtype: Number format, by its name in torch.

        Returns:
            The model, in eval mode.

        Raises:
            UnsupportedError: If it does not write text.
        """
        self.check_writes_text()
        return self.load_as("AutoModelForSeq2SeqLM" if self.is_encoder_decoder else "AutoModelForCausalLM", dtype)

    def load_as(self, auto_class: str, dtype: str, **options: Any) -> "PreTrainedModel":
        """Load the weights into a class, on the accelerator if there is one.

        Args:
            auto_class: Name of a transformers auto class.
            dtype: Number format, by its name in torch.
            **options: Further arguments of `from_pretrained`.

        Returns:
            The model, in eval mode.

        Raises:
            UnsupportedError: If there are no weights for that class, or they cannot be downloaded.
            ValueError: If they are damaged.
        """
        import torch
        from safetensors import SafetensorError
        from transformers.models.auto import modeling_auto
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model: PreTrainedModel = vars(modeling_auto)[auto_class].from_pretrained(
                self.folder, dtype=getattr(torch, dtype), **options
            )
        except SafetensorError as error:
            raise ValueError(f"the weights of {self.name} are damaged ({error}); download the model again") from error
        except OSError as error:
            if error.errno is not None:  # the system's, such as a full disk
                raise
            raise UnsupportedError(
                f"the weights of {self.name} cannot be loaded; save the model into a folder with save_pretrained, or "
                f"download all of it from the hub. transformers says: {one_line(error)}"
            ) from error
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return model.to(accelerator).eval() if accelerator is not None else model.eval()  # type: ignore[arg-type]


def fast_dtype() -> str:
    """Choose the number format that trains fastest here; the prompt itself is trained in float32 either way."""
    import torch

    if torch.accelerator.is_available():
        has_bfloat16 = torch.accelerator.current_accelerator().type != "cuda" or torch.cuda.is_bf16_supported()  # type: ignore[union-attr]
    else:
        has_bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "bfloat16" if has_bfloat16 else "float32"


def with_tokenizer(method: "Method", tokenizer: Any) -> dict[str, Any]:
    """Pass the tokenizer to a method that has an option for it, and check all options again.

    Args:
        method: The method with the user's options.
        tokenizer: The model's tokenizer.

    Returns:
        The options to add.
    """
    if "tokenizer" in method.options:
        given = type(method.options["tokenizer"]).__name__
        raise ValueError(f"the option tokenizer was given ({given}), but a run uses the model's own; leave it out")
    fields = {field.name for field in dataclasses.fields(method.config_class)}
    options = {"tokenizer": tokenizer} if "tokenizer" in fields else {}
    method.configure(**options)
    return options


def check_tokens(rows: "Sequence[TokenRow]", model: "PreTrainedModel") -> None:
    """Refuse a tokenizer that is not the model's.

    Args:
        rows: Tokenized rows.
        model: The model.

    Raises:
        UnsupportedError: If a row has an id for which the model has no embedding.
    """
    size = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    largest = max(max(row.ids) for row in rows)
    if largest >= size:
        raise UnsupportedError(
            f"the tokenizer gives the id {largest}, but the model has {size} embeddings; use the model's own tokenizer"
        )


def _config(name: str, folder: str) -> Any:
    """Load the config of a model; download it first, since the hub's errors are clearer than transformers'."""
    from transformers import AutoConfig

    if not os.path.isdir(folder):
        from huggingface_hub import hf_hub_download

        from softprompt_zoo.files.hub.problems import reading

        with reading(name, None, None, ["config.json"]):
            hf_hub_download(folder, "config.json")
    return AutoConfig.from_pretrained(folder)


def _tokenizer(name: str, folder: str) -> Any:
    """Load the tokenizer of a model."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:  # ImportError: a package that reads the tokenizer's file
        raise UnsupportedError(
            f"the tokenizer of {name} cannot be loaded; save one into its folder with tokenizer.save_pretrained. "
            f"transformers says: {one_line(error)}"
        ) from error
    return tokenizer


def _check_place(name: str) -> None:
    """Refuse paths that do not exist, which transformers would look up on the hub."""
    if name in EMBEDDED_MODELS or os.path.isdir(name):
        return
    if os.path.exists(name) or _looks_like_a_path(name):
        raise ValueError(
            f"MODEL {name!r} is not a folder; give a folder with a model and its tokenizer, a name on the hub, or one "
            f"of {', '.join(EMBEDDED_MODELS)}"
        )


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1


def _writes_text(config: Any, architecture: str) -> bool:
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    if config.is_encoder_decoder and kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return True
    if kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    may_be_encoder = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    is_decoder = config_value(config, "is_decoder", False) or architecture.endswith(("ForCausalLM", "LMHeadModel"))
    return is_decoder or not may_be_encoder
