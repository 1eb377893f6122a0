"""PEFT's fields in a prompt's `adapter_config.json`: those that are read for every prompt, and those of plain tokens.

A method whose prompts have a type of their own, as CPT, adds that type's fields on its page; `peft_modules` adds the
one for parts of the model. Checked against peft 0.21.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config import typed
from softprompt_zoo.tokens.layer_shape import LayerShape

Count = Annotated[int, typed.integer(1, 2**31 - 1)]

EDITABLE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""Fields that may be edited by hand: they do not affect the tensors."""
NOT_OPTIONS = ("peft_type", "task_type", *EDITABLE)
"""Fields that do not describe how a prompt was trained."""

CAUSAL = "CAUSAL_LM"
SEQ2SEQ = "SEQ_2_SEQ_LM"
FEATURES = "FEATURE_EXTRACTION"
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": CAUSAL,
    "LMHeadModel": CAUSAL,
}
"""Maps the ending of a transformers class to PEFT's name of the task. `…ForConditionalGeneration` is the name of causal
models, too, and not of every encoder-decoder."""


class PromptFields(TypedDict, total=False):
    """The fields that are read for every type."""

    peft_type: Annotated[str, typed.Allowed("a type of PEFT's", bool)]
    task_type: str | None
    base_model_name_or_path: str | None
    num_virtual_tokens: Count | None
    num_layers: Count | None
    num_attention_heads: Count | None
    num_transformer_submodules: Count | None
    token_dim: Count | None


def named_task(architecture: str) -> str | None:
    """Return PEFT's name of the task in the name of a transformers class; `None` if that names none."""
    return next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)


def task_type(architecture: str, backbone: Backbone) -> str:
    """Return PEFT's name of a model's task, which chooses the class that PEFT wraps it in.

    Args:
        architecture: Name of its transformers class.
        backbone: Sizes of the model.

    Returns:
        The task. We write models without a head, and encoders that fill in words, as feature extraction: PEFT's other
        classes ask the model for a head or for generation.
    """
    if backbone.has_lm_head and backbone.kind.has_two_texts:
        return SEQ2SEQ
    if backbone.has_lm_head and backbone.kind.is_causal:
        return CAUSAL
    return named_task(architecture) or FEATURES


def general(task: str, base_name: str | None) -> dict[str, Any]:
    """Return the fields that every adapter has.

    Args:
        task: PEFT's name of the task.
        base_name: Name or path of the base model, if known.
    """
    fields = {"task_type": task, "inference_mode": True, "revision": None, "auto_mapping": None}
    return {**fields, "base_model_name_or_path": base_name}


def with_sizes(fields: Mapping[str, Any], layers: Sequence[LayerShape], hidden_size: int) -> dict[str, Any]:
    """Add the sizes that PEFT requires of a prompt but does not find in every model's config.

    Args:
        fields: The fields of a prompt. Not changed; the sizes among them that are set take precedence.
        layers: The layers of the model's first site; none if its keys and values cannot be reached.
        hidden_size: Width of the model's embeddings.
    """
    # At the input embeddings PEFT requires layers and heads but does not use them.
    heads = next((layer.heads or layer.kv_heads for layer in layers), 1)
    sizes = {"num_layers": len(layers) or 1, "num_attention_heads": heads, "token_dim": hidden_size}
    known = {name: value for name, value in fields.items() if value is not None or name not in sizes}
    return {**sizes, **known}


def of_input_tokens(count: int, hidden_size: int) -> dict[str, Any]:
    """Return the fields of PROMPT_TUNING.

    Args:
        count: Number of virtual tokens.
        hidden_size: Width of their embeddings.
    """
    return {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": count,
        "token_dim": hidden_size,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }


def of_keys_values(count: int, layers: int, submodules: int, shape: LayerShape) -> dict[str, Any]:
    """Return the fields of PREFIX_TUNING.

    Args:
        count: Number of virtual tokens.
        layers: PEFT's number of layers: twice the decoder's for an encoder-decoder.
        submodules: PEFT's number of stacks; it reads as many pairs per layer.
        shape: The sizes that PEFT takes all layers to have.
    """
    return {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": count,
        "token_dim": shape.kv_heads * shape.head_dim,
        "num_attention_heads": shape.kv_heads,
        "num_layers": layers,
        "num_transformer_submodules": submodules,
        "encoder_hidden_size": shape.kv_heads * shape.head_dim,
        "prefix_projection": False,
    }
