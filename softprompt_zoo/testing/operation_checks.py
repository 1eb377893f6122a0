"""Helpers for checking the operations, which also find out what the base model itself cannot do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from softprompt_zoo.backbone.lookup import part_of
from softprompt_zoo.testing.checks import NEW_TOKENS, by_repeated_forward, greedy
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.subject import Subject

THREADS = 4
NAMES = ("default", "longer", None) * THREADS
"""The prompts for calls in threads."""
SMALLEST_SCALE = 2**-8
"""Rounding of a number with 8 bits, as in bfloat16."""
NO_EFFECT = "the prompt has no effect"
ROUNDING = 1e-4
"""Largest difference between gradients of two implementations, relative to the gradient."""
SMALLEST_PART = 0.1
"""A gradient smaller than this fraction of the largest is compared with that fraction: if larger terms cancel, as
in an untrained router, little more than their rounding is left."""

Found = TypeVar("Found")


def needs(run: Callable[[], Found]) -> Found:
    """Return the result of running the base model; skip if that fails."""
    try:
        return run()
    except Exception as error:
        pytest.skip(f"the base model fails: {type(error).__name__}: {error}")


def needs_same(run: Callable[[], Tensor], expected: Tensor) -> None:
    """Skip if running the base model fails, or its result differs from the expected one."""
    found = needs(run)
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-3):
        pytest.skip("the base model's result is different")


def check_threads(run: Callable[[int], Tensor], different: int) -> None:
    """Compare calls in threads with the same calls one after the other.

    Args:
        run: Makes the call with a number, using the prompt with that number in `NAMES`.
        different: How many of the first calls must have results that differ from each other.
    """
    calls = range(len(NAMES))
    single = [run(call) for call in calls]
    for call in range(1, different):
        assert not any(torch.equal(single[call], other) for other in single[:call]), NO_EFFECT
    with ThreadPoolExecutor(THREADS) as pool:
        for call, found in enumerate(pool.map(run, calls)):
            assert_equal(found, single[call], f"call {call} in a thread")


def embedded(subject: Subject, ids: Tensor) -> Tensor:
    """Look up the embeddings of texts, `(rows, length, width)`."""
    with torch.no_grad():
        embeddings: Tensor = subject.model.get_input_embeddings()(ids)
    return embeddings


def drawn(subject: Subject, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a text with a fixed seed, by `generate`, and by hand from forwards over the sampled text.

    Returns:
        The new tokens of both, `(rows, NEW_TOKENS)`, and the logits from which `generate` sampled.
    """
    torch.manual_seed(3)
    text, logits = greedy(subject, ids, mask, do_sample=True, top_k=0, top_p=1.0, suppress_tokens=[0])
    steps = by_repeated_forward(subject, ids, mask, text)
    torch.manual_seed(3)
    found = []
    for step in steps:
        step[:, 0] = -torch.inf
        found.append(torch.multinomial(step.softmax(dim=-1), 1))
    return text[:, -NEW_TOKENS:], torch.cat(found, dim=1), logits


def returned(output: Any) -> dict[str, Tensor]:
    """Return the hidden states and attentions in a model's output, by name and number."""
    kinds = [name for name in output if name.endswith(("hidden_states", "attentions"))]
    return {f"{kind} {number}": part for kind in kinds for number, part in enumerate(output[kind] or ())}


def runs(subject: Subject, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the logits of texts, and the first logits from `generate`.

    Args:
        subject: The model.
        ids: Token ids of the padded texts.
        mask: Their attention mask.

    Returns:
        One or two tensors. Rounding may change two of three rows' last tokens, so what a causal model generates is
        compared with its own forward: the second tensor is the difference between both.
    """
    found = subject.logits(ids, mask, **subject.positions(mask))
    kept = found[subject.with_logits(mask)]
    if not subject.can_generate:
        return [kept]
    first = greedy(subject, ids, mask)[1][:, 0]
    return [kept, first - found[:, -1] if subject.is_causal else first]


def masks_of_four_dimensions(subject: Subject, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return a padded batch's mask as `(rows, 1, queries, keys)` booleans, and as numbers to add to the scores."""
    length = mask.shape[1]
    seen = mask.bool()[:, None, None, :].expand(-1, 1, length, -1)
    if subject.is_causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    return seen, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def distance(one: Tensor, other: Tensor) -> float:
    """Return the median difference between numbers: rounding may send some tokens to different experts."""
    return float((one.float() - other.float()).abs().median())


def check_shapes(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fail unless two models returned parts with the same names and shapes."""
    own, others = ({name: part.shape for name, part in parts.items()} for parts in (found, expected))
    assert own == others, f"shapes {own}, expected {others}"


def check_parts(
    row: int, prompted: tuple[dict[str, Tensor], dict[str, Tensor]], base: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    """Compare a row's output in a padded batch with its output alone, where those of the base model match.

    Args:
        row: Index of the row.
        prompted: The results of `returned` for the batch and for the row alone.
        base: The same for the base model.
    """
    (batch, alone), (base_batch, base_alone) = prompted, base
    for name, part in alone.items():
        corner = tuple(slice(0, size) for size in part.shape[1:])
        if torch.allclose(base_batch[name][row][corner], base_alone[name][0], atol=1e-3):
            assert_equal(batch[name][row][corner], part[0], f"{name} of row {row}")


def check_rounding(found: list[Tensor], exact: list[Tensor], base: list[Tensor], allowed: list[float]) -> None:
    """Compare errors of results in a smaller dtype, which is the base model's, with the allowed errors."""
    for result, wanted, own, most in zip(found, exact, base, allowed, strict=True):
        assert result.dtype == own.dtype
        assert distance(result, wanted) <= most, "further from float32 than the base model"


def check_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare the gradients of two implementations of attention."""
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # They sum in a different order, and an eager softmax is always in float32.
        difference = (found[name] - gradient).norm() / torch.maximum(gradient.norm(), SMALLEST_PART * largest)
        assert difference <= ROUNDING, f"gradient of {name}: differs by {difference:.1e}"


def compiled(subject: Subject, whole: bool) -> Any:
    """Compile a model into one whole graph or several, using torch's own operations."""
    torch._dynamo.reset()
    return torch.compile(subject.model, backend="aot_eager" if whole else "eager", fullgraph=whole)


def first_task(subject: Subject, ids: Tensor) -> dict[str, Tensor]:
    """Return the `task_ids` of texts that share a row, if the prompt has tasks: the first task for all."""
    return {name: torch.zeros_like(value) for name, value in subject.tasks(ids).items()}


def pooled_by(base: Subject, heads: dict[str, Any], output: Any, inputs: dict[str, Any]) -> Tensor:
    """Pool and classify the last hidden states of a prompted classifier with the base classifier.

    Args:
        base: The classifier without a prompt; it keeps the head.
        heads: The prompt's trained task head, from `Subject.trained_head`.
        output: The prompted classifier's output for one unpadded text, with hidden states.
        inputs: The arguments of its forward.

    Returns:
        Logits, `(1, classes)`.
    """
    states = output["decoder_hidden_states" if "decoder_hidden_states" in output else "hidden_states"][-1]
    if not base.is_encoder_decoder:
        states = states[:, -inputs["input_ids"].shape[1] :]
    for name, state in heads.items():
        getattr(base.model, name).load_state_dict(state)
    inner = base.model.base_model

    def replace(module: Any, args: Any, found: Any) -> Any:
        found.last_hidden_state = states
        return found

    def pool(module: Any, args: Any) -> Any:
        return (states if args[0].ndim == 3 else states[:, 0],)

    handles = [inner.register_forward_hook(replace)]
    if part_of(inner, "pooler") is not None:
        handles.append(inner.pooler.register_forward_pre_hook(pool))
    with torch.no_grad():
        logits: Tensor = base.model(**inputs).logits
    for handle in handles:
        handle.remove()
    return logits
