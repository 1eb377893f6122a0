"""The common uses of a model beyond the promises, as a second pytest suite.

    from softprompt_zoo.testing import operation_suite
    TestOperationsOfMyMethod = operation_suite("my_method")

The oracle is the base model, arithmetic, or the same rows one after the other. If the base model itself does not
support an operation, the check is skipped with that reason.
"""

import functools
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt_zoo.testing.checks import BASE_LACKS_STATIC_CACHE, NEW_TOKENS, TEXTS, greedy, needs_generation
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.flex import FLEX, uncompiled_flex
from softprompt_zoo.testing.models import CLASSIFICATION, TINY_MODELS, tiny_model
from softprompt_zoo.testing.operation_checks import (
    NAMES,
    NO_EFFECT,
    SMALLEST_SCALE,
    check_gradients,
    check_parts,
    check_rounding,
    check_shapes,
    check_threads,
    compiled,
    distance,
    drawn,
    embedded,
    first_task,
    masks_of_four_dimensions,
    needs,
    needs_same,
    pooled_by,
    returned,
    runs,
)
from softprompt_zoo.testing.subject import Subject, pad
from softprompt_zoo.testing.suite import Suite, suite_of

ROWS: list[Any] = ["longer", None, "default"]
SHORT_TEXTS = [text[:, :length] for text, length in zip(TEXTS, (6, 4, 5), strict=True)]
"""Within the tiny models' window, which a four-dimensional mask replaces."""


class OperationSuite(Suite):
    """The operations; `operation_suite` makes a class from them for one method."""

    def test_operation_threads_with_prompts_of_their_own(self, subject: Subject) -> None:
        """Concurrent forwards, each with a different prompt or none, have the results of each alone."""
        subject.add_longer(self.method, {**self.options, **self.longer})

        def run(call: int) -> Tensor:
            return subject.logits(TEXTS[call % 2], prompts=[NAMES[call]])

        check_threads(run, 6)

    def test_operation_threads_that_generate(self, subject: Subject) -> None:
        """The same for `generate`."""
        needs_generation(subject)
        subject.add_longer(self.method, {**self.options, **self.longer})
        check_threads(lambda call: greedy(subject, TEXTS[1], prompts=[NAMES[call]])[1], 3)

    def test_operation_threads_that_train(self, subject: Subject) -> None:
        """Each thread's gradients are those of its own prompt."""
        subject.add_longer(self.method, {**self.options, **self.longer})
        own = {
            name: [p for key, p in subject.model.named_parameters() if name in key.split(".") and p.requires_grad]
            for name in NAMES
            if name is not None
        }

        def gradients(call: int) -> Tensor:
            name = NAMES[:2][call % 2]
            logits = subject.model(**subject.inputs(TEXTS[0], prompts=[name])).logits
            found = torch.autograd.grad(logits.pow(2).mean(), own[str(name)])
            return torch.cat([gradient.flatten() for gradient in found])

        check_threads(gradients, 2)

    def test_operation_generation_from_input_embeddings(self, subject: Subject, base: Subject) -> None:
        """The embeddings of a text have the same results as the text."""
        needs_generation(subject)
        if subject.reads_sound:
            pytest.skip("the encoder reads sound")
        bare = greedy(base, TEXTS[0])[1]
        needs_same(lambda: greedy(base, TEXTS[0], inputs_embeds=embedded(base, TEXTS[0]))[1], bare)
        expected = greedy(subject, TEXTS[0])[1]
        assert not torch.allclose(expected, bare, atol=1e-2), NO_EFFECT
        for use_cache in (True, False):
            found = greedy(subject, TEXTS[0], inputs_embeds=embedded(subject, TEXTS[0]), use_cache=use_cache)[1]
            assert_equal(found, expected, f"logits from embeddings, use_cache={use_cache}")

    def test_operation_prompt_lookup(self, subject: Subject, base: Subject) -> None:
        """Guesses from the text only change the speed."""
        needs_generation(subject)
        text = torch.cat([TEXTS[1]] * 2, dim=1)
        options: dict[str, Any] = {"max_new_tokens": 2 * NEW_TOKENS, "prompt_lookup_num_tokens": 3}
        bare = needs(lambda: greedy(base, text, **options)[1])
        found = greedy(subject, text, **options)[1]
        assert_equal(found, greedy(subject, text, max_new_tokens=2 * NEW_TOKENS)[1], "logits")
        assert not torch.allclose(found, bare, atol=1e-2), NO_EFFECT

    def test_operation_sampling_with_a_fixed_seed(self, subject: Subject, base: Subject) -> None:
        """The sampled text is the one sampled, with the same seed, from the logits of forwards."""
        needs_generation(subject)
        ids, mask = pad(TEXTS, subject.padding_side)
        bare, by_hand, bare_logits = drawn(base, ids, mask)
        needs_same(lambda: bare, by_hand)
        text, by_hand, logits = drawn(subject, ids, mask)
        assert torch.equal(text, by_hand), "not the text from forwards"
        assert not torch.allclose(logits[:, 0], bare_logits[:, 0], atol=1e-2), NO_EFFECT

    def test_operation_caches_and_rows(self, subject: Subject, base: Subject) -> None:
        """No cache and a static one, with a different prompt in every row."""
        needs_generation(subject)
        subject.add_longer(self.method, {**self.options, **self.longer})
        ids, mask = pad(TEXTS, subject.padding_side)
        kinds: list[dict[str, Any]] = [{"use_cache": False}, {"cache_implementation": "static"}]
        for options in kinds[: 1 if subject.architecture in BASE_LACKS_STATIC_CACHE else 2]:
            logits = greedy(subject, ids, mask, prompts=ROWS, **options)[1]
            for row, text in enumerate(TEXTS):
                alone = greedy(subject, text, prompts=[ROWS[row]])[1]
                assert_equal(logits[row], alone[0], f"row {row} with {options}")
                bare = greedy(base, text)[1]
                assert (ROWS[row] is None) == torch.allclose(alone, bare, atol=1e-4), NO_EFFECT

    def test_operation_returned_states_and_attentions(self, architecture: str) -> None:
        """For a padded batch, they have the base model's shapes and equal those of each row alone."""
        subject = self.prompted(architecture, implementation="eager")
        base = Subject(architecture, tiny_model(architecture, implementation="eager"))
        wanted: dict[str, Any] = {"output_hidden_states": True, "output_attentions": subject.shows_attentions}
        found, bare = (returned(s.run(*pad(TEXTS, "right"), **wanted)) for s in (subject, base))
        check_shapes(found, bare)
        for row, text in enumerate(TEXTS):
            alone, base_alone = (returned(s.run(text, torch.ones_like(text), **wanted)) for s in (subject, base))
            assert any(not torch.allclose(part, base_alone[name], atol=1e-2) for name, part in alone.items()), NO_EFFECT
            check_parts(row, (found, alone), (bare, base_alone))

    def test_operation_bfloat16(self, subject: Subject, base: Subject) -> None:
        """Prompt and model in bfloat16 are as close to float32 as the base model; generation equals a forward."""
        ids, mask = pad(TEXTS, subject.padding_side)
        exact, exact_base = runs(subject, ids, mask), runs(base, ids, mask)
        base.model.to(torch.bfloat16)
        rounded = needs(lambda: runs(base, ids, mask))
        allowed = [3 * distance(own, bare) + SMALLEST_SCALE for own, bare in zip(rounded, exact_base, strict=True)]

        def is_seen() -> bool:
            return distance(exact[0], exact_base[0]) > 2 * allowed[0]

        if not is_seen():  # a gate near zero: its effect would be lost in rounding
            subject.disturb("default", 1.0)
            exact = runs(subject, ids, mask)
        assert is_seen(), NO_EFFECT
        subject.model.to(torch.bfloat16)
        check_rounding(runs(subject, ids, mask), exact, rounded, allowed)
        subject.loss(ids[:1], mask[:1]).backward()
        for name, gradient in subject.gradients().items():
            assert gradient.abs().max() > 0, name

    @pytest.mark.parametrize("implementation", ["eager", FLEX])
    def test_operation_attention_implementations(self, subject: Subject, base: Subject, implementation: str) -> None:
        """Each has the results of sdpa, and also its gradients where torch supports them."""
        if subject.model.config._attn_implementation.endswith("eager"):
            pytest.skip("the model has only one implementation")
        expected, bare = (s.text_logits(TEXTS, "right") for s in (subject, base))
        with uncompiled_flex() if implementation == FLEX else nullcontext():
            base = Subject(
                subject.architecture, needs(lambda: tiny_model(subject.architecture, implementation=implementation))
            )
            needs_same(lambda: torch.cat(base.text_logits(TEXTS, "right")), torch.cat(bare))
            other = self.prompted(subject.architecture, implementation=implementation)
            for row, logits in enumerate(other.text_logits(TEXTS, "right")):
                assert_equal(logits, expected[row], f"logits of row {row}")
                assert not torch.allclose(logits, bare[row], atol=1e-2), NO_EFFECT
            if implementation != FLEX:  # torch has no gradients of flex attention on a CPU
                other.loss(TEXTS[0]).backward()
                subject.loss(TEXTS[0]).backward()
                check_gradients(other.gradients(), subject.gradients())

    @pytest.mark.parametrize("whole", [False, True])
    def test_operation_compiled(self, subject: Subject, base: Subject, whole: bool) -> None:
        """Logits and gradients equal those of the uncompiled model; as one whole graph if the base model has one."""
        inputs = subject.inputs(TEXTS[0])
        expected = subject.model(**inputs).logits
        bare = base.logits(TEXTS[0])
        assert not torch.allclose(expected[:, -bare.shape[1] :], bare, atol=1e-2), NO_EFFECT
        expected.pow(2).mean().backward()
        gradients = subject.gradients()
        try:
            logits = compiled(subject, whole)(**inputs).logits
        except Exception:
            needs(lambda: compiled(base, whole)(**base.inputs(TEXTS[0])))
            raise
        assert_equal(logits.detach(), expected.detach(), "compiled logits")
        logits.pow(2).mean().backward()
        for name, gradient in subject.gradients().items():
            assert_equal(gradient, gradients[name], f"compiled gradient of {name}")

    def test_operation_packed_rows(self, subject: Subject, base: Subject) -> None:
        """Texts in one row, whose positions restart, have the results of each alone."""
        if not subject.is_causal:
            pytest.skip("only decoders read several texts in a row")
        positions = torch.cat([torch.arange(text.shape[1]) for text in TEXTS])[None]
        packed: dict[str, Any] = {"position_ids": positions, "use_cache": False}

        def apart(model: Subject) -> Tensor:
            return torch.cat([model.logits(text, **first_task(model, text)) for text in TEXTS], dim=1)

        ids = torch.cat(TEXTS, dim=1)
        needs_same(lambda: base.logits(ids, **packed), apart(base))
        alone = apart(subject)
        assert not torch.allclose(alone, apart(base), atol=1e-2), NO_EFFECT
        with self.may_be_refused():
            assert_equal(subject.logits(ids, **packed, **first_task(subject, ids)), alone, "packed")

    def test_operation_masks_of_four_dimensions(self, subject: Subject, base: Subject) -> None:
        """With booleans, or numbers that are added to the scores, each row has the same results as alone."""
        ids, mask = pad(SHORT_TEXTS, subject.padding_side)
        masks = masks_of_four_dimensions(subject, mask)

        def under(model: Subject, given: Tensor) -> Tensor:
            return model.logits(ids, given, **model.positions(mask))[model.with_logits(mask)]

        bare, expected = (torch.cat([s.logits(text)[0] for text in SHORT_TEXTS]) for s in (base, subject))
        for given in masks:
            needs_same(functools.partial(under, base, given), bare)
        assert not torch.allclose(expected, bare, atol=1e-2), NO_EFFECT
        with self.may_be_refused():
            for given in masks:
                assert_equal(under(subject, given), expected, f"{given.dtype}")

    def test_operation_sequence_classification(self, architecture: str) -> None:
        """A classifier pools only the text, and each row of a batch has its own prompt."""
        base = Subject(architecture, needs(lambda: tiny_model(architecture, task=CLASSIFICATION)))
        subject = self.prompted(architecture, task=CLASSIFICATION)
        texts = [torch.cat([text, torch.tensor([[2]])], dim=1) for text in TEXTS]  # BART pools the end of a text
        ids, mask = pad(texts, "right")
        more: dict[str, Any] = {"decoder_input_ids": None} if subject.is_encoder_decoder else {}
        bare = [base.logits(text, torch.ones_like(text), **more) for text in texts]
        needs_same(lambda: base.logits(ids, mask, **more), torch.cat(bare))
        inputs = {"input_ids": texts[0], "attention_mask": torch.ones_like(texts[0])}
        output = subject.run(*inputs.values(), output_hidden_states=True, **more)
        expected = pooled_by(base, subject.trained_head(), output, inputs)
        assert_equal(output.logits, expected, "logits of what the base model pools")
        subject.add_longer(self.method, {**self.options, **self.longer})
        batch = subject.logits(ids, mask, prompts=ROWS, **more)
        for row, text in enumerate(texts):
            alone = subject.logits(text, torch.ones_like(text), prompts=[ROWS[row]], **more)
            assert_equal(batch[row], alone[0], f"row {row}")
            assert (ROWS[row] is None) == torch.allclose(alone, bare[row], atol=1e-4), NO_EFFECT


OPERATIONS = tuple(name.removeprefix("test_operation_") for name in vars(OperationSuite) if name.startswith("test_"))
"""Names of all operations; `"compiled"` takes seconds, the others less than one second."""


def operation_suite(
    method: str,
    options: Mapping[str, Any] | None = None,
    architectures: Iterable[str] = tuple(TINY_MODELS),
    longer: Mapping[str, Any] | None = None,
    operations: Iterable[str] = OPERATIONS,
) -> type[OperationSuite]:
    """Make a pytest class that checks all operations with a method.

    Args:
        method: Name of a registered method.
        options: As in `conformance_suite`, like the next two.
        architectures: Keys of `TINY_MODELS` or of `models.MORE_MODELS`.
        longer: Options for a longer prompt.
        operations: Names of the operations, or prefixes of them; all of `OPERATIONS` by default.

    Returns:
        A class to assign to a name that starts with `Test`.
    """
    kept = tuple(f"operation_{name}" for name in operations)
    return suite_of(OperationSuite, method, options, architectures, longer, kept)
