"""The eleven promises as a pytest suite.

    from softprompt_zoo.testing import conformance_suite
    TestMyMethod = conformance_suite("my_method")

runs them on every tiny model. The oracle is the base model, arithmetic, or PEFT; never our own code.
"""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt_zoo.sites.positions import given_cache
from softprompt_zoo.testing import peft_oracle
from softprompt_zoo.testing.checks import (
    BASE_DEPENDS_ON_PADDING,
    BASE_LACKS_STATIC_CACHE,
    NEW_TOKENS,
    TEXTS,
    by_repeated_forward,
    check_gradients_of_prompt_alone,
    check_row_gradients,
    check_same_kind,
    check_step_by_step,
    greedy,
    needs_assisted_decoding,
    needs_generation,
    shapes,
    turn_checkpointing_on,
    without_dropout,
)
from softprompt_zoo.testing.comparison import assert_equal
from softprompt_zoo.testing.models import TINY_MODELS, tiny_model
from softprompt_zoo.testing.real_tokens import expected_logits, expected_loss, make_of_real_tokens
from softprompt_zoo.testing.subject import Subject, pad
from softprompt_zoo.testing.suite import Suite, suite_of


class ConformanceSuite(Suite):
    """The promises; `conformance_suite` makes a class from them for one method."""

    def test_promise_01_only_the_prompt_is_trained(self, subject: Subject) -> None:
        """Gradients reach every parameter of the prompt and nothing else; the backbone does not change by a bit."""
        subject.model.train()  # with the method's own loss, if it has one
        without_dropout(subject)
        backbone = subject.state(of_prompt=False)
        subject.loss(TEXTS[0]).backward()
        check_gradients_of_prompt_alone(subject)
        before = subject.state(of_prompt=True)
        subject.train(2)
        for key, value in subject.state(of_prompt=False).items():
            assert torch.equal(backbone[key], value), key
        assert any(not torch.equal(value, before[key]) for key, value in subject.state(of_prompt=True).items())

    def test_promise_02_disabled_gives_the_base_model(self, subject: Subject, base: Subject) -> None:
        """Bit for bit, compared with a frozen model: torch may sum in another order if a weight requires gradients."""
        ids, mask = pad(TEXTS, "right")
        base.model.requires_grad_(False)
        expected = base.logits(ids, mask)
        assert not torch.equal(subject.logits(ids, mask), expected), "the prompt has no effect"
        with subject.disabled():
            assert torch.equal(subject.logits(ids, mask), expected), "disabled prompts have an effect"

    def test_promise_02_detach_gives_the_base_model(self, subject: Subject, base: Subject) -> None:
        """Bit for bit, with its class, `requires_grad`, `state_dict` keys and attention function."""
        ids, mask = pad(TEXTS, "right")
        expected = base.logits(ids, mask)
        assert not torch.equal(subject.logits(ids, mask), expected), "the prompt has no effect"
        subject.detach()
        assert torch.equal(subject.logits(ids, mask), expected), "detached prompts have an effect"
        check_same_kind(subject.model, base.model)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_promise_03_rows_do_not_depend_on_padding_or_other_rows(
        self, subject: Subject, base: Subject, side: str
    ) -> None:
        """A row in a padded batch has the same results as the row alone, wherever the base model does."""
        alone = [subject.text_logits([text], "right")[0] for text in TEXTS]
        base_alone = [base.text_logits([text], "right")[0] for text in TEXTS]
        for extra in (0, 3):
            base_batch = base.text_logits(TEXTS, side, extra)
            batch = subject.text_logits(TEXTS, side, extra)
            for row in range(len(TEXTS)):
                if torch.allclose(base_batch[row], base_alone[row], atol=1e-3):
                    assert_equal(batch[row], alone[row], f"row {row}, {extra} more pads")
                else:
                    assert (subject.architecture, side) in BASE_DEPENDS_ON_PADDING

    def test_promise_04_generation_gives_what_a_forward_gives(self, subject: Subject) -> None:
        """Each new token has the logits of one forward over everything before it."""
        needs_generation(subject)
        ids, mask = pad(TEXTS, subject.padding_side)
        text, logits = greedy(subject, ids, mask)
        for step, expected in enumerate(by_repeated_forward(subject, ids, mask, text)):
            assert_equal(logits[:, step], expected, f"token {step} against a forward over the whole text")
        with subject.disabled():
            assert not torch.allclose(greedy(subject, ids, mask)[1], logits, atol=1e-2), "the prompt has no effect"

    @pytest.mark.parametrize("cache", ["none", "static"])
    def test_promise_04_every_cache_gives_the_same(self, subject: Subject, cache: str) -> None:
        """Without a cache, and with a static one."""
        needs_generation(subject)
        if cache == "static" and subject.architecture in BASE_LACKS_STATIC_CACHE:
            pytest.skip("the base model is wrong with a static cache")
        ids, mask = pad(TEXTS, subject.padding_side)
        text, logits = greedy(subject, ids, mask)
        options = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
        other_text, other_logits = greedy(subject, ids, mask, **options)
        assert torch.equal(text, other_text), "a different text"
        assert_equal(other_logits, logits, "logits")

    def test_promise_04_step_by_step(self, subject: Subject) -> None:
        """Token by token on one cache, without `generate`."""
        needs_generation(subject)
        check_step_by_step(subject)

    def test_promise_04_beams_and_sampling(self, subject: Subject) -> None:
        """Beam search, and sampling with a fixed seed, give the same with and without a cache."""
        needs_generation(subject)
        ids, mask = pad(TEXTS, subject.padding_side)
        # T5Gemma mistakes a pad token that it has drawn for padding, and only hides it without a cache.
        without_pads = {"max_new_tokens": NEW_TOKENS, "suppress_tokens": [0]}
        for options in ({"num_beams": 3, "do_sample": False}, {"do_sample": True, "num_return_sequences": 2}):
            results = []
            for use_cache in (True, False):
                torch.manual_seed(0)
                results.append(subject.generate(ids, mask, use_cache=use_cache, **without_pads, **options))
            assert torch.equal(*results), f"a different text with {options}"

    def test_promise_04_assisted_decoding(self, subject: Subject, base: Subject) -> None:
        """An assistant without a prompt changes the speed, not the text."""
        needs_generation(subject)
        needs_assisted_decoding(base)
        text, logits = greedy(subject, TEXTS[0])
        assisted_text, assisted_logits = greedy(subject, TEXTS[0], assistant_model=base.model)
        assert torch.equal(text, assisted_text), "a different text"
        assert_equal(assisted_logits, logits, "assisted logits")

    def test_promise_04_second_turn(self, subject: Subject) -> None:
        """A chat continues from the cache of its first turn."""
        if not subject.is_causal:
            pytest.skip("only decoder-only models have a second turn")
        first = subject.generate(TEXTS[0], max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True)
        second = torch.cat([first.sequences, TEXTS[1]], dim=1)
        begun = (torch.arange(second.shape[1]) < TEXTS[0].shape[1]).long()[None]
        text, logits = greedy(subject, second, **subject.text_mask(begun))
        continued_text, continued_logits = greedy(subject, second, **{subject.cache_argument: given_cache(first)})
        assert torch.equal(text, continued_text), "a different text"
        assert_equal(continued_logits, logits, "logits of the second turn")

    def test_promise_05_real_tokens(self, subject: Subject, base: Subject) -> None:
        """A prompt made of real tokens has the results of those tokens; gated tokens are skipped, see `real_tokens`."""
        tokens = make_of_real_tokens(subject, base, TEXTS[0])
        assert_equal(subject.logits(TEXTS[0]), expected_logits(base, tokens, TEXTS[0]), "logits")
        if subject.is_causal:
            loss = subject.loss(TEXTS[0]).detach()
            assert_equal(loss, expected_loss(base, tokens, TEXTS[0]), "loss")

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_promise_06_checkpointing_changes_memory_only(self, subject: Subject, use_reentrant: bool) -> None:
        """Loss and gradients are the same as in plain training; two forwards may share one backward."""
        if not subject.model.supports_gradient_checkpointing:
            pytest.skip("the base model has no checkpointing")

        def losses_and_gradients() -> tuple[Tensor, dict[str, Tensor]]:
            if self.is_stochastic:
                torch.manual_seed(0)
            total = subject.loss(TEXTS[0]) + 2 * subject.loss(TEXTS[1])
            total.backward()
            return total.detach(), subject.gradients()

        subject.model.train()
        without_dropout(subject)
        plain_loss, plain = losses_and_gradients()
        turn_checkpointing_on(subject.model, use_reentrant)
        loss, gradients = losses_and_gradients()
        assert_equal(loss, plain_loss, "loss")
        assert gradients.keys() == plain.keys()
        for name, gradient in gradients.items():  # relative to the loss, whose rounding they share
            assert_equal(gradient / plain_loss, plain[name] / plain_loss, f"gradient of {name}")

    def test_promise_07_a_loaded_prompt_gives_the_same(self, subject: Subject, base: Subject, tmp_path: Path) -> None:
        """Bit for bit."""
        subject.train(2)
        subject.save(tmp_path)
        expected = subject.logits(TEXTS[0])
        assert not torch.equal(expected, base.logits(TEXTS[0])), "the prompt has no effect"
        loaded = type(subject)(subject.architecture, base.model)
        loaded.load(tmp_path)
        assert torch.equal(loaded.logits(TEXTS[0]), expected), "other logits"

    def test_promise_07_training_goes_on(self, subject: Subject, base: Subject, tmp_path: Path) -> None:
        """A loaded prompt continues training as if it had never stopped."""
        optimizer = subject.train(2)
        subject.save(tmp_path)
        loaded = type(subject)(subject.architecture, base.model)
        loaded.load(tmp_path, trainable=True)
        resumed = torch.optim.AdamW([p for p in loaded.model.parameters() if p.requires_grad], lr=1e-2)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        subject.train(2, optimizer, start=2)
        loaded.train(2, resumed, start=2)
        found = loaded.state(of_prompt=True)
        for key, value in subject.state(of_prompt=True).items():
            assert torch.equal(found[key], value), key

    def test_promise_08_peft_gives_our_outputs(self, subject: Subject, tmp_path: Path) -> None:
        """An exported prompt has the same results in PEFT; what PEFT cannot hold is refused."""
        peft_oracle.check_export(subject, TEXTS[0], tmp_path)

    def test_promise_08_we_give_pefts_outputs(self, subject: Subject, tmp_path: Path) -> None:
        """A prompt trained in PEFT has the same results here."""
        peft_oracle.check_import(subject, TEXTS[0], tmp_path)

    def test_promise_09_merged_equals_trained(self, subject: Subject) -> None:
        """Outputs stay the same without the scaffold. Use changes neither parameters nor config."""
        ids, mask = pad(TEXTS, "right")
        config, before = subject.model.prompts["default"].config.to_dict(), subject.state(of_prompt=True)
        expected = subject.logits(ids, mask)
        with self.may_be_refused():
            subject.model.prompts["default"].merged_tokens(subject.model.prompts.backbone)
        assert subject.model.prompts["default"].config.to_dict() == config, "a hook has changed the config"
        for key, value in subject.state(of_prompt=True).items():
            assert torch.equal(before[key], value), f"a hook has changed {key}"
        subject.merge()
        assert_equal(subject.logits(ids, mask), expected, "merged logits")

    def test_promise_10_a_prompt_per_row(self, subject: Subject, base: Subject) -> None:
        """A batch with a different prompt in every row has the results of each row alone, including gradients."""
        subject.add_longer(self.method, {**self.options, **self.longer})
        rows: list[Any] = ["default", None, "longer"]
        batch = subject.text_logits(TEXTS, "right", prompts=rows)
        for row, (name, text) in enumerate(zip(rows, TEXTS, strict=True)):
            alone = subject.logits(text, prompts=[name])[0]
            assert_equal(batch[row], alone, f"row {row} with prompt {name!r}")
        assert_equal(batch[1], base.text_logits([TEXTS[1]], "right")[0], "the row without a prompt")
        index = torch.tensor([0, -1, 1])
        for by_name, by_index in zip(batch, subject.text_logits(TEXTS, "right", prompts=index), strict=True):
            assert torch.equal(by_name, by_index)
        check_row_gradients(subject, rows)

    def test_promise_10_generation_per_row(self, subject: Subject) -> None:
        """The same in `generate`, with beams."""
        needs_generation(subject)
        subject.add_longer(self.method, {**self.options, **self.longer})
        rows: list[Any] = ["longer", None, "default"]
        ids, mask = pad(TEXTS, subject.padding_side)
        for beams in (1, 2):
            text, logits = greedy(subject, ids, mask, prompts=rows, num_beams=beams)
            for row, alone in enumerate(TEXTS):
                alone_text, alone_logits = greedy(subject, alone, prompts=[rows[row]], num_beams=beams)
                assert torch.equal(text[row, -NEW_TOKENS:], alone_text[0, -NEW_TOKENS:]), f"row {row}, {beams} beams"
                if beams == 1:
                    assert_equal(logits[row], alone_logits[0], f"logits of row {row}")

    def test_promise_11_output_length_is_input_length(self, architecture: str) -> None:
        """Virtual positions never show in logits, hidden states or attentions."""
        subject = self.prompted(architecture, implementation="eager")
        base = Subject(architecture, tiny_model(architecture, implementation="eager"))
        ids, mask = pad(TEXTS, "right")
        wanted = {"output_hidden_states": True, "output_attentions": subject.shows_attentions}
        shown, expected = shapes(subject.run(ids, mask, **wanted)), shapes(base.run(ids, mask, **wanted))
        assert shown == expected, f"shapes {shown}, expected {expected}"
        as_tuple = subject.run(ids, mask, return_dict=False)
        assert torch.equal(as_tuple[0], subject.logits(ids, mask)), "a tuple has other logits"


def conformance_suite(
    method: str,
    options: Mapping[str, Any] | None = None,
    architectures: Iterable[str] = tuple(TINY_MODELS),
    longer: Mapping[str, Any] | None = None,
    promises: Iterable[int] = tuple(range(1, 12)),
    stochastic: bool = False,
) -> type[ConformanceSuite]:
    """Make a pytest class that checks a method against all promises.

    Args:
        method: Name of a registered method.
        options: Its options, with 5 virtual tokens if not given; by default its page's `EXAMPLE_OPTIONS`.
        architectures: Keys of `TINY_MODELS` or of `models.MORE_MODELS`.
        longer: Options for a longer prompt; by default also the page's, or two more virtual tokens.
        promises: Numbers of the promises to check; all by default.
        stochastic: Whether it, or a wrapper around it, draws random numbers in training: promise 6 is then checked
            from one seed.

    Returns:
        A class to assign to a name that starts with `Test`.
    """
    kept = tuple(f"promise_{number:02}_" for number in promises)
    suite = suite_of(ConformanceSuite, method, options, architectures, longer, kept)
    suite.is_stochastic = stochastic
    return suite
