"""Measurements of what requests with prompts cost an engine, compared with others, in elapsed and processor time."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psutil

Row = tuple[str | None, list[int]]
"""A request: its prompt, if it has one, and the ids of its text."""
AT_A_TIME = 16
"""Successive requests whose processor time is measured together, because it is counted in hundredths of a second."""
ROUNDS = 6
LENGTH = 32
"""Tokens of each answer when throughput is measured."""


@dataclasses.dataclass(frozen=True)
class Kinds:
    """Kinds of requests to compare: an equal number of each, which differ only in their prompts and texts."""

    rows: Mapping[str, Sequence[Row]]
    lengths: Sequence[int]
    """Number of tokens of each prompt."""

    @classmethod
    def of(cls, names: Sequence[str], lengths: Sequence[int], texts: Sequence[list[int]]) -> "Kinds":
        """Build requests with a prompt each, without prompts, and with as many more text tokens as each prompt has.

        Args:
            names: Names of the prompts.
            lengths: Number of tokens of each prompt.
            texts: Token ids of twice as many texts.
        """
        own, more = texts[: len(names)], texts[len(names) :]
        longer = [(None, [*ids, *other[:count]]) for ids, other, count in zip(own, more, lengths, strict=True)]
        rows = {
            "a prompt each": list(zip(names, own, strict=True)),
            "no prompt": [(None, ids) for ids in own],
            "as many tokens more of text": longer,
        }
        return cls(rows, lengths)

    def throughput(self, write: Callable[[Sequence[Row], int], object], repeats: int) -> dict[str, Any]:
        """Time all requests of a kind at once, the kinds in turns.

        Args:
            write: A function that answers requests at once, with the given number of tokens each.
            repeats: Number of turns.
        """
        seconds, processor = self._empty(), self._empty()
        for _, (what, rows) in itertools.product(range(repeats), self.rows.items()):
            passed, used = cost(lambda rows=rows: write(rows, LENGTH))
            seconds[what].append(passed)
            processor[what].append(used)
        return {"tokens": statistics.mean(self.lengths), "seconds": seconds, "processor": processor}

    def first_token(self, write: Callable[[Sequence[Row], int], object]) -> dict[str, Any]:
        """Time the first token of one request after another, the kinds in turns, in milliseconds per request."""
        milliseconds, processor = self._empty(), self._empty()
        for begin in self._begins():
            for what, rows in self.rows.items():
                costs = [cost(lambda row=row: write([row], 1)) for row in rows[begin : begin + AT_A_TIME]]
                milliseconds[what] += [1000 * passed for passed, _ in costs]
                processor[what].append(1000 * sum(used for _, used in costs) / len(costs))
        return {"tokens": statistics.mean(self.lengths), "milliseconds": milliseconds, "processor": processor}

    def _begins(self) -> Iterator[int]:
        groups = max(1, min(map(len, self.rows.values())) // AT_A_TIME)
        return (AT_A_TIME * (turn % groups) for turn in range(ROUNDS))

    def _empty(self) -> dict[str, list[float]]:
        return {what: [] for what in self.rows}


def cost(call: Callable[[], object]) -> tuple[float, float]:
    """Return the elapsed seconds of a call, and the processor seconds of this process and all its descendants."""
    before, begin = processor_seconds(), time.perf_counter()
    call()
    passed = time.perf_counter() - begin
    return passed, processor_seconds() - before


def processor_seconds() -> float:
    """Return the processor time that this process and all its descendants have used, in seconds."""
    own = psutil.Process()
    times = [one.cpu_times() for one in (own, *own.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def memory_of_children() -> int:
    """Return the private memory of all descendants of this process, in bytes."""
    children = psutil.Process().children(recursive=True)
    return sum(child.memory_full_info().uss for child in children)


def compared(measured: Mapping[str, Sequence[float]], base: str, form: str) -> list[list[str]]:
    """Return rows of medians, and of ratios to a base that was measured in the same turns."""
    rows = []
    for what, values in measured.items():
        ratios = [value / other for value, other in zip(values, measured[base], strict=True)]
        low, high = min(ratios), max(ratios)
        rows.append([what, form.format(statistics.median(values)), f"{statistics.median(ratios):.2f}"])
        rows[-1].append("" if what == base else f"{low:.2f} to {high:.2f}")
    return rows


def side_by_side(passed: Sequence[list[str]], used: Sequence[list[str]]) -> list[list[str]]:
    """Return the rows of elapsed time, each followed by the columns of processor time."""
    return [[*left, *right[1:]] for left, right in zip(passed, used, strict=True)]
