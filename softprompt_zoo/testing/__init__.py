"""The conformance kit: what a method must guarantee and support, as suites that any plugin can run on itself.

The suites need pytest, but the models do not: each is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt_zoo.testing.checked import check_method
    from softprompt_zoo.testing.conformance import ConformanceSuite, conformance_suite
    from softprompt_zoo.testing.models import TINY_MODELS, tiny_model
    from softprompt_zoo.testing.operations import OperationSuite, operation_suite
    from softprompt_zoo.testing.pairs import combination_suite
    from softprompt_zoo.testing.tokenizer import tiny_tokenizer

_MODULES = {
    "TINY_MODELS": "models",
    "ConformanceSuite": "conformance",
    "OperationSuite": "operations",
    "check_method": "checked",
    "combination_suite": "pairs",
    "conformance_suite": "conformance",
    "operation_suite": "operations",
    "tiny_model": "models",
    "tiny_tokenizer": "tokenizer",
}
__all__ = [
    "TINY_MODELS",
    "ConformanceSuite",
    "OperationSuite",
    "check_method",
    "combination_suite",
    "conformance_suite",
    "operation_suite",
    "tiny_model",
    "tiny_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
