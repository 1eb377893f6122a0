"""Every built-in method on the decoders of the large table; a fixed part of it in every run."""

import pytest
from test_conformance import OPTIONS

from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.testing import conformance_suite
from softprompt_zoo.testing.decoders import DECODERS

for _method in BUILTINS:
    _suite = conformance_suite(_method, architectures=DECODERS, **OPTIONS.get(_method, {}))
    globals()[f"Test_{_method}"] = pytest.mark.slow(_suite)
