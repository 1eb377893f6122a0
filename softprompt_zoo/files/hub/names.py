"""Names of repositories on the Hugging Face Hub."""

import re

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""The form of a repository's name."""
LONGEST = 96
"""Maximum number of characters in such a name, from huggingface_hub's `validate_repo_id`."""


def is_hub_name(name: str) -> bool:
    """Return whether a string may be the name of a repository rather than a path such as `./a`."""
    return len(name) <= LONGEST and bool(HUB_NAME.fullmatch(name)) and not {".", ".."} & {*name.split("/")}
