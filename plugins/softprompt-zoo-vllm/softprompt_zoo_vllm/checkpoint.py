"""Checking that a bank belongs to the served model, by its sizes and a sample of its embedding table."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor

import softprompt_zoo as zoo

logger = logging.getLogger(f"vllm.{__name__}")


def check_checkpoint(model_config: Any, reader: zoo.PrefixReader) -> None:
    """Refuse to serve a model with the bank of another one.

    The bank has some rows of its model's embedding table. Tensor names differ by architecture, so every table in the
    checkpoint that may be the right one is compared. Weights in other formats than safetensors are not compared, which
    is logged.

    Args:
        model_config: vLLM's `ModelConfig`.
        reader: The bank.

    Raises:
        zoo.BackboneMismatchError: If the bank is for another model.
    """
    width = model_config.hf_text_config.hidden_size
    problem = None
    for table in _tables(model_config, reader):
        problem = _problem(model_config, reader, table)
        if problem is None:
            return
    if problem is not None:
        raise problem
    logger.warning("the weights of %s were not compared with the bank %s", model_config.model, reader.address)
    problem = _problem(model_config, reader, torch.empty(0, width, device="meta"))
    if problem is not None:
        raise problem


def _problem(model_config: Any, reader: zoo.PrefixReader, sampled: Tensor) -> zoo.BackboneMismatchError | None:
    """Return how a model with these rows of a table `(ids, hidden)` differs from the bank's; `None` if it does not."""
    text = model_config.hf_text_config
    [layers] = reader.identity["backbone"]["layers"].values()  # each layer is checked together with its cache
    types = [model_config.hf_config.model_type, text.model_type]
    own = reader.identity.get("model_type")
    try:
        reader.check_embeddings(
            lambda ids: sampled,
            model_type=own if own in types else types[0],
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            layers=layers,
        )
    except zoo.BackboneMismatchError as error:
        return error
    return None


def _tables(model_config: Any, reader: zoo.PrefixReader) -> Iterator[Tensor]:
    """Yield the rows `(ids, hidden)` that the bank sampled, for each table that may be the right one."""
    sample = reader.identity.get("embeddings")
    if sample is None:
        return
    height, width = max(sample["ids"]) + 1, model_config.hf_text_config.hidden_size
    for path in sorted(_folder(model_config).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            for name in names:
                shape = file.get_slice(name).get_shape()
                if len(shape) == 2 and shape[0] >= height and shape[1] == width:
                    part = file.get_slice(name)
                    yield _scaled(torch.cat([part[token : token + 1] for token in sample["ids"]]).float(), sample)


def _scaled(rows: Tensor, sample: dict[str, Any]) -> Tensor:
    """Scale rows, as the model's embedding module may (Gemma), by the factor that best matches the sample."""
    expected, found = torch.tensor(sample["values"]), rows[:, sample["columns"]]
    scale = (expected * found).sum() / found.square().sum().clamp_min(torch.finfo(found.dtype).tiny)
    return rows * scale


def _folder(model_config: Any) -> Path:
    """Return the folder of the checkpoint, which vLLM has already downloaded or is about to."""
    folder = Path(model_config.model)
    if folder.is_dir():
        return folder
    return Path(snapshot_download(model_config.model, revision=model_config.revision, allow_patterns=["*.safetensors"]))
