"""What the scheduler's side of the connector sends to the workers in each step."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Load:
    """A prompt to put into a request's blocks."""

    request_id: str
    name: str
    stamp: str
    """The stamp that the prompt must have when a worker reads it."""
    begin: int
    """Number of its tokens that are already in vLLM's prefix cache."""
    end: int
    """Number of all its tokens."""
    blocks: tuple[tuple[int | None, ...], ...]
    """For each group of the cache, the ids of the blocks of tokens 0 to `end`; `None` where the group stores none."""


@dataclasses.dataclass
class Step:
    """The work of one step."""

    loads: list[Load] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    """Ids of requests that end with an error."""
