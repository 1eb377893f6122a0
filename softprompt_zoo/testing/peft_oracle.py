"""PEFT as the oracle of exports and imports (promise 8)."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.peft_folder import CONFIG_FILE
from softprompt_zoo.files.reading import read_json
from softprompt_zoo.operations.load_and_export import export, load
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.models import tiny_model
from softprompt_zoo.testing.subject import DECODER_LENGTH, Subject, random_text
from softprompt_zoo.tokens.input_tokens import InputTokens

CANNOT_RUN = {
    "albert": "makes a prompt of the hidden width, which this model's embeddings do not have",
    "electra": "makes a prompt of the hidden width, which this model's embeddings do not have",
    "distilbert": "asks for token_dim or num_attention_heads, which it does not find in this config",
    "t5gemma": "asks for token_dim or num_attention_heads, which it does not find in this config",
    "longt5": "needs the sizes of layers that prompts cannot enter",
    "opt_narrow": "makes virtual tokens as wide as the layers, not the embedding table",
    "mpt": "asks for num_attention_heads, which it does not find in this config",
    "whisper": "passes no sound features to the encoder",
    "modernbert": "extends the mask for past_key_values, which this model does not accept",
}
"""Architectures on which PEFT's own prompts fail, and how; with ours it gets the sizes that it does not find."""
SIZES = ("num_layers", "num_attention_heads", "token_dim")
"""Fields in which an export passes PEFT what it may not find in the model's config."""
CANNOT_RUN_EXPORTS = {"whisper": CANNOT_RUN["whisper"]}
"""Architectures on which our exports fail, too."""


def check_export(subject: Subject, text: Tensor, directory: Path) -> None:
    """Compare the outputs of an exported prompt in PEFT with ours.

    Args:
        subject: A prompted model.
        text: Token ids `(1, length)`, unpadded: PEFT itself depends on left padding.
        directory: An empty folder.
    """
    peft = pytest.importorskip("peft")
    labels = _labels(subject)
    expected = subject.logits(text, **labels)
    try:
        export(subject.model, directory, to="peft")
    except UnsupportedError as error:
        assert not list(directory.iterdir()), "a refused export wrote files"
        pytest.skip(f"refused, as documented: {error}")
    base = Subject(subject.architecture, tiny_model(subject.architecture))
    plain = base.logits(text, **labels)
    dropped = _dropped_sizes(peft.PeftConfig.from_pretrained(directory), directory)
    known = {**CANNOT_RUN_EXPORTS, **(CANNOT_RUN if dropped else {})}
    with _peft_may_fail(subject.architecture, known):
        wrapped = Subject(subject.architecture, peft.PeftModel.from_pretrained(base.model, directory))
        logits = _logits(wrapped, base, text, **labels, **subject.tasks(text))
    assert not torch.allclose(logits, plain, atol=1e-3), "the exported prompt has no effect"
    assert_equal(logits, expected, "PEFT's logits")


def check_import(subject: Subject, text: Tensor, directory: Path) -> None:
    """Compare the outputs of a PEFT prompt with those of its import.

    Args:
        subject: A prompted model; it determines which kind of tokens the method has.
        text: Token ids `(1, length)`.
        directory: An empty folder.
    """
    peft = pytest.importorskip("peft")
    prompts = subject.model.prompts
    prompt = prompts["default"]
    is_input = isinstance(prompt.place(prompts.backbone).tokens, InputTokens)
    kinds = {"PROMPT_TUNING": peft.PromptTuningConfig, "PREFIX_TUNING": peft.PrefixTuningConfig}
    kind = next((kinds[name] for name in prompt.loaded.peft_types if name in kinds), None)
    if kind is None:
        pytest.skip("the method loads none of PEFT's plain prompt types; its own types have separate tests")
    _skip_where_peft_differs(prompts.backbone, is_input)
    options = _peft_options(subject, prompt.num_virtual_tokens, is_input)
    base = Subject(subject.architecture, tiny_model(subject.architecture))
    with _peft_may_fail(subject.architecture, CANNOT_RUN):
        wrapped = Subject(subject.architecture, peft.get_peft_model(base.model, kind(**options)).eval())
        expected = _logits(wrapped, base, text)
    wrapped.model.save_pretrained(directory)
    fresh = Subject(subject.architecture, tiny_model(subject.architecture))
    plain = fresh.logits(text)
    load(fresh.model, directory)
    assert not torch.allclose(expected, plain, atol=1e-3), "PEFT's prompt has no effect"
    assert_equal(fresh.logits(text), expected, "logits of PEFT's prompt")


def _skip_where_peft_differs(backbone: Backbone, is_input: bool) -> None:
    if is_input and backbone.inside.scales_ids:
        pytest.skip("PEFT passes this model embeddings, which it does not scale, although it scales those of ids")
    if not is_input and not backbone.takes_cache:
        pytest.skip("PEFT passes a prefix to the model as past_key_values, which this model does not accept")


def _peft_options(subject: Subject, num_virtual_tokens: int, is_input: bool) -> dict[str, Any]:
    """Return the options of PEFT's config for a subject's model."""
    backbone = subject.model.prompts.backbone
    options: dict[str, Any] = {"num_virtual_tokens": num_virtual_tokens, "task_type": _peft_task(subject)}
    if subject.is_encoder_decoder:
        options["num_layers"] = len(backbone.layers.get("decoder", ())) or 2
    if not is_input:
        shape = backbone.layers[backbone.kind.site][0]
        if subject.is_encoder_decoder or shape.kv_heads == 1:  # it does not recognize Falcon's single head
            options |= {"token_dim": shape.kv_heads * shape.head_dim, "num_attention_heads": shape.kv_heads}
    return options


def _peft_task(subject: Subject) -> str:
    if subject.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if subject.is_causal else "FEATURE_EXTRACTION"


@contextlib.contextmanager
def _peft_may_fail(architecture: str, known: Mapping[str, str]) -> Iterator[None]:
    """Skip if PEFT is known to fail; otherwise its failure fails the test."""
    try:
        yield
    except Exception as error:
        if architecture not in known:
            raise
        pytest.skip(f"PEFT cannot run on {architecture}: it {known[architecture]}: {error}")


def _dropped_sizes(config: Any, directory: Path) -> list[str]:
    """List the sizes in an export that PEFT's own config clears when it reads them, as in CPT."""
    fields = read_json(directory / CONFIG_FILE)
    return [name for name in SIZES if fields.get(name) is not None and getattr(config, name) is None]


def _labels(subject: Subject) -> dict[str, Tensor]:
    """Return an encoder-decoder's decoder text as labels: some of PEFT's prompts ignore `decoder_input_ids`."""
    return {"labels": random_text(DECODER_LENGTH, 78)} if subject.is_encoder_decoder else {}


def _logits(wrapped: Subject, base: Subject, text: Tensor, **more: Any) -> Tensor:
    """Run a PEFT model and cut off the virtual positions, which it leaves in the output."""
    mask = torch.ones_like(text)
    with torch.no_grad():
        output: Any = wrapped.model(**base.inputs(text, mask, **more))
    logits: Tensor = output.logits
    return logits if base.is_encoder_decoder else logits[:, -text.shape[1] :]
