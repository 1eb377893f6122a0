"""Every built-in method on the decoders of the large table; a fixed part of it in every run."""

import pytest
from test_conformance import OPTIONS

from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.testing import conformance_suite
from softprompt_zoo.testing.decoders import DECODERS

METHODS = list(BUILTINS)
IN_EVERY_RUN = (3, 5, 7)
"""Padding, real tokens, saving: the cheapest promises that notice a wrong position, window or mask."""

for _index, _method in enumerate(METHODS):
    _options = OPTIONS.get(_method, {})
    _own = list(DECODERS)[_index :: len(METHODS)]
    globals()[f"Test_part_{_method}"] = conformance_suite(
        _method, architectures=_own, promises=IN_EVERY_RUN, **_options
    )
    _whole = conformance_suite(_method, architectures=DECODERS, **_options)
    globals()[f"Test_whole_{_method}"] = pytest.mark.slow(_whole)
