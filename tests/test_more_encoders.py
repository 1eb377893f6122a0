"""The large table: the promises on further encoders and encoder-decoders."""

import pytest
from test_conformance import OPTIONS

import softprompt_zoo as zoo
from softprompt_zoo.testing import conformance_suite
from softprompt_zoo.testing.encoder_decoders import ENCODER_DECODERS
from softprompt_zoo.testing.encoders import ENCODERS

ARCHITECTURES = [*ENCODERS, *ENCODER_DECODERS]

for _method in zoo.list_methods():
    _suite = conformance_suite(_method, architectures=ARCHITECTURES, **OPTIONS.get(_method, {}))
    globals()[f"Test_{_method}"] = pytest.mark.slow(_suite)
