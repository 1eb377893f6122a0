"""What users do with a model besides training it, on models of each kind in turns; the matrix covers the others."""

import pytest
from helpers.products import suite_in_turns

import softprompt_zoo as zoo
from softprompt_zoo.testing import operation_suite, tiny_model
from softprompt_zoo.testing.operations import OPERATIONS
from softprompt_zoo.testing.subject import Subject

ARCHITECTURES = ["llama", "t5", "bert", "bloom"]
QUICK = [name for name in OPERATIONS if name != "compiled"]  # test_moved_models.py compiles in every test run

TestPromptTuning = suite_in_turns(operation_suite("prompt_tuning", architectures=ARCHITECTURES, operations=QUICK))
TestPrefixTuning = suite_in_turns(operation_suite("prefix_tuning", architectures=ARCHITECTURES, operations=QUICK))
TestPromptTuningCompiled = pytest.mark.slow(
    operation_suite("prompt_tuning", architectures=ARCHITECTURES, operations=["compiled"])
)
TestPrefixTuningCompiled = pytest.mark.slow(
    operation_suite("prefix_tuning", architectures=ARCHITECTURES, operations=["compiled"])
)


def test_a_check_says_what_the_base_model_cannot_do():
    suite = operation_suite("prefix_tuning")()
    base = Subject("gpt2", tiny_model("gpt2"))
    with pytest.raises(pytest.skip.Exception, match="an encoder does not generate"):
        suite.test_operation_prompt_lookup(suite.prompted("bert"), None)
    with pytest.raises(pytest.skip.Exception, match="not support an attention implementation"):
        suite.test_operation_attention_implementations(suite.prompted("gpt2"), base, "flex_attention")


def test_a_refusal_skips_a_check_or_is_shown():
    suite = operation_suite("prompt_tuning")()
    base = Subject("bert", tiny_model("bert"))
    with pytest.raises(pytest.skip.Exception, match=r"refused: .*not a 4-D one"):
        suite.test_operation_masks_of_four_dimensions(suite.prompted("bert"), base)
    suite.shows_refusals = True
    with pytest.raises(zoo.UnsupportedError, match="not a 4-D one"):
        suite.test_operation_masks_of_four_dimensions(suite.prompted("bert"), base)
