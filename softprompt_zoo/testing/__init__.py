"""The conformance kit: what a method must keep and be used for, as suites that any plugin can run on itself."""

from softprompt_zoo.testing.conformance import ConformanceSuite, conformance_suite
from softprompt_zoo.testing.models import TINY_MODELS, tiny_model
from softprompt_zoo.testing.operations import OperationSuite, operation_suite
from softprompt_zoo.testing.pairs import combination_suite
from softprompt_zoo.testing.tokenizer import tiny_tokenizer

__all__ = [
    "TINY_MODELS",
    "ConformanceSuite",
    "OperationSuite",
    "combination_suite",
    "conformance_suite",
    "operation_suite",
    "tiny_model",
    "tiny_tokenizer",
]
