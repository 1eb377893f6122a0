"""What requests with prompts cost an engine beside others, in seconds that pass and in seconds of processors."""

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
"""Requests one after the other whose processor time is taken together, for it is counted in hundredths of a second."""
ROUNDS = 6
LENGTH = 32
"""Tokens of an answer where throughput is measured."""


@dataclasses.dataclass(frozen=True)
class Kinds:
    """Requests that are compared, as many of each kind, which differ in nothing but their prompts and texts."""

    rows: Mapping[str, Sequence[Row]]
    lengths: Sequence[int]
    """The prompts' tokens."""

    @classmethod
    def of(cls, names: Sequence[str], lengths: Sequence[int], texts: Sequence[list[int]]) -> "Kinds":
        """Make requests with a prompt each, without, and with as many tokens more of text as each prompt has.

        Args:
            names: The prompts'.
            lengths: Their tokens.
            texts: Twice as many texts.
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
        """Time each kind, all requests at once, in turns.

        Args:
            write: Answers requests at once, with so many tokens each.
            repeats: Turns.
        """
        seconds, processor = self._empty(), self._empty()
        for _, (what, rows) in itertools.product(range(repeats), self.rows.items()):
            passed, used = cost(lambda rows=rows: write(rows, LENGTH))
            seconds[what].append(passed)
            processor[what].append(used)
        return {"tokens": statistics.mean(self.lengths), "seconds": seconds, "processor": processor}

    def first_token(self, write: Callable[[Sequence[Row], int], object]) -> dict[str, Any]:
        """Time one token for one request after the other, each kind's in turns, in milliseconds for each request."""
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
    """Return the seconds that a call takes, and those of processors that this process and all below it use."""
    before, begin = processor_seconds(), time.perf_counter()
    call()
    passed = time.perf_counter() - begin
    return passed, processor_seconds() - before


def processor_seconds() -> float:
    """Return the processor time that this process and all below it have used, in seconds."""
    own = psutil.Process()
    times = [one.cpu_times() for one in (own, *own.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def memory_of_children() -> int:
    """Return the bytes that all processes below this one have for themselves."""
    children = psutil.Process().children(recursive=True)
    return sum(child.memory_full_info().uss for child in children)


def compared(measured: Mapping[str, Sequence[float]], base: str, form: str) -> list[list[str]]:
    """Return rows of medians, and of ratios to a base that was measured in turns with them."""
    rows = []
    for what, values in measured.items():
        ratios = [value / other for value, other in zip(values, measured[base], strict=True)]
        low, high = min(ratios), max(ratios)
        rows.append([what, form.format(statistics.median(values)), f"{statistics.median(ratios):.2f}"])
        rows[-1].append("" if what == base else f"{low:.2f} to {high:.2f}")
    return rows


def side_by_side(passed: Sequence[list[str]], used: Sequence[list[str]]) -> list[list[str]]:
    """Return rows of time that passed, and behind them those of processor time."""
    return [[*left, *right[1:]] for left, right in zip(passed, used, strict=True)]
