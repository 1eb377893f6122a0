"""The files and functions of the package that a call walks through, in order."""

import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import softprompt_zoo

ROOT = Path(softprompt_zoo.__file__).parent


@dataclasses.dataclass(frozen=True)
class Walk:
    """The functions that a call entered; a comprehension counts as a function."""

    steps: tuple[tuple[str, str], ...]
    """File and function of every call, in order."""

    @property
    def files(self) -> list[str]:
        """The files, in the order in which they were first entered."""
        return list(dict.fromkeys(file for file, _ in self.steps))

    @property
    def functions(self) -> list[tuple[str, str]]:
        """The functions with their files, in the order in which they were first entered."""
        return list(dict.fromkeys(self.steps))

    def __str__(self) -> str:
        counts = f"{len(self.files)} files, {len(self.functions)} functions, {len(self.steps)} calls"
        visits = itertools.groupby(self.steps, key=lambda step: step[0])
        lines = [f"{file}\n    " + "\n    ".join(name for _, name in steps) for file, steps in visits]
        return "\n".join([counts, *lines])


def walk(call: Callable[[], Any]) -> Walk:
    """Run a call and note every function of the package that it enters, on this thread."""
    steps: list[tuple[str, str]] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(str(ROOT)):
            steps.append((str(Path(path).relative_to(ROOT)), frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return Walk(tuple(steps))
