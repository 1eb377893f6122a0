"""The tokens of few-shot examples and their types, as in options and files.

A token of example i, counted from 0, has the type `4 * i + kind`, a separator 0; `demonstrations` defines the kinds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.errors import BackboneMismatchError, UnsupportedError
from softprompt_zoo.methods.parts.demonstrations import tokenize_examples
from softprompt_zoo.shapes import Float, Int

Integers = tuple[int, ...]


def count_tokens(
    examples: Sequence[tuple[str, str]], template: str | None, tokenizer: Any, ids: Any, types: Any
) -> tuple[Integers, Integers] | None:
    """Determine the tokens of examples, or check those that are given instead.

    Args:
        examples: Pairs `(input, target)`.
        template: The format of an example.
        tokenizer: The model's tokenizer; `None` if the tokens are given, or it is set later.
        ids: The given token ids, if any.
        types: Their types.

    Returns:
        The ids, and a type for each; `None` without a tokenizer or ids.

    Raises:
        TypeError: If ids or types are not tuples of integers.
        ValueError: If there are neither examples nor ids, or they do not match.
    """
    if ids is None and types is None:
        return _tokens_of(examples, template, tokenizer)
    if examples and tokenizer is not None:
        _check_same_tokens(tokenize_examples(tokenizer, template, examples), (ids, types))
    return _typed_tokens(_integers("token_ids", ids), _integers("token_types", types))


def _tokens_of(
    examples: Sequence[tuple[str, str]], template: str | None, tokenizer: Any
) -> tuple[Integers, Integers] | None:
    if not examples:
        raise ValueError("examples is empty; give at least one pair (input, target) for the context")
    return None if tokenizer is None else _typed_tokens(*tokenize_examples(tokenizer, template, examples))


def problem_of_tokens(ids: Integers | None, types: Integers | None, vocab_size: int) -> str | None:
    """Return why tokens cannot be trained as examples; `None` if they can."""
    if ids is None or types is None:
        return "examples need tokenizer=…; pass the model's tokenizer"
    newest, largest = max(types), max(ids)
    if newest == 0 or newest % 4 != 0:
        return f"the largest of token_types is {newest}; expected a multiple of 4, that of the last example's target"
    if largest >= vocab_size:
        return f"the examples have the token id {largest}, but the model has {vocab_size} embeddings"
    return None


def check_tokens(ids: Integers | None, types: Integers | None, vocab_size: int) -> None:
    """Refuse tokens that cannot be trained as examples.

    Raises:
        ValueError: If they cannot.
    """
    problem = problem_of_tokens(ids, types, vocab_size)
    if problem is not None:
        raise ValueError(problem)


def embeddings_of(tensors: Mapping[str, Tensor], expected: tuple[int, int]) -> Float[Tensor, "tokens hidden"]:
    """Return the embeddings in a PEFT adapter of examples.

    Args:
        tensors: The tensors of the adapter.
        expected: The required number of tokens and width.

    Returns:
        The tensor.

    Raises:
        BackboneMismatchError: If it is missing, or for a different model.
    """
    tensor = tensors.get("prompt_embeddings")
    if tensor is None or tensor.shape != expected:
        found = tensor if tensor is None else tuple(tensor.shape)
        raise BackboneMismatchError(
            f"PEFT's CPT adapter has prompt_embeddings of shape {found}, expected {expected} for its token ids on this "
            "model; load it onto the model it was made for"
        )
    return tensor


def target_places(types: Integers, device: torch.device) -> tuple[Int[Tensor, " targets"], Int[Tensor, " targets"]]:
    """Find the target tokens; nothing predicts the very first token.

    Args:
        types: The type of each token.
        device: The device for the tensors.

    Returns:
        The positions of target tokens, and the rank of their example by age: 1 for the newest.
    """
    kinds = torch.tensor(types, device=device)
    places = 1 + ((kinds > 0) & (kinds % 4 == 0))[1:].nonzero()[:, 0]
    examples, index = kinds[places].unique(return_inverse=True)
    return places, len(examples) - index


def check_predicts_words(backbone: Backbone) -> None:
    """Refuse a model without predictions at its examples."""
    if not (backbone.kind.is_causal and backbone.has_lm_head):
        head = "with" if backbone.has_lm_head else "without"
        raise UnsupportedError(
            "this method learns from what a causal language model predicts at its examples; this is a "
            f"model of the family {backbone.family!r}, {head} a head over the vocabulary: load one with "
            "AutoModelForCausalLM (gpt2, llama, qwen3), or choose a method that needs no examples"
        )


def _typed_tokens(ids: Integers, types: Integers) -> tuple[Integers, Integers]:
    if len(ids) != len(types) or not ids:
        raise ValueError(f"there are {len(ids)} token_ids and {len(types)} token_types; expected a type for each token")
    return ids, types


def _integers(name: str, values: Any) -> Integers:
    if not isinstance(values, tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise TypeError(f"{name} is {values!r}; expected a tuple of nonnegative integers, one per token")
    return values


def _check_same_tokens(found: tuple[Integers, Integers], given: tuple[Any, Any]) -> None:
    if found != given:
        raise ValueError(
            f"token_ids and token_types are not those of the examples, {len(found[0])} tokens; leave them out"
        )
