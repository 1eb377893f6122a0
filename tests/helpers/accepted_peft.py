"""A skip for tests where transformers does not accept the installed PEFT."""

import pytest
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version


def needs_accepted_peft(**options):
    """Skip if transformers does not accept the installed PEFT.

    transformers 5.24 requires PEFT 0.22 and no longer takes what earlier versions give its models. `nox` runs the
    skipped tests with the newest transformers that accepts the newest PEFT.
    """
    try:
        check_peft_version(min_version=MIN_PEFT_VERSION)
    except ValueError as error:
        pytest.skip(f"transformers does not accept the PEFT that is installed: {error}", **options)
