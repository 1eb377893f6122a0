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

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.method import get_method
from softprompt_zoo.model import detach
from softprompt_zoo.saving import load, merge
from softprompt_zoo.testing import peft_oracle
from softprompt_zoo.testing.models import TINY_MODELS, tiny_model
from softprompt_zoo.testing.real_tokens import expected_logits, expected_loss, make_of_real_tokens
from softprompt_zoo.testing.subject import LENGTHS, Subject, assert_equal, pad, random_text

NEW_TOKENS = 6
TEXTS = [random_text(length, seed) for seed, length in enumerate(LENGTHS)]


class ConformanceSuite:
    """The promises; `conformance_suite` makes a class of them for one method."""

    method: str
    options: Mapping[str, Any]
    longer: Mapping[str, Any]

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Any:
        """Tiny models crawl with more threads than one."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @pytest.fixture
    def subject(self, architecture: str) -> Subject:
        """A tiny model with a prompt of the method; skips where the method says it is not defined."""
        return _prompted(architecture, self.method, self.options)

    @pytest.fixture
    def base(self, architecture: str) -> Subject:
        """The same model without a prompt."""
        return Subject(architecture, tiny_model(architecture))

    def test_promise_01_only_the_prompt_is_trained(self, subject: Subject) -> None:
        """Gradients reach every parameter of the prompt and nothing else; the backbone keeps its bits."""
        backbone = {k: v.clone() for k, v in subject.model.state_dict().items() if not k.startswith("prompts.")}
        subject.loss(TEXTS[0]).backward()
        for name, parameter in subject.model.named_parameters():
            if name.startswith("prompts."):
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
            else:
                assert parameter.grad is None, name
        before = {k: v.clone() for k, v in subject.model.prompts.state_dict().items()}
        subject.train(2)
        for key, value in backbone.items():
            assert torch.equal(subject.model.state_dict()[key], value), key
        assert any(not torch.equal(v, before[k]) for k, v in subject.model.prompts.state_dict().items())

    def test_promise_02_detach_and_disabled_give_the_base_model(self, subject: Subject, base: Subject) -> None:
        """Bit for bit, with its class, `requires_grad`, `state_dict` keys and attention function."""
        ids, mask = pad(TEXTS, "right")
        expected = base.logits(ids, mask)
        assert not torch.equal(subject.logits(ids, mask), expected), "the prompt has no effect"
        with subject.model.prompts.disabled():
            assert torch.equal(subject.logits(ids, mask), expected)
        detach(subject.model)
        assert torch.equal(subject.logits(ids, mask), expected)
        assert type(subject.model) is type(base.model)
        assert subject.model.state_dict().keys() == base.model.state_dict().keys()
        assert subject.model.config._attn_implementation == base.model.config._attn_implementation
        for (name, own), (_, other) in zip(
            subject.model.named_parameters(), base.model.named_parameters(), strict=True
        ):
            assert own.requires_grad == other.requires_grad, name

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_promise_03_rows_do_not_depend_on_padding_or_other_rows(
        self, subject: Subject, base: Subject, side: str
    ) -> None:
        """A row in a padded batch gives what the row alone gives, wherever the base model does."""
        alone = [subject.text_logits([text], "right")[0] for text in TEXTS]
        base_alone = [base.text_logits([text], "right")[0] for text in TEXTS]
        for extra in (0, 3):
            base_batch = base.text_logits(TEXTS, side, extra)
            batch = subject.text_logits(TEXTS, side, extra)
            for row in range(len(TEXTS)):
                if not torch.allclose(base_batch[row], base_alone[row], atol=1e-3):
                    assert (subject.architecture, side) in BASE_DEPENDS_ON_PADDING
                    continue
                assert_equal(batch[row], alone[row], f"row {row}, {extra} more pads")

    def test_promise_04_every_cache_gives_the_same(self, subject: Subject) -> None:
        """With a cache, without one, static, step by step, and by repeated forward."""
        _needs_generation(subject)
        ids, mask = pad(TEXTS, "left") if subject.is_causal else pad(TEXTS, "right")
        text, logits = _greedy(subject, ids, mask)
        for step, expected in enumerate(_by_repeated_forward(subject, ids, mask, text)):
            assert_equal(logits[:, step], expected, f"token {step} against a forward over the whole text")
        for options in ({"use_cache": False}, {"cache_implementation": "static"}):
            if "cache_implementation" in options and subject.architecture in BASE_LACKS_STATIC_CACHE:
                continue
            other_text, other_logits = _greedy(subject, ids, mask, **options)
            assert torch.equal(text, other_text), options
            assert_equal(other_logits, logits, f"logits with {options}")
        with subject.model.prompts.disabled():
            assert not torch.allclose(_greedy(subject, ids, mask)[1], logits, atol=1e-2), "the prompt has no effect"
        _check_step_by_step(subject)

    def test_promise_04_beams_and_sampling(self, subject: Subject) -> None:
        """Beam search, and sampling with a fixed seed, give the same with and without a cache."""
        _needs_generation(subject)
        ids, mask = pad(TEXTS, "left") if subject.is_causal else pad(TEXTS, "right")
        for options in ({"num_beams": 3, "do_sample": False}, {"do_sample": True, "num_return_sequences": 2}):
            results = []
            for use_cache in (True, False):
                torch.manual_seed(0)
                results.append(
                    subject.model.generate(
                        ids,
                        attention_mask=mask,
                        max_new_tokens=NEW_TOKENS,
                        use_cache=use_cache,
                        **subject.tasks(ids),
                        **options,
                    )
                )
            assert torch.equal(*results), options

    def test_promise_04_assisted_decoding(self, subject: Subject, base: Subject) -> None:
        """An assistant without a prompt changes the speed, not the text."""
        _needs_generation(subject)
        text, logits = _greedy(subject, TEXTS[0])
        assisted_text, assisted_logits = _greedy(subject, TEXTS[0], assistant_model=base.model)
        assert torch.equal(text, assisted_text)
        assert_equal(assisted_logits, logits, "assisted logits")

    def test_promise_04_second_turn(self, subject: Subject) -> None:
        """A chat goes on from the cache of its first turn."""
        if not subject.is_causal:
            pytest.skip("a second turn is a decoder-only model's")
        first = subject.model.generate(
            TEXTS[0],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            **subject.tasks(TEXTS[0]),
        )
        second = torch.cat([first.sequences, TEXTS[1]], dim=1)
        text, logits = _greedy(subject, second)
        continued_text, continued_logits = _greedy(subject, second, past_key_values=first.past_key_values)
        assert torch.equal(text, continued_text)
        assert_equal(continued_logits, logits, "logits of the second turn")

    def test_promise_05_real_tokens(self, subject: Subject, base: Subject) -> None:
        """A prompt made of real tokens gives what those tokens give; gated tokens are skipped, see `real_tokens`."""
        tokens = make_of_real_tokens(subject, base, TEXTS[0])
        assert_equal(subject.logits(TEXTS[0]), expected_logits(base, tokens, TEXTS[0]), "logits")
        if subject.is_causal:
            loss = subject.loss(TEXTS[0]).detach()
            assert_equal(loss, expected_loss(base, tokens, TEXTS[0]), "loss")

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_promise_06_checkpointing_changes_memory_only(self, subject: Subject, use_reentrant: bool) -> None:
        """Loss and gradients are those of plain training; two forwards may share one backward."""

        def losses_and_gradients() -> tuple[Tensor, dict[str, Tensor]]:
            total = subject.loss(TEXTS[0]) + 2 * subject.loss(TEXTS[1])
            total.backward()
            return total.detach(), subject.gradients()

        subject.model.train()
        _without_dropout(subject)
        plain_loss, plain = losses_and_gradients()
        subject.model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        loss, gradients = losses_and_gradients()
        assert_equal(loss, plain_loss, "loss")
        assert gradients.keys() == plain.keys()
        for name, gradient in gradients.items():
            assert_equal(gradient, plain[name], f"gradient of {name}")

    def test_promise_07_saved_and_loaded(self, subject: Subject, base: Subject, tmp_path: Path) -> None:
        """A loaded prompt gives the same outputs, and trains on as if it had never stopped."""
        optimizer = subject.train(2)
        subject.model.save_pretrained(tmp_path)
        expected = subject.logits(TEXTS[0])
        assert not torch.equal(expected, base.logits(TEXTS[0]))
        loaded = Subject(subject.architecture, load(base.model, tmp_path, trainable=True))
        assert torch.equal(loaded.logits(TEXTS[0]), expected)
        resumed = torch.optim.AdamW([p for p in loaded.model.parameters() if p.requires_grad], lr=1e-2)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        subject.train(2, optimizer, start=2)
        loaded.train(2, resumed, start=2)
        for key, value in subject.model.prompts.state_dict().items():
            assert torch.equal(loaded.model.prompts.state_dict()[key], value), key

    def test_promise_08_peft_gives_our_outputs(self, subject: Subject, tmp_path: Path) -> None:
        """An exported prompt gives the same in PEFT; what PEFT cannot hold is refused."""
        peft_oracle.check_export(subject, TEXTS[0], tmp_path)

    def test_promise_08_we_give_pefts_outputs(self, subject: Subject, tmp_path: Path) -> None:
        """A prompt trained in PEFT gives the same here."""
        peft_oracle.check_import(subject, TEXTS[0], tmp_path)

    def test_promise_09_merged_equals_trained(self, subject: Subject) -> None:
        """Without the scaffold the outputs stay."""
        ids, mask = pad(TEXTS, "right")
        expected = subject.logits(ids, mask)
        merge(subject.model)
        assert subject.model.prompts["default"].is_merged
        assert_equal(subject.logits(ids, mask), expected, "merged logits")

    def test_promise_10_a_prompt_per_row(self, subject: Subject, base: Subject) -> None:
        """A batch with another prompt in every row gives what each row alone gives, gradients included."""
        _add_longer_prompt(subject, self.method, {**self.options, **self.longer})
        rows: list[Any] = ["default", None, "longer"]
        batch = subject.text_logits(TEXTS, "right", prompts=rows)
        for row, (name, text) in enumerate(zip(rows, TEXTS, strict=True)):
            alone = subject.logits(text, prompts=[name])[0]
            assert_equal(batch[row], alone, f"row {row} with prompt {name!r}")
        assert_equal(batch[1], base.text_logits([TEXTS[1]], "right")[0], "the row without a prompt")
        index = torch.tensor([0, -1, 1])
        for by_name, by_index in zip(batch, subject.text_logits(TEXTS, "right", prompts=index), strict=True):
            assert torch.equal(by_name, by_index)
        _check_row_gradients(subject, rows)

    def test_promise_10_generation_per_row(self, subject: Subject) -> None:
        """Also in `generate`, with beams."""
        _needs_generation(subject)
        _add_longer_prompt(subject, self.method, {**self.options, **self.longer})
        rows: list[Any] = ["longer", None, "default"]
        ids, mask = pad(TEXTS, "left") if subject.is_causal else pad(TEXTS, "right")
        for beams in (1, 2):
            text, logits = _greedy(subject, ids, mask, prompts=rows, num_beams=beams)
            for row, alone in enumerate(TEXTS):
                alone_text, alone_logits = _greedy(subject, alone, prompts=[rows[row]], num_beams=beams)
                assert torch.equal(text[row, -NEW_TOKENS:], alone_text[0, -NEW_TOKENS:]), f"row {row}, {beams} beams"
                if beams == 1:
                    assert_equal(logits[row], alone_logits[0], f"logits of row {row}")

    def test_promise_11_output_length_is_input_length(self, architecture: str) -> None:
        """Virtual positions never show in logits, hidden states or attentions."""
        subject = _prompted(architecture, self.method, self.options, implementation="eager")
        base = Subject(architecture, tiny_model(architecture, implementation="eager"))
        ids, mask = pad(TEXTS, "right")
        shown = subject.run(ids, mask, output_hidden_states=True, output_attentions=True)
        expected = base.run(ids, mask, output_hidden_states=True, output_attentions=True)
        assert _shapes(shown) == _shapes(expected)
        as_tuple = subject.run(ids, mask, return_dict=False)
        assert torch.equal(as_tuple[0], shown.logits)


BASE_DEPENDS_ON_PADDING = {("bart", "left"), ("bert", "left"), ("distilbert", "left")}
"""Base models that count positions over left padding; what they give then is theirs."""


BASE_LACKS_STATIC_CACHE = {"gpt_neo"}
"""Base models that give something else with a static cache; gpt_neo's windows count its free columns."""


def conformance_suite(
    method: str,
    options: Mapping[str, Any] | None = None,
    architectures: Iterable[str] = tuple(TINY_MODELS),
    longer: Mapping[str, Any] | None = None,
    promises: Iterable[int] = tuple(range(1, 12)),
) -> type[ConformanceSuite]:
    """Make a pytest class that holds a method to all promises.

    Args:
        method: Name of a registered method.
        options: Its options; by default 5 virtual tokens.
        architectures: Keys of `TINY_MODELS` or of `models.MORE_MODELS`.
        longer: Options that make a longer prompt; by default two virtual tokens more.
        promises: Numbers of the promises it is held to; all by default.

    Returns:
        A class to bind to a name that starts with `Test`.
    """
    get_method(method)
    chosen = {"num_virtual_tokens": 5, **(options or {})}
    more = {"num_virtual_tokens": chosen["num_virtual_tokens"] + 2} if longer is None else longer
    members: dict[str, Any] = {"method": method, "options": chosen, "longer": more}
    kept = tuple(f"test_promise_{number:02}_" for number in promises)
    members |= {name: None for name in vars(ConformanceSuite) if name.startswith("test_") and not name.startswith(kept)}
    suite = type(f"Test_{method}", (ConformanceSuite,), members)
    return pytest.mark.parametrize("architecture", list(architectures))(suite)


def _prompted(architecture: str, method: str, options: Mapping[str, Any], implementation: str = "sdpa") -> Subject:
    try:
        return Subject.prompted(architecture, method, options, implementation)
    except UnsupportedError as error:
        pytest.skip(f"not defined here: {error}")


def _needs_generation(subject: Subject) -> None:
    if not subject.can_generate:
        pytest.skip("an encoder does not generate")


def _without_dropout(subject: Subject) -> None:
    for module in subject.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "attn_pdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _greedy(subject: Subject, ids: Tensor, mask: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Generate greedily; return the text, and the logits of each new token `(rows, NEW_TOKENS, vocab)`."""
    output = subject.model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        **{"max_new_tokens": NEW_TOKENS, "do_sample": False, **subject.tasks(ids), **options},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences, torch.stack(output.logits, dim=1)


def _by_repeated_forward(subject: Subject, ids: Tensor, mask: Tensor, text: Tensor) -> list[Tensor]:
    """Return the logits of each new token of `text`, each from one forward over all that stands before it."""
    logits = []
    for step in range(NEW_TOKENS):
        before = text[:, : step - NEW_TOKENS]
        if subject.is_causal:
            seen = torch.cat([mask, mask.new_ones(mask.shape[0], step)], dim=1)
            logits.append(subject.logits(before, seen)[:, -1])
        else:
            logits.append(subject.logits(ids, mask, decoder_input_ids=before)[:, -1])
    return logits


def _check_step_by_step(subject: Subject) -> None:
    text = TEXTS[0]
    if not subject.is_causal:
        inputs = subject.inputs(text)
        text = inputs["decoder_input_ids"]
    full = subject.logits(TEXTS[0])
    cache = None
    for step in range(text.shape[1]):
        token = text[:, step : step + 1]
        more: dict[str, Any] = {"past_key_values": cache, "use_cache": True, **subject.tasks(TEXTS[0])}
        if not subject.is_causal:
            more["decoder_input_ids"] = token
        output = subject.run(token if subject.is_causal else TEXTS[0], **more)
        cache = output.past_key_values
        assert_equal(output.logits[:, 0], full[:, step], f"step {step}")


def _add_longer_prompt(subject: Subject, method: str, options: Mapping[str, Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        subject.model.prompts.add("longer", method, **options)
        subject.disturb("longer")


def _check_row_gradients(subject: Subject, rows: list[Any]) -> None:
    subject.model.double()  # a net behind the tokens magnifies the rounding of another order of sums
    ids, mask = pad(TEXTS, "right")
    weights = torch.arange(1, len(rows) + 1)
    subject.model.double()  # sums over many rows of large gradients would differ by their rounding

    def total(logits: Tensor, keep: Tensor, weight: Tensor) -> Tensor:
        keep = torch.ones_like(logits[..., 0]) if subject.is_encoder_decoder else keep
        return (weight * (logits.pow(2).sum(-1) * keep).sum(-1)).sum()

    total(subject.model(**subject.inputs(ids, mask, prompts=rows)).logits, mask, weights).backward()
    batch = subject.gradients()
    for row, (name, text) in enumerate(zip(rows, TEXTS, strict=True)):
        if name is not None:
            logits = subject.model(**subject.inputs(text, prompts=[name])).logits
            total(logits, torch.ones_like(text), weights[row]).backward()
    alone = subject.gradients()
    assert batch.keys() == alone.keys()
    for name in batch:
        assert_equal(batch[name], alone[name], f"gradient of {name}")


def _shapes(output: Any) -> dict[str, Any]:
    return {
        name: [tuple(part.shape) for part in value] if isinstance(value, tuple) else tuple(value.shape)
        for name, value in output.items()
        if isinstance(value, Tensor | tuple)
    }
