"""PEFT's tests that do not apply to this library, and those without an equivalent here, with the reasons."""

from typing import Any

INSIDE = "looks into PEFT's own modules, or replaces them"
NOT_APPLICABLE: dict[str, str] = {
    "test_prefix_tuning_offsets_position_ids_in_forward": f"{INSIDE}: the inner forward, which gets PEFT's positions",
    "test_cartridge_offsets_position_ids_in_forward": f"{INSIDE}: the inner forward, which gets PEFT's positions",
    "test_cartridge_prefill_4d_mask_uses_cache_position": f"{INSIDE}: how it makes a mask for its virtual tokens",
    "test_prompt_tuning_prepare_inputs_for_generation_4d_attention_mask": f"{INSIDE}: how it makes such a mask",
    "test_modules_to_save_correctly_set": f"{INSIDE}: that a trained head is wrapped; here it is a copy in the prompt",
    "test_add_adapter_does_not_change_active_adapter": f"{INSIDE}: a private attribute of the model inside",
    "test_load_adapter_does_not_change_active_adapter": f"{INSIDE}: a private attribute of the model inside",
    "test_prompt_tuning_text_tokenizer_kwargs": "a tokenizer is handed over here as an object, never made of arguments",
    "test_prefix_tuning": "reports PEFT's injected layers, of which a prompt has none",
    "test_adaption_prompt": "reports PEFT's injected layers, of which a prompt has none",
    "test_set_requires_grad_prompt_learning_raises": "asserts a refusal; here it is `requires_grad_`",
}
"""Reasons why tests are not run, by the name of the test."""
DEBERTA = (
    "PEFT builds a prefix on DeBERTa, whose every forward raises there; its tests do no more than build and save it"
)
"""Why tests with such a prefix are not run: this library refuses to attach or export what cannot run."""

NO_TARGET = "PEFT's default config of CPT, whose context has no target to learn from, is refused"
NO_WAY: dict[str, str] = {"test_model_initialization_random": NO_TARGET, "test_model_training_random": NO_TARGET}
"""Reasons by test name, for tests of what is refused here with an error other than `UnsupportedError`."""


def reason_of(item: Any) -> str | None:
    """Return why a test is not run against this library; `None` if it is run."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    config = getattr(parameters.get("config_cls"), "__name__", "")
    if config == "PrefixTuningConfig" and "Deberta" in parameters.get("model_id", ""):
        return DEBERTA
    return NOT_APPLICABLE.get(item.originalname)
