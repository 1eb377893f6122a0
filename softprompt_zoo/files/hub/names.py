"""What may be the name of a repository on the Hugging Face Hub."""

import re

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""What repositories are called."""
LONGEST = 96
"""Characters of such a name, huggingface_hub's `validate_repo_id` says."""


def is_hub_name(name: str) -> bool:
    """Return whether a text may be the name of a repository, and not a path such as `./a`."""
    return len(name) <= LONGEST and bool(HUB_NAME.fullmatch(name)) and not {".", ".."} & {*name.split("/")}
