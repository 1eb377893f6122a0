"""The promises, with DePT's offsets and with ADePT's."""

from softprompt_zoo.testing import conformance_suite

TestPositions = conformance_suite("dept", {"rank": 3, "max_length": 16})
TestTokens = conformance_suite("dept", {"offset": "token", "rank": 3})
